//! `extraction.json`: what was read, with which options, and how good each module is. The same checkpoints and options
//! give the same bytes: times, threads and budgets are not recorded.

use crate::calibration::CalibrationSource;
use crate::checkpoint::identity::Identity;
use crate::delta::module_record::{ModuleRecord, OutputError, Quality, ServedError};
use crate::delta::record::{LeftOut, Side, Source, TensorRecord};
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The whole manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the program.
    pub trephine: String,
    /// The options that determine the result.
    pub options: Map<String, Value>,
    /// Instruction set of the matrix products: another one may round differently. Empty where all are in bytes, which
    /// are the same everywhere.
    pub simd: String,
    /// The files that were read, by checkpoint: names, sizes, and digests of their headers.
    pub inputs: BTreeMap<Side, Identity>,
    /// The checkpoint that the adapter is added to.
    pub base: Source,
    /// The checkpoint that base and adapter together approximate.
    pub tuned: Source,
    /// The checkpoint that will serve the adapter, if the error on it was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub served: Option<Source>,
    /// The calibration in whose norm the error is the least, where there was one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub calibration: Option<CalibrationSource>,
    /// The dense base from which the change had a share of the rank for itself.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hybrid: Option<Source>,
    /// The adapter's uniform rank.
    pub rank: usize,
    /// Quality of all modules together.
    pub total: Quality,
    /// The adapters of lower ranks that lie in folders of their own beside this one.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub lower_ranks: Vec<LowerRank>,
    /// What adapters of other ranks would capture.
    #[serde(default)]
    pub other_ranks: Vec<OtherRank>,
    /// The norms whose change the weights behind them carry.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub absorbed_norms: Vec<String>,
    /// Remarks, for example on names that were paired by a prefix.
    pub notes: Vec<String>,
    /// Every module of the adapter, by name.
    pub modules: Vec<ModuleRecord>,
    /// The tensors that may differ but are not in the adapter, by name.
    pub not_represented: Vec<LeftOut>,
    /// Every tensor that was read, by checkpoint and name.
    pub tensors: Vec<TensorRecord>,
}

/// An adapter of a lower rank from the same factorization.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LowerRank {
    /// Its rank.
    pub rank: usize,
    /// Its folder, inside that of the largest rank.
    pub folder: String,
    /// Its quality.
    pub total: Quality,
}

/// What an adapter of another uniform rank would capture.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct OtherRank {
    /// The rank.
    pub rank: usize,
    /// The share of the energy that it would capture: of the delta, or with a calibration of what the outputs change
    /// by.
    pub captured_energy: f64,
    /// Whether it may be more, because some singular values have not converged.
    pub lower_bound: bool,
}

impl OtherRank {
    /// The relative error that goes with the captured share.
    pub fn relative_error(&self) -> f64 {
        (1.0 - self.captured_energy).max(0.0).sqrt()
    }
}

/// One line of `spectra.jsonl.zst`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spectrum {
    /// The module.
    pub module: String,
    /// `[out, in]`.
    pub shape: [usize; 2],
    /// What the values are of, where that is not the delta.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub of: Option<SpectrumOf>,
    /// Frobenius norm of the delta, or of what else the values are of.
    pub delta_norm: f64,
    /// How many of the singular values have converged; the rest are lower bounds.
    pub converged: usize,
    /// Singular values of the delta, descending.
    pub singular_values: Vec<f64>,
}

impl Manifest {
    /// What `--non-finite zero` did, as a sentence; `None` where it did nothing.
    pub fn non_finite(&self) -> Option<String> {
        let hit = self.modules.iter().filter(|module| module.non_finite > 0);
        let (count, modules) =
            hit.fold((0, 0), |(sum, modules), module| (sum + module.non_finite, modules + 1));
        (count > 0).then(|| {
            format!(
                "{count} elements in {modules} modules were taken as unchanged, for a weight is NaN or infinite there: \
                 errors and captured energy are of what is left."
            )
        })
    }
}

/// What singular values are of, if not of the delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpectrumOf {
    /// Of the delta times a root of the second moments of the layer's inputs: of what its outputs change by.
    Outputs,
    /// Of what the first factors of a hybrid leave of the delta.
    Rest,
}

/// The quality of all `modules` together.
pub fn total<'a>(modules: impl Iterator<Item = &'a ModuleRecord>) -> Quality {
    let (mut norm2, mut error2) = (0.0, 0.0);
    let mut served: Option<(f64, f64)> = None;
    let mut outputs: Option<(f64, f64)> = None;
    for module in modules {
        let quality = &module.quality;
        norm2 += quality.delta_norm.powi(2);
        error2 += quality.error2();
        if let Some(error) = quality.served {
            let (without, with) = served.get_or_insert_default();
            *without += error.without_adapter.powi(2);
            *with += error.with_adapter.powi(2);
        }
        if let Some(error) = quality.outputs {
            let (norm2, error2) = outputs.get_or_insert_default();
            *norm2 += error.delta_norm.powi(2);
            *error2 += error.error2();
        }
    }
    let mut quality = Quality::of(norm2, error2);
    quality.served = served
        .map(|(without, with)| ServedError { without_adapter: without.sqrt(), with_adapter: with.sqrt() });
    quality.outputs = outputs.map(|(norm2, error2)| OutputError::of(norm2, error2));
    quality
}
