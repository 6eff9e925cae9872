//! The two kinds of options: those that determine the result, and those of the run.

use crate::delta::options::{NonFinite, RoundBase};
use crate::factorize::precision::Precision;
use crate::factorize::types::{Method, Request};
use crate::pipeline::options::RunOptions;
use crate::{Error, Result};
use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use crate::lora::factor_dtype::FactorType;
use crate::lora::loader::Loader;

/// The options that determine the result. Equal options on equal checkpoints give equal bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResultOptions {
    /// Largest rank of a module.
    pub rank: usize,
    /// Ranks of further adapters from the same factorization, each below `rank`.
    #[serde(skip_serializing_if = "BTreeSet::is_empty", default)]
    pub lower_ranks: BTreeSet<usize>,
    /// How near the whole adapter has to come: it gets the least rank that does, at most `rank`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub target: Option<Target>,
    /// Share of each delta's energy to capture, in (0, 1].
    pub energy: Option<f64>,
    /// How far a module's error may exceed the optimal error, as a fraction of it.
    pub tolerance: f64,
    /// How to factorize.
    pub method: Method,
    /// In what numbers block Krylov multiplies with the deltas.
    #[serde(default = "Precision::before")]
    pub precision: Precision,
    /// Seed of the random directions.
    pub seed: u64,
    /// How factors are stored.
    pub dtype: FactorType,
    /// Whether the base is rounded first.
    pub round_base: RoundBase,
    /// What to do with NaN and infinities.
    pub non_finite: NonFinite,
    /// Patterns of modules to extract; empty for the linear layers.
    pub include: Vec<String>,
    /// Patterns of modules to leave out.
    pub exclude: Vec<String>,
    /// Whether to use the common rows if the vocabularies differ.
    pub trim_vocab: bool,
    /// `base_model_name_or_path` of the adapter.
    pub base_model_name: String,
    /// With a dense base beside the quantized one: the share of the rank that the change alone gets, in (0, 1).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hybrid_share: Option<f64>,
    /// Whether the tuned checkpoint's tokenizer, chat template and generation config go into the adapter's folder.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub copy_tokenizer: bool,
    /// Whether the linear weights behind norms that differ carry the difference.
    #[serde(skip_serializing_if = "AbsorbNorms::is_auto", default)]
    pub absorb_norms: AbsorbNorms,
    /// The one program that is to load the adapter. Without one it is what most programs load, and what PEFT needs
    /// where they differ.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub loader: Option<Loader>,
}

/// How near an adapter has to come to the change of all its modules together, in the norm that the run minimizes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Target {
    /// Its relative error, at most.
    Error(f64),
    /// The share of the energy that it captures, at least.
    Energy(f64),
}

impl Target {
    /// Whether this relative error is small enough.
    pub fn is_met(self, relative_error: f64) -> bool {
        match self {
            Target::Error(most) => relative_error <= most,
            Target::Energy(least) => 1.0 - relative_error.powi(2) >= least,
        }
    }
}

/// Whether linear weights carry the difference of the norms before them, which no LoRA can hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum AbsorbNorms {
    /// Where the base's activation scales are folded into its norms.
    #[default]
    Auto,
    /// Wherever a norm differs: what a fine-tune did to it as well.
    Always,
    /// Nowhere.
    Never,
}

impl AbsorbNorms {
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
    fn is_auto(&self) -> bool {
        *self == AbsorbNorms::Auto
    }
}

impl ResultOptions {
    /// The factorization that is requested for every module.
    pub fn request(&self) -> Request {
        let ResultOptions { rank, energy, tolerance, method, seed, .. } = *self;
        Request { rank, energy, tolerance, method, seed }
    }

    /// The ranks of the further adapters, ascending: those below `rank`, which is the largest in use.
    pub(crate) fn ranks_below(&self, rank: usize) -> Vec<usize> {
        self.lower_ranks.range(..rank).copied().collect()
    }

    /// The defaults of the command line, for a base of this name.
    pub fn for_base(name: &str) -> ResultOptions {
        ResultOptions {
            rank: 128,
            lower_ranks: BTreeSet::new(),
            target: None,
            energy: None,
            tolerance: 0.005,
            method: Method::Auto,
            precision: Precision::Auto,
            seed: 0,
            dtype: FactorType::Bf16,
            round_base: RoundBase::None,
            non_finite: NonFinite::Fail,
            include: Vec::new(),
            exclude: Vec::new(),
            trim_vocab: false,
            base_model_name: name.to_owned(),
            hybrid_share: None,
            copy_tokenizer: false,
            absorb_norms: AbsorbNorms::Auto,
            loader: None,
        }
    }

    /// Refuses values that are out of range.
    ///
    /// # Errors
    /// A rank of zero, a tolerance or an energy outside its range.
    pub fn check(&self) -> Result<()> {
        if self.rank == 0 {
            return Err(Error::decide("an adapter of rank 0 holds nothing").hint("give --rank 1 or more"));
        }
        if !(self.tolerance > 0.0 && self.tolerance <= 0.1) {
            let what = format!("a tolerance of {} is outside (0, 0.1]", self.tolerance);
            return Err(Error::decide(what).hint("--tolerance 0.005 is the default"));
        }
        if self.energy.is_some_and(|share| !(share > 0.0 && share <= 1.0)) {
            let hint = "--energy is a share, for example 0.9";
            return Err(Error::decide("the energy to capture is outside (0, 1]").hint(hint));
        }
        if let Some(Target::Error(share) | Target::Energy(share)) = self.target
            && !(share > 0.0 && share < 1.0)
        {
            let hint = "--target-error 0.3 leaves at most 0.3 of the change's norm, --target-energy 0.9 captures 90 %";
            return Err(Error::decide(format!("a target of {share} is outside (0, 1)")).hint(hint));
        }
        if self.lower_ranks.contains(&0) {
            return Err(Error::decide("an adapter of rank 0 holds nothing").hint("give ranks of 1 or more"));
        }
        if self.energy.is_some() && (self.target.is_some() || !self.lower_ranks.is_empty()) {
            return Err(Error::decide(
                "the energy of each module and that of the whole adapter give different ranks",
            )
            .hint("give --energy alone, or --ranks, --target-error or --target-energy"));
        }
        let Some(share) = self.hybrid_share else { return Ok(()) };
        if self.target.is_some() || !self.lower_ranks.is_empty() {
            return Err(Error::decide("the two parts of a hybrid have no common order of directions").hint(
                "give --rank and --hybrid-share, without --ranks, --target-error and --target-energy",
            ));
        }
        if !(share > 0.0 && share < 1.0) {
            return Err(Error::decide(format!("a share of {share} of the rank is outside (0, 1)"))
                .hint("--hybrid-share 0.5 gives half of the rank to the change"));
        }
        if self.rank < 2 {
            return Err(Error::decide("a hybrid of rank 1 has no two parts").hint("give --rank 2 or more"));
        }
        if self.energy.is_some() {
            return Err(Error::decide("--energy chooses one rank, and a hybrid has two")
                .hint("give --rank and --hybrid-share"));
        }
        Ok(())
    }
}

/// What is refused unless it is allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowances {
    /// Selected modules that only one of the two checkpoints has, or that have different shapes.
    pub missing: bool,
    /// A quantized tuned checkpoint on a dense base.
    pub quantized_tuned: bool,
    /// One checkpoint as both base and tuned.
    pub same: bool,
}

impl Allowances {
    /// Everything is allowed: for a run that has begun already.
    pub const ALL: Allowances = Allowances { missing: true, quantized_tuned: true, same: true };
}

/// One extraction: its inputs, its output, and its options.
#[derive(Clone, Debug)]
pub struct Extraction {
    /// Path or hub name of the base.
    pub base: String,
    /// Path or hub name of the tuned checkpoint.
    pub tuned: String,
    /// Path or hub name of the checkpoint that will serve the adapter, if the error on it is to be measured.
    pub served: Option<String>,
    /// The calibration in whose norm the error is to be the least: a folder, a file, an importance matrix.
    pub calibration: Option<String>,
    /// Path or hub name of the dense base that a quantized one was made of: the change from it gets a share of the
    /// rank for itself ([`ResultOptions::hybrid_share`]).
    pub hybrid: Option<String>,
    /// The output folder.
    pub out: PathBuf,
    /// The options that determine the result.
    pub deciding: ResultOptions,
    /// What is allowed that is otherwise refused. It changes no byte.
    pub allow: Allowances,
    /// How to run: threads, memory, overwriting.
    pub running: RunOptions,
}
