//! The limits of what counts as healthy.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The limits of an autopsy. A weight within all of them gets no verdict.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Thresholds {
    /// Largest |mean| of a matrix; a larger one has exploded.
    pub exploded_mean: f64,
    /// Largest standard deviation of a matrix; a larger one has exploded.
    pub exploded_std: f64,
    /// Both limits for norms, whose healthy values reach into the tens.
    pub exploded_norm: f64,
    /// Largest healthy |mean| of a linear weight.
    pub healthy_mean: f64,
    /// Smallest healthy standard deviation of a linear weight.
    pub least_std: f64,
    /// Largest healthy standard deviation of a linear weight.
    pub most_std: f64,
    /// Largest healthy magnitude in a linear weight.
    pub healthy_range: f64,
    /// Largest share of values beyond `healthy_range` that counts as outliers, which trained models have: a warning,
    /// not an error.
    pub outliers: f64,
    /// A matrix with at least 4096 non-zero values has more distinct magnitudes than this, unless all of them are codes
    /// under one scale; 0 turns the check off. E4M3 has 126 magnitudes, INT8 has 128.
    pub few_magnitudes: u64,
    /// Largest share of 8-bit codes at the ends of their format's range.
    pub saturated_8: f64,
    /// The same for 3-bit and 4-bit codes; with two bits, half of the codes are at the ends.
    pub saturated_4: f64,
    /// Largest relative error between partners.
    pub relative_error: f64,
    /// Smallest cosine between partners.
    pub cosine: f64,
    /// Largest block drift between partners.
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
    /// Refuses limits that make no sense.
    ///
    /// # Errors
    /// A limit that is negative or not a number; a smallest standard deviation above the largest; a
    /// cosine outside -1 to 1.
    pub fn check(&self) -> Result<()> {
        let limits = [
            ("the mean", self.exploded_mean),
            ("the standard deviation", self.exploded_std),
            ("norms", self.exploded_norm),
            ("a healthy mean", self.healthy_mean),
            ("the smallest standard deviation", self.least_std),
            ("the largest standard deviation", self.most_std),
            ("the range", self.healthy_range),
            ("outliers", self.outliers),
            ("saturated 8-bit codes", self.saturated_8),
            ("saturated 3-bit and 4-bit codes", self.saturated_4),
            ("the relative error", self.relative_error),
            ("the block drift", self.block_drift),
        ];
        if let Some((what, limit)) = limits.iter().find(|(_, limit)| limit.is_nan() || *limit < 0.0) {
            return Err(Error::decide(format!("the limit for {what} is {limit}"))
                .hint("give a number that is not negative"));
        }
        if self.least_std > self.most_std {
            let (least, most) = (self.least_std, self.most_std);
            return Err(Error::decide(format!("no standard deviation is between {least} and {most}"))
                .hint("give a --min-std that is at most --max-std, for example 0.005 and 0.1"));
        }
        if !(-1.0..=1.0).contains(&self.cosine) {
            return Err(Error::decide(format!("{} is not a cosine", self.cosine))
                .hint("give a --min-cosine from -1 to 1"));
        }
        Ok(())
    }
}
