//! The two kinds of options: what decides the result, and how the work is run.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::factorize::Method;
pub use crate::lora::factor_dtype::FactorType;
use crate::{Error, Result};

/// What to do with NaN and infinities in a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NonFinite {
    /// Stop with an error that names the place.
    Fail,
    /// Take the difference there as zero, and count it.
    Zero,
}

/// Whether the dequantized base is rounded before it is subtracted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RoundBase {
    /// The exact product of code and scale, in f32.
    None,
    /// Rounded to bfloat16, as a bridge on disk would be.
    Bf16,
}

/// The options that decide the result. Equal options on equal checkpoints give equal bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Deciding {
    /// Largest rank of a module.
    pub rank: usize,
    /// Share of each delta's energy that is enough, in (0, 1].
    pub energy: Option<f64>,
    /// How far above the optimal error a module may lie, as a fraction.
    pub tolerance: f64,
    /// How to factorize.
    pub method: Method,
    /// Seed of the random directions.
    pub seed: u64,
    /// How factors are stored.
    pub dtype: FactorType,
    /// Whether the base is rounded first.
    pub round_base: RoundBase,
    /// NaN and infinities.
    pub non_finite: NonFinite,
    /// Patterns of modules to extract; empty for the linear layers.
    pub include: Vec<String>,
    /// Patterns of modules to leave out.
    pub exclude: Vec<String>,
    /// Go on with the common rows where vocabularies differ.
    pub trim_vocab: bool,
    /// `base_model_name_or_path` of the adapter.
    pub base_model_name: String,
}

impl Deciding {
    /// The defaults of the command line, for a base of this name.
    pub fn for_base(name: &str) -> Deciding {
        Deciding {
            rank: 128,
            energy: None,
            tolerance: 0.005,
            method: Method::Auto,
            seed: 0,
            dtype: FactorType::Bf16,
            round_base: RoundBase::None,
            non_finite: NonFinite::Fail,
            include: Vec::new(),
            exclude: Vec::new(),
            trim_vocab: false,
            base_model_name: name.to_owned(),
        }
    }

    /// Refuses values that no run can be made with.
    ///
    /// # Errors
    /// A rank of zero, a tolerance or an energy outside its range.
    pub fn check(&self) -> Result<()> {
        if self.rank == 0 {
            return Err(Error::decide("rank 0 holds nothing").hint("give --rank 1 or more"));
        }
        if !(self.tolerance > 0.0 && self.tolerance <= 0.1) {
            let what = format!("a tolerance of {} is outside (0, 0.1]", self.tolerance);
            return Err(Error::decide(what).hint("--tolerance 0.005 is the default"));
        }
        if self.energy.is_some_and(|share| !(share > 0.0 && share <= 1.0)) {
            let hint = "--energy is a share, as 0.9";
            return Err(Error::decide("the energy to capture is outside (0, 1]").hint(hint));
        }
        Ok(())
    }
}

/// The options that only say how the work is run. They may change between a stop and the next run.
#[derive(Clone, Debug)]
pub struct Running {
    /// Threads that compute.
    pub threads: usize,
    /// Peak resident memory of the process in bytes.
    pub memory: u64,
    /// Keep the shards after the adapter is assembled.
    pub keep_shards: bool,
    /// Throw away what the output folder holds of an earlier run.
    pub overwrite: bool,
    /// Go on with a run that was begun at another SIMD level.
    pub other_simd: bool,
}

impl Running {
    /// So many threads and so much memory, and no more to say.
    pub fn new(threads: usize, memory: u64) -> Running {
        Running { threads, memory, keep_shards: false, overwrite: false, other_simd: false }
    }
}

/// One extraction: from what, to where, how.
#[derive(Clone, Debug)]
pub struct Extraction {
    /// Path or hub name of the base.
    pub base: String,
    /// Path or hub name of the tuned checkpoint.
    pub tuned: String,
    /// Path or hub name of the checkpoint that will serve the adapter, where its error is to be measured on it.
    pub served: Option<String>,
    /// The output folder.
    pub out: PathBuf,
    /// What decides the result.
    pub deciding: Deciding,
    /// How the work is run.
    pub running: Running,
}
