//! `conversion.json` in the finished folder: how it was made.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::checkpoint::Checkpoint;
use crate::checkpoint::identity::Identity;
use crate::delta::record::{Side, TensorRecord};
use crate::run::identity::RunIdentity;
use crate::run::job::RunOutput;

/// The file in a finished folder that says how it was made. Its bytes depend only on inputs and options.
pub const CONVERSION: &str = "conversion.json";

/// Everything that determines a conversion's bytes, and its results besides the weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Conversion {
    /// Version of the program.
    pub trephine: String,
    /// `dequantize` or `merge`.
    pub command: String,
    /// The options that determine the result.
    pub options: Map<String, Value>,
    /// Instruction set of the matrix products, if there were any.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub simd: Option<String>,
    /// The files that were read, by their role in the run: `checkpoint`, `base`, `adapter`.
    pub inputs: BTreeMap<Side, Identity>,
    /// How the weights of the checkpoint are stored.
    pub scheme: String,
    /// Number of modules whose weights were computed: dequantized, or changed by the adapter.
    pub computed: usize,
    /// Number of tensors that were copied unchanged.
    pub copied: usize,
    /// Tensors that were dropped because only the quantization needed them: scales of activations and caches, which are
    /// not part of any weight.
    pub dropped: Vec<String>,
    /// Parameters that the adapter holds whole (`modules_to_save`), which replaced the base's.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub replaced: Vec<String>,
    /// Number of values that are NaN or infinite, by module, if any.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub non_finite: BTreeMap<String, u64>,
    /// Every tensor of a checkpoint that was read, by name. The adapter's files are recorded in `inputs`, by digests of
    /// their whole content.
    #[serde(default)]
    pub tensors: Vec<TensorRecord>,
}

impl Conversion {
    /// The record of a run with this identity that reads `checkpoint`, before its results are filled in.
    pub(super) fn blank(identity: &RunIdentity, checkpoint: &Checkpoint) -> Conversion {
        Conversion {
            trephine: identity.trephine.clone(),
            command: identity.command.clone(),
            options: identity.options.clone(),
            simd: identity.simd.clone(),
            inputs: identity.timeless_inputs(),
            scheme: checkpoint.scheme().label(),
            computed: 0,
            copied: 0,
            dropped: Vec::new(),
            replaced: Vec::new(),
            non_finite: BTreeMap::new(),
            tensors: Vec::new(),
        }
    }
}

impl RunOutput for Conversion {
    fn identity(&self) -> RunIdentity {
        RunIdentity {
            command: self.command.clone(),
            trephine: self.trephine.clone(),
            options: self.options.clone(),
            simd: self.simd.clone(),
            inputs: self.inputs.clone(),
        }
    }

    fn tensors(&self) -> &[TensorRecord] {
        &self.tensors
    }
}

/// The outcome of a conversion.
#[derive(Clone, Debug, Serialize)]
pub struct ConversionOutcome {
    /// The output folder.
    pub out: PathBuf,
    /// Whether an earlier run had already finished it.
    pub was_done: bool,
    /// Number of weight files.
    pub files: usize,
    /// Total size of the weight files in bytes.
    pub bytes: u64,
    /// The record of the conversion.
    #[serde(flatten)]
    pub conversion: Conversion,
}
