//! What is taken for healthy.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The limits of an autopsy. A weight within all of them gets no verdict.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Thresholds {
    /// The mean of a matrix has exploded above this, in magnitude.
    pub exploded_mean: f64,
    /// Its standard deviation has exploded above this.
    pub exploded_std: f64,
    /// The same two limits for norms, whose healthy values reach into the tens.
    pub exploded_norm: f64,
    /// The mean of a linear weight is healthy up to this, in magnitude.
    pub healthy_mean: f64,
    /// Its standard deviation is healthy from here ...
    pub least_std: f64,
    /// ... to here.
    pub most_std: f64,
    /// Its values are healthy up to this magnitude.
    pub healthy_range: f64,
    /// The share of values beyond `healthy_range` up to which they are outliers, which trained models have: a warning, not an error.
    pub outliers: f64,
    /// A matrix of at least 4096 values other than zero has more different magnitudes than this, unless all of them are codes
    /// under one scale; 0 asks for none. E4M3 and INT8 have 126 and 128.
    pub few_magnitudes: u64,
    /// The share of codes of eight bits that may be at the ends of their format.
    pub saturated_8: f64,
    /// The same for codes of three and four bits; with two bits half of the codes are ends.
    pub saturated_4: f64,
    /// The largest relative error between partners.
    pub relative_error: f64,
    /// The least cosine between partners.
    pub cosine: f64,
    /// The largest drift of norms over blocks between partners.
    pub block_drift: f64,
}

impl Default for Thresholds {
    fn default() -> Thresholds {
        Thresholds {
            exploded_mean: 1.0,
            exploded_std: 10.0,
            exploded_norm: 100.0,
            healthy_mean: 0.01,
            least_std: 0.005,
            most_std: 0.1,
            healthy_range: 0.5,
            outliers: 1e-3,
            few_magnitudes: 128,
            saturated_8: 0.1,
            saturated_4: 0.4,
            relative_error: 0.2,
            cosine: 0.98,
            block_drift: 0.03,
        }
    }
}

impl Thresholds {
    /// Refuses limits that nothing can be held against.
    ///
    /// # Errors
    /// A limit that is negative or no number; a smallest standard deviation above the largest.
    pub fn check(&self) -> Result<()> {
        let limits = [
            ("the mean", self.exploded_mean),
            ("the standard deviation", self.exploded_std),
            ("norms", self.exploded_norm),
            ("a healthy mean", self.healthy_mean),
            ("the least standard deviation", self.least_std),
            ("the largest standard deviation", self.most_std),
            ("the range", self.healthy_range),
            ("outliers", self.outliers),
            ("saturated codes of 8 bits", self.saturated_8),
            ("saturated codes of 4 bits", self.saturated_4),
            ("the relative error", self.relative_error),
            ("the drift of blocks", self.block_drift),
        ];
        if let Some((what, limit)) = limits.iter().find(|(_, limit)| limit.is_nan() || *limit < 0.0) {
            return Err(Error::decide(format!("the limit of {what} is {limit}"))
                .hint("give a number that is not negative"));
        }
        if self.least_std > self.most_std {
            let (least, most) = (self.least_std, self.most_std);
            return Err(Error::decide(format!("no standard deviation is between {least} and {most}"))
                .hint("--std takes the least and the largest, as 0.005..0.1"));
        }
        if !(-1.0..=1.0).contains(&self.cosine) {
            return Err(
                Error::decide(format!("no cosine is {}", self.cosine)).hint("it lies between -1 and 1")
            );
        }
        Ok(())
    }
}
