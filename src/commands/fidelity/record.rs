//! `fidelity.json`: how far the served weights are from the tuned ones, with each adapter and with none.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::checkpoint::identity::Identity;
use crate::delta::record::{Side, Source, TensorRecord};

/// The name of the file.
pub const FIDELITY: &str = "fidelity.json";

/// The version of what follows, as of `analysis.json`.
pub const FIDELITY_VERSION: u32 = 1;

/// The whole of `fidelity.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fidelity {
    /// [`FIDELITY_VERSION`] of the program that wrote it.
    pub version: u32,
    /// Version of the program.
    pub trephine: String,
    /// Instruction set that the products ran on: another one may round differently.
    #[serde(default)]
    pub simd: String,
    /// The files that were read from, by what they are (`adapter`, `tuned`, `served`): names, sizes, digests of their headers, of an
    /// adapter's files of all of their content.
    pub inputs: BTreeMap<Side, Identity>,
    /// What serves the adapters.
    pub served: Source,
    /// What the weights should be.
    pub tuned: Source,
    /// The adapters, in the order in which they were given.
    pub adapters: Vec<FidelityAdapter>,
    /// Remarks, as on an adapter's modules that the model does not have.
    pub notes: Vec<String>,
    /// All modules together.
    pub total: Distances,
    /// By kind of module, as `q_proj`, in the order of the kinds' names.
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
    /// The last part of its path, or the path where two of them would be called the same.
    pub name: String,
    /// blake3 of its weights' file, in hex.
    pub blake3: String,
    /// How many modules it changes.
    pub modules: usize,
    /// The least and the greatest rank of these.
    pub ranks: [usize; 2],
}

/// How far some weights are from the tuned ones, in Frobenius norms.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Distances {
    /// `||T - dequant(Q)||`: without an adapter.
    pub without: f64,
    /// `||T - (dequant(Q) + s·B·A)||` for each adapter, in their order, with `s` its scaling.
    pub with: Vec<f64>,
    /// `with / without` for each adapter: 1 where it changes nothing, below 1 where it helps. Where `without` is zero: 1 for a
    /// distance of zero, and absent for any other.
    pub ratio: Vec<Option<f64>>,
}

/// Modules of one kind together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FidelityGroup {
    /// As `q_proj`.
    pub name: String,
    /// How many.
    pub modules: usize,
    /// Over all their elements.
    #[serde(flatten)]
    pub distances: Distances,
}

/// One module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FidelityModule {
    /// As the served checkpoint names it, without `.weight`.
    pub name: String,
    /// As `q_proj`.
    pub kind: String,
    /// `[out, in]`.
    pub shape: [usize; 2],
    /// The rank of each adapter in this module, in their order; 0 where it leaves the module alone.
    pub ranks: Vec<usize>,
    /// Its distances.
    #[serde(flatten)]
    pub distances: Distances,
}
