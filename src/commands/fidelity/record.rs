//! `fidelity.json`: how far the served weights are from the tuned ones, with each adapter and without any.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::checkpoint::identity::Identity;
use crate::delta::record::{Side, Source, TensorRecord};

/// The name of the file.
pub const FIDELITY: &str = "fidelity.json";

/// The version of the schema, as in `analysis.json`.
pub const FIDELITY_VERSION: u32 = 1;

/// The whole of `fidelity.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fidelity {
    /// [`FIDELITY_VERSION`] of the program that wrote it.
    pub version: u32,
    /// Version of the program.
    pub trephine: String,
    /// Instruction set of the matrix products: another one may round differently.
    #[serde(default)]
    pub simd: String,
    /// The files that were read, by role (`adapter`, `tuned`, `served`): names, sizes, and digests of their headers, or
    /// of the whole content for an adapter's files.
    pub inputs: BTreeMap<Side, Identity>,
    /// The checkpoint that serves the adapters.
    pub served: Source,
    /// The checkpoint that the served weights should match.
    pub tuned: Source,
    /// The adapters, in the order in which they were given.
    pub adapters: Vec<FidelityAdapter>,
    /// Remarks, for example on an adapter's modules that the model does not have.
    pub notes: Vec<String>,
    /// All modules together.
    pub total: Distances,
    /// By kind of module, for example `q_proj`, in the order of the kinds' names.
    pub kinds: Vec<FidelityGroup>,
    /// Every module, by name.
    pub modules: Vec<FidelityModule>,
    /// Every tensor of the checkpoints that was read, where the measurement was written to a folder.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub tensors: Vec<TensorRecord>,
}

/// One adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FidelityAdapter {
    /// The last part of its path, or the whole path if two adapters would have the same name.
    pub name: String,
    /// blake3 of its weights' file, in hex.
    pub blake3: String,
    /// How many modules it changes.
    pub modules: usize,
    /// The smallest and the largest rank of these.
    pub ranks: [usize; 2],
}

/// How far weights are from the tuned ones, as Frobenius norms.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Distances {
    /// `||T - dequant(Q)||`: without an adapter.
    pub without: f64,
    /// `||T - (dequant(Q) + s·B·A)||` for each adapter, in their order, with `s` its scaling.
    pub with: Vec<f64>,
    /// `with / without` for each adapter: 1 if it changes nothing, below 1 if it helps. If `without` is zero: 1 for a
    /// distance of zero, and absent for any other.
    pub ratio: Vec<Option<f64>>,
}

/// Modules of one kind together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FidelityGroup {
    /// For example `q_proj`.
    pub name: String,
    /// Number of modules.
    pub modules: usize,
    /// The distances over all their elements.
    #[serde(flatten)]
    pub distances: Distances,
}

/// One module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FidelityModule {
    /// Its name in the served checkpoint, without `.weight`.
    pub name: String,
    /// For example `q_proj`.
    pub kind: String,
    /// `[out, in]`.
    pub shape: [usize; 2],
    /// The rank of each adapter in this module, in their order; 0 if it does not change the module.
    pub ranks: Vec<usize>,
    /// Its distances.
    #[serde(flatten)]
    pub distances: Distances,
}
