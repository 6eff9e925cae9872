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

/// The file in a finished folder that says how it was made. Its bytes depend on inputs and options alone.
pub const CONVERSION: &str = "conversion.json";

/// All that decides a conversion's bytes, and what came out beside the weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Conversion {
    /// Version of the program.
    pub trephine: String,
    /// `dequantize` or `merge`.
    pub command: String,
    /// The options that decide the result.
    pub options: Map<String, Value>,
    /// Instruction set that products ran on, where there were any.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub simd: Option<String>,
    /// The files that were read, by what they were to the run: `checkpoint`, `base`, `adapter`.
    pub inputs: BTreeMap<Side, Identity>,
    /// How the weights of the checkpoint are stored.
    pub scheme: String,
    /// Modules whose weights were computed: dequantized, or changed by the adapter.
    pub computed: usize,
    /// Tensors that were copied as they are.
    pub copied: usize,
    /// Tensors that only the quantization needed, and that are not part of any weight: scales of activations and caches.
    pub dropped: Vec<String>,
    /// Parameters that the adapter holds whole (`modules_to_save`), which took the place of the base's.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub replaced: Vec<String>,
    /// Values that are NaN or infinite, by module, where there are any.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub non_finite: BTreeMap<String, u64>,
    /// Every tensor of a checkpoint that was read, by name. The adapter's files are held by `inputs`, all of their content.
    #[serde(default)]
    pub tensors: Vec<TensorRecord>,
}

impl Conversion {
    /// Of the run with this identity, which reads `checkpoint`; what it comes to is not in it yet.
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

/// The end of a conversion.
#[derive(Clone, Debug, Serialize)]
pub struct ConversionOutcome {
    /// The folder.
    pub out: PathBuf,
    /// Whether an earlier run had done all of it.
    pub was_done: bool,
    /// Files of weights.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// What was done.
    #[serde(flatten)]
    pub conversion: Conversion,
}
