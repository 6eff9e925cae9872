//! The record of what sanitizing did: printed, and stored next to the adapter.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::checkpoint::identity::Identity;
use crate::delta::record::{Side, TensorRecord};
use crate::lora::read::classify::ExtraKind;
use crate::lora::rules::{Loader, RuleFinding};

/// Everything that was done to an adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sanitized {
    /// Version of the program.
    pub trephine: String,
    /// The options that determine the result: `for`, `max_rank`, `dtype`.
    #[serde(default)]
    pub options: Map<String, Value>,
    /// Instruction set of the matrix products: another one may round differently.
    #[serde(default)]
    pub simd: String,
    /// The files that were read, by role (`adapter`, `base`); the adapter's by digests of their whole content.
    #[serde(default)]
    pub inputs: BTreeMap<Side, Identity>,
    /// The adapter that was read, as the user named it.
    pub adapter: String,
    /// The programs that should load it.
    pub consumers: Vec<Loader>,
    /// The uniform rank of all modules.
    pub rank: usize,
    /// How the factors are stored.
    pub dtype: String,
    /// The rules of these programs that the adapter broke before.
    pub found: Vec<RuleFinding>,
    /// Modules that were kept, by name.
    pub modules: Vec<Refitted>,
    /// Modules of zeros, added to complete a set.
    pub completed: Vec<Completed>,
    /// What was left out.
    pub pruned: Vec<Pruned>,
    /// Whole weights that were kept besides the factors.
    pub kept: Vec<String>,
    /// Relative error of all products together from truncation to a lower rank, which no adapter of that rank could
    /// avoid.
    pub truncation_error: f64,
    /// Relative error of all products together from rounding the stored factors.
    pub rounding_error: f64,
    /// The base's tensors that were read.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub tensors: Vec<TensorRecord>,
}

/// One module before and after.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Refitted {
    /// Its name in the base.
    pub name: String,
    /// Its rank before.
    pub rank: usize,
    /// The former scale of `B·A`, now multiplied in.
    pub scale: f64,
    /// `||scale · B·A||` (Frobenius) before.
    pub norm: f64,
    /// The error of truncation to a lower rank, relative to `norm`; exact.
    pub truncation_error: f64,
    /// The error of rounding the stored factors, relative to `norm`.
    pub rounding_error: f64,
}

/// A module of zeros.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Completed {
    /// Its name in the base.
    pub name: String,
    /// `[out, in]`.
    pub shape: [usize; 2],
}

/// Something that was left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pruned {
    /// The tensor, or the module whose two factors were left out.
    pub name: String,
    /// The kind of tensor; `None` for factors.
    pub kind: Option<ExtraKind>,
    /// Number of its elements.
    pub elements: usize,
    /// Its norm (Frobenius); for a module, the norm of `scale · B·A`.
    pub norm: f64,
    /// With a base: the norm of its difference from the base's own tensor, which is what is lost.
    pub change: Option<f64>,
    /// With a base: that difference relative to the norm of the base's own tensor.
    pub relative_change: Option<f64>,
}
