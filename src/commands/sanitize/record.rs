//! What sanitizing did: printed, and kept beside the adapter.

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
    /// Instruction set that the products ran on: another one may round differently.
    #[serde(default)]
    pub simd: String,
    /// The files that were read, by what they are (`adapter`, `base`); of the adapter's all of their content.
    #[serde(default)]
    pub inputs: BTreeMap<Side, Identity>,
    /// The adapter that was read, as it was named.
    pub adapter: String,
    /// For whom.
    pub consumers: Vec<Loader>,
    /// The one rank that every module has now.
    pub rank: usize,
    /// How the factors are stored.
    pub dtype: String,
    /// What was found for these programs before.
    pub found: Vec<RuleFinding>,
    /// Modules that were carried over, by name.
    pub modules: Vec<Refitted>,
    /// Modules of zeros that complete a set.
    pub completed: Vec<Completed>,
    /// What was left out.
    pub pruned: Vec<Pruned>,
    /// Whole weights that were kept beside the factors.
    pub kept: Vec<String>,
    /// Relative error of all products together by the cut to a lower rank: what no adapter of that rank could avoid.
    pub truncation_error: f64,
    /// Relative error of all products together by storing the factors.
    pub rounding_error: f64,
    /// The base's tensors that were read.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub tensors: Vec<TensorRecord>,
}

/// One module before and after.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Refitted {
    /// As the base names it.
    pub name: String,
    /// Its rank before.
    pub rank: usize,
    /// The factor that stood before `B·A`, now multiplied in.
    pub scale: f64,
    /// `||scale · B·A||` (Frobenius) before.
    pub norm: f64,
    /// What the cut to a lower rank left out, relative to `norm`; exact.
    pub truncation_error: f64,
    /// What storing the factors left out, relative to `norm`.
    pub rounding_error: f64,
}

/// A module of zeros.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Completed {
    /// As the base names it.
    pub name: String,
    /// `[out, in]`.
    pub shape: [usize; 2],
}

/// Something that was left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pruned {
    /// The tensor, or the module whose two factors were left out.
    pub name: String,
    /// What a tensor was; `None` for factors.
    pub kind: Option<ExtraKind>,
    /// Number of its elements.
    pub elements: usize,
    /// Its norm (Frobenius); of a module that of `scale · B·A`.
    pub norm: f64,
    /// With a base: the norm of its difference from the base's own tensor, which is what is lost.
    pub change: Option<f64>,
    /// With a base: that difference relative to the norm of the base's own tensor.
    pub relative_change: Option<f64>,
}
