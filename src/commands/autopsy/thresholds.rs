//! The limits of what counts as healthy.
//!
//! The rules for linear weights are free of scale, because trained models differ: the standard deviation of a linear
//! weight is 0.02 in one family and 0.4 in another. What they share is a mean near zero, a size that goes with the
//! number of inputs, and layers that resemble each other.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The limits of an autopsy. A weight within all of them gets no verdict.
///
/// "Healthy" in the fields is the range over the 378 linear weights of SmolLM2-135M and Gemma3-270M.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Thresholds {
    /// Largest |mean| of a linear weight, in its standard deviations. Healthy: up to 0.020.
    pub mean: f64,
    /// Smallest standard deviation of a linear weight times the root of its number of inputs. Healthy: from 0.25.
    pub least_scale: f64,
    /// The largest. Healthy: up to 9.5. Embeddings and heads get a twentieth and twenty times these limits: their size
    /// goes with no number of inputs.
    pub most_scale: f64,
    /// Largest ratio, either way, of the standard deviation of a linear weight and the median of the same weight of all
    /// layers. Healthy: 0.27 to 1.98.
    pub apart: f64,
    /// Largest ratio of the root mean square of a norm and the median of the same norm of all layers. Healthy: up to 7.
    pub norm_apart: f64,
    /// Largest share of rows of a linear weight that are all zero.
    pub zero_rows: f64,
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
    /// Absolute limits, for weights that are expected to lie near their initialization.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub init: Option<InitLimits>,
}

/// Absolute limits on linear weights, for models whose weights stay near a normal initialization with a standard
/// deviation of 0.02 to 0.05.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct InitLimits {
    /// Largest |mean|.
    pub mean: f64,
    /// Smallest standard deviation.
    pub least_std: f64,
    /// Largest standard deviation.
    pub most_std: f64,
    /// Largest magnitude.
    pub range: f64,
    /// Largest share of values beyond `range` that is only a warning.
    pub outliers: f64,
}

impl Default for InitLimits {
    fn default() -> InitLimits {
        InitLimits { mean: 0.01, least_std: 0.02, most_std: 0.05, range: 0.5, outliers: 1e-3 }
    }
}

impl Default for Thresholds {
    fn default() -> Thresholds {
        Thresholds {
            mean: 0.05,
            least_scale: 0.05,
            most_scale: 50.0,
            apart: 6.0,
            norm_apart: 30.0,
            zero_rows: 0.05,
            few_magnitudes: 128,
            saturated_8: 0.1,
            saturated_4: 0.4,
            relative_error: 0.2,
            cosine: 0.98,
            block_drift: 0.03,
            init: None,
        }
    }
}

impl Thresholds {
    /// The names that [`Thresholds::set`] takes, with what each limits.
    pub const NAMES: [(&'static str, &'static str); 17] = [
        ("mean", "largest |mean| of a linear weight, in its standard deviations"),
        ("least-scale", "smallest standard deviation times the root of the number of inputs"),
        ("most-scale", "largest standard deviation times the root of the number of inputs"),
        ("apart", "largest ratio of a standard deviation and the median over the layers"),
        ("norm-apart", "largest ratio of a norm's size and the median over the layers"),
        ("zero-rows", "largest share of rows that are all zero"),
        ("few-magnitudes", "number of distinct magnitudes that is too few; 0 turns the check off"),
        ("saturated-8", "largest share of saturated codes in 8-bit formats"),
        ("saturated-4", "largest share of saturated codes in 3-bit and 4-bit formats"),
        ("error", "with --against: largest relative error"),
        ("cosine", "with --against: smallest cosine"),
        ("drift", "with --against: largest variation of the ratio of block norms"),
        ("init-mean", "with --expect-init: largest |mean|"),
        ("init-least-std", "with --expect-init: smallest standard deviation"),
        ("init-most-std", "with --expect-init: largest standard deviation"),
        ("init-range", "with --expect-init: largest magnitude"),
        ("init-outliers", "with --expect-init: largest share beyond init-range that is only a warning"),
    ];

    /// The limit with this name; `None` if no limit has it, or if it needs `init`, which is not set.
    pub fn get(&self, name: &str) -> Option<f64> {
        let mut copy = *self;
        match name {
            "few-magnitudes" => Some(self.few_magnitudes as f64),
            _ => copy.field(name).copied(),
        }
    }

    /// Sets the limit with this name. The names that begin with `init-` set `init` if it is absent.
    ///
    /// # Errors
    /// A name that is not in [`Thresholds::NAMES`].
    pub fn set(&mut self, name: &str, limit: f64) -> Result<()> {
        if name == "few-magnitudes" {
            self.few_magnitudes = if limit >= 0.0 { limit as u64 } else { return negative(name, limit) };
            return Ok(());
        }
        if name.starts_with("init-") {
            self.init.get_or_insert_default();
        }
        match self.field(name) {
            Some(field) => *field = limit,
            None => {
                let names: Vec<&str> = Thresholds::NAMES.iter().map(|(name, _)| *name).collect();
                return Err(Error::decide(format!("no limit is named '{name}'"))
                    .hint(format!("the limits are {}", names.join(", "))));
            }
        }
        Ok(())
    }

    fn field(&mut self, name: &str) -> Option<&mut f64> {
        Some(match name {
            "mean" => &mut self.mean,
            "least-scale" => &mut self.least_scale,
            "most-scale" => &mut self.most_scale,
            "apart" => &mut self.apart,
            "norm-apart" => &mut self.norm_apart,
            "zero-rows" => &mut self.zero_rows,
            "saturated-8" => &mut self.saturated_8,
            "saturated-4" => &mut self.saturated_4,
            "error" => &mut self.relative_error,
            "cosine" => &mut self.cosine,
            "drift" => &mut self.block_drift,
            "init-mean" => &mut self.init.as_mut()?.mean,
            "init-least-std" => &mut self.init.as_mut()?.least_std,
            "init-most-std" => &mut self.init.as_mut()?.most_std,
            "init-range" => &mut self.init.as_mut()?.range,
            "init-outliers" => &mut self.init.as_mut()?.outliers,
            _ => return None,
        })
    }

    /// Refuses limits that make no sense.
    ///
    /// # Errors
    /// A limit that is negative or not a number; a smallest value above the largest; a ratio below 1; a cosine outside
    /// -1 to 1.
    pub fn check(&self) -> Result<()> {
        for (name, _) in Thresholds::NAMES.iter().filter(|(name, _)| *name != "cosine") {
            match self.get(name) {
                Some(limit) if limit.is_nan() || limit < 0.0 => return negative(name, limit),
                _ => {}
            }
        }
        let mut ranges = vec![("scale", self.least_scale, self.most_scale)];
        ranges.extend(self.init.map(|init| ("standard deviation", init.least_std, init.most_std)));
        if let Some((what, least, most)) = ranges.iter().find(|(_, least, most)| least > most) {
            return Err(Error::decide(format!("no {what} is between {least} and {most}"))
                .hint("give a smallest limit that is at most the largest one"));
        }
        for (name, ratio) in [("apart", self.apart), ("norm-apart", self.norm_apart)] {
            if ratio < 1.0 {
                return Err(Error::decide(format!("the limit '{name}' is {ratio}, but is a ratio"))
                    .hint("give a ratio of at least 1"));
            }
        }
        if !(-1.0..=1.0).contains(&self.cosine) {
            return Err(
                Error::decide(format!("{} is not a cosine", self.cosine)).hint("give a cosine from -1 to 1")
            );
        }
        Ok(())
    }
}

fn negative(name: &str, limit: f64) -> Result<()> {
    Err(Error::decide(format!("the limit '{name}' is {limit}")).hint("give a number that is not negative"))
}
