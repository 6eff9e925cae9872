//! `extraction.json`: what was read, what was decided, and how good each module is. The same checkpoints and options
//! give the same bytes: no times, threads or budgets stand here.

use crate::checkpoint::identity::Identity;
use crate::delta::module_record::{ModuleRecord, Quality, ServedError};
use crate::delta::record::{LeftOut, Side, Source, TensorRecord};
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The whole manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the program.
    pub trephine: String,
    /// The options that decide the result.
    pub options: Map<String, Value>,
    /// Instruction set that the products ran on: another one may round differently.
    pub simd: String,
    /// The files that were read from, by checkpoint: names, sizes, digests of their headers.
    pub inputs: BTreeMap<Side, Identity>,
    /// What the adapter is added to.
    pub base: Source,
    /// What it should become.
    pub tuned: Source,
    /// The one that will serve the adapter, where it was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub served: Option<Source>,
    /// The adapter's uniform rank.
    pub rank: usize,
    /// Over all modules.
    pub total: Quality,
    /// Remarks, as on names that were paired by a prefix.
    pub notes: Vec<String>,
    /// Every module of the adapter, by name.
    pub modules: Vec<ModuleRecord>,
    /// What the adapter does not hold though it may differ, by name.
    pub not_represented: Vec<LeftOut>,
    /// Every tensor that was read, by checkpoint and name.
    pub tensors: Vec<TensorRecord>,
}

/// One line of `spectra.jsonl.zst`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spectrum {
    /// The module.
    pub module: String,
    /// `[out, in]`.
    pub shape: [usize; 2],
    /// Frobenius norm of the delta.
    pub delta_norm: f64,
    /// How many of the values have converged; those behind are lower bounds.
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

/// The quality of all `modules` together.
pub fn total<'a>(modules: impl Iterator<Item = &'a ModuleRecord>) -> Quality {
    let (mut norm2, mut error2) = (0.0, 0.0);
    let mut served: Option<(f64, f64)> = None;
    for module in modules {
        let quality = &module.quality;
        norm2 += quality.delta_norm.powi(2);
        error2 += quality.error2();
        if let Some(error) = quality.served {
            let (without, with) = served.get_or_insert_default();
            *without += error.without_adapter.powi(2);
            *with += error.with_adapter.powi(2);
        }
    }
    let mut quality = Quality::of(norm2, error2);
    quality.served = served
        .map(|(without, with)| ServedError { without_adapter: without.sqrt(), with_adapter: with.sqrt() });
    quality
}
