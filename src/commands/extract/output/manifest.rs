//! `extraction.json`: what was read, what was decided, and how good each module is. The same checkpoints and options
//! give the same bytes: no times, threads or budgets stand here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::checkpoint::identity::Identity;

/// Which of the checkpoints a tensor was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// What the adapter is added to.
    Base,
    /// What it should become.
    Tuned,
    /// What will serve it.
    Served,
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Side::Base => "base",
            Side::Tuned => "tuned",
            Side::Served => "served",
        })
    }
}

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

/// A checkpoint, in few words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// As given on the command line; of a path the last part.
    pub name: String,
    /// The config's `model_type`.
    pub model_type: Option<String>,
    /// How its weights are stored, as `dense` or `fp8 128x128`.
    pub scheme: String,
}

/// How near the factors, as stored, come to a delta.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// Frobenius norm of the delta.
    pub delta_norm: f64,
    /// `||delta - B·A|| / ||delta||`; 0 for a delta of zero.
    pub relative_error: f64,
    /// `1 - relative_error^2`.
    pub captured_energy: f64,
    /// The error of the weights that will be served, where it was measured.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub served: Option<ServedError>,
}

impl Quality {
    /// From the squares of both norms.
    pub fn of(norm2: f64, error2: f64) -> Quality {
        let share = if norm2 > 0.0 { error2.max(0.0) / norm2 } else { 0.0 };
        Quality {
            delta_norm: norm2.sqrt(),
            relative_error: share.sqrt(),
            captured_energy: 1.0 - share,
            served: None,
        }
    }

    /// Square of the error's norm.
    pub fn error2(&self) -> f64 {
        (self.relative_error * self.delta_norm).powi(2)
    }
}

/// The final weights' distance from the tuned ones, on the checkpoint that will serve the adapter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServedError {
    /// `||T - dequant(served)||`.
    pub without_adapter: f64,
    /// `||T - (dequant(served) + B·A)||`.
    pub with_adapter: f64,
}

/// One module of the adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModuleRecord {
    /// As the base names it, without `.weight`.
    pub name: String,
    /// `[out, in]`.
    pub shape: [usize; 2],
    /// Rank before padding.
    pub rank: usize,
    /// `krylov`, `gram`, or `none` where the delta is zero or only completes a fused set.
    pub method: String,
    /// Columns of the Krylov basis, or the side of the Gram matrix.
    pub basis: usize,
    /// How often the delta was gone through.
    pub passes: usize,
    /// How near the stored factors come.
    #[serde(flatten)]
    pub quality: Quality,
    /// Estimate of error / optimal error - 1, from above.
    pub estimated_excess: f64,
    /// Elements where a weight was NaN or infinite, taken as unchanged.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub non_finite: u64,
    /// blake3 of its `lora_A` and then its `lora_B`, as they lie in the adapter.
    pub blake3: String,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Why a tensor is not in the adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// A LoRA holds products of matrices, not norms, biases or stacks of experts.
    NotLinear,
    /// It could be held, but was not selected.
    NotSelected,
    /// Only the base or only the tuned checkpoint has it.
    NoPartner,
    /// Both have it, in different shapes.
    ShapeDiffers,
    /// Rows of a vocabulary beyond the common ones.
    TrimmedVocabulary,
}

impl Reason {
    /// In words, for tables.
    pub fn words(self) -> &'static str {
        match self {
            Reason::NotLinear => "no linear weight",
            Reason::NotSelected => "not selected",
            Reason::NoPartner => "no partner",
            Reason::ShapeDiffers => "shapes differ",
            Reason::TrimmedVocabulary => "rows beyond the common vocabulary",
        }
    }
}

/// A tensor that the adapter does not hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Its name, in the base where the base has it.
    pub name: String,
    /// Why.
    pub reason: Reason,
    /// The checkpoint that has it, where only one has.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub only_in: Option<Side>,
    /// Its shape, in the base where the base has it.
    pub shape: Vec<usize>,
    /// Number of elements.
    pub elements: u64,
    /// `||T - B|| / ||B||`; absent where the two cannot be compared.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub relative_change: Option<f64>,
}

impl LeftOut {
    /// What tells it from every other: a trimmed vocabulary leaves rows of both checkpoints by one name.
    pub fn key(&self) -> String {
        let side = self.only_in.map(|side| side.to_string()).unwrap_or_default();
        format!("{} {:?} {side}", self.name, self.reason)
    }

    /// Whether leaving it out loses anything, as far as is known.
    pub fn matters(&self) -> bool {
        self.relative_change != Some(0.0)
    }
}

/// A tensor that was read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TensorRecord {
    /// Where it was read from.
    pub checkpoint: Side,
    /// Its name there.
    pub name: String,
    /// Its file, relative to the checkpoint's folder.
    pub file: String,
    /// Element type, as safetensors names it.
    pub dtype: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// The bytes of it that were read, from and to, where they are a part: an expert of a stack.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub part: Option<[u64; 2]>,
    /// Digest of its bytes, or of that part of them.
    pub blake3: String,
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
