//! `autopsy.json`: the statistics of every tensor, and what is wrong with it. The same checkpoints and options give the same bytes,
//! wherever they lie: no times, threads, budgets or folders on the way stand here.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::checkpoint::identity::Identity;
use crate::commands::autopsy::statistics::Statistics;
use crate::commands::autopsy::thresholds::Thresholds;
use crate::delta::record::Source;

/// The name of the file.
pub const AUTOPSY: &str = "autopsy.json";

/// The version of what follows, as of `analysis.json`.
pub const AUTOPSY_VERSION: u32 = 1;

/// The whole of `autopsy.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Autopsy {
    /// [`AUTOPSY_VERSION`] of the program that wrote it.
    pub version: u32,
    /// Version of the program.
    pub trephine: String,
    /// The files that were read from, by checkpoint (`checkpoint`, `against`): names, sizes, digests of their headers.
    pub inputs: BTreeMap<String, Identity>,
    /// What was looked at.
    pub checkpoint: Source,
    /// What it was held against.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub against: Option<Source>,
    /// What was taken for healthy.
    pub thresholds: Thresholds,
    /// Remarks, as on names that were paired by a prefix.
    pub notes: Vec<String>,
    /// All tensors together.
    pub total: Total,
    /// Every tensor that was looked at, by name.
    pub tensors: Vec<TensorAutopsy>,
    /// Tensors whose values cannot be read as numbers, or that only one of the two checkpoints has, with the reason, by name.
    pub left_out: Vec<LeftUnread>,
}

/// All tensors together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Total {
    /// How many were looked at.
    pub tensors: u64,
    /// Their elements.
    pub elements: u64,
    /// Their stored bytes, scales included.
    pub bytes: u64,
    /// NaN among the elements.
    pub nan: u64,
    /// Infinities among them.
    pub infinite: u64,
    /// Zeros among them.
    pub zeros: u64,
    /// How many tensors each verdict was given to.
    pub verdicts: BTreeMap<Fault, u64>,
    /// Verdicts that make the check fail.
    pub errors: u64,
    /// Verdicts that are only worth knowing.
    pub warnings: u64,
    /// All that was compared.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub comparison: Option<Comparison>,
}

/// One tensor: a weight after dequantization, a norm, a bias, a factor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorAutopsy {
    /// A module's name, without `.weight`, or the name of another tensor.
    pub name: String,
    /// By which rules it is judged.
    pub role: Role,
    /// Shape of the values, for a weight `[out, in]`.
    pub shape: Vec<usize>,
    /// The element type that it is stored in, as safetensors names it.
    pub dtype: String,
    /// Whether that is of codes under scales.
    pub quantized: bool,
    /// Its stored bytes, scales included.
    pub bytes: u64,
    /// What its values are like.
    pub statistics: Statistics,
    /// How many of its codes are the largest or the smallest of their format, where it is quantized and the format tells.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub saturated: Option<Saturated>,
    /// How it differs from its partner.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub comparison: Option<Comparison>,
    /// What is wrong with it.
    pub verdicts: Vec<Verdict>,
}

/// By which rules a tensor is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The weight of a linear layer, a stack of experts among them.
    Linear,
    /// An embedding, an output head, a router, a table of positions.
    Table,
    /// The weights of a norm.
    Norm,
    /// A bias.
    Bias,
    /// A factor of an adapter.
    Factor,
    /// Anything else.
    Other,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Linear => "linear",
            Role::Table => "table",
            Role::Norm => "norm",
            Role::Bias => "bias",
            Role::Factor => "factor",
            Role::Other => "other",
        })
    }
}

/// Codes at the ends of their format.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Saturated {
    /// How many.
    pub codes: u64,
    /// Their share of all.
    pub share: f64,
    /// Bits of a code.
    pub bits: u32,
}

/// A tensor `A` beside its partner `B`, from sums over the elements where both are finite. Norms are Frobenius norms.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The partner's name, where it is another.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<String>,
    /// `||A - B|| / ||B||`; 0 where both are zero, absent where only `B` is.
    pub relative_error: Option<f64>,
    /// `<A, B> / (||A|| ||B||)`; absent where one is zero.
    pub cosine: Option<f64>,
    /// `||A|| / ||B||`; absent where `B` is zero.
    pub norm_ratio: Option<f64>,
    /// The largest `|A - B|`.
    pub largest_difference: f64,
    /// How much the ratio of norms varies over blocks of 64 x 64, as a share of `norm_ratio`: the root of the mean square, weighted
    /// by the square of `B`'s norm in each (a Hellinger distance of the blocks' energies). Rounding, by whatever format, leaves it
    /// near zero; scales in the wrong places do not. Absent for what is not of two dimensions, and where a norm is zero.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub block_drift: Option<f64>,
}

/// How grave a verdict is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing.
    Warning,
    /// The check fails.
    Error,
}

/// What can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// NaN or infinities.
    NonFinite,
    /// The mean is far from zero.
    ExplodedMean,
    /// The standard deviation is far too large.
    ExplodedStd,
    /// All values are zero, or the same.
    Dead,
    /// Mean, standard deviation or extremes are outside what linear weights have.
    OutsideRange,
    /// A few values lie far outside the others.
    Outliers,
    /// As few different magnitudes as codes of eight bits under one scale give.
    OneScale,
    /// Too many codes at the ends of their format.
    Saturated,
    /// Too far from its partner.
    Differs,
    /// Its blocks are scaled in other proportions than its partner's.
    Rescaled,
    /// The partner has another shape.
    ShapeDiffers,
}

impl Fault {
    /// In words, for tables.
    pub fn words(self) -> &'static str {
        match self {
            Fault::NonFinite => "not finite",
            Fault::ExplodedMean => "exploded mean",
            Fault::ExplodedStd => "exploded std",
            Fault::Dead => "dead",
            Fault::OutsideRange => "outside the healthy range",
            Fault::Outliers => "outliers",
            Fault::OneScale => "one scale",
            Fault::Saturated => "saturated codes",
            Fault::Differs => "differs",
            Fault::Rescaled => "scales misplaced",
            Fault::ShapeDiffers => "another shape",
        }
    }
}

/// One verdict on one tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// How grave it is.
    pub gravity: Severity,
    /// What is wrong.
    pub fault: Fault,
    /// The rest of the sentence that begins with the tensor's name, with its numbers.
    pub why: String,
}

/// A tensor that was not looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftUnread {
    /// Its name.
    pub name: String,
    /// Why.
    pub why: String,
}
