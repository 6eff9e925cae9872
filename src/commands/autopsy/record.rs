//! `autopsy.json`: the statistics of every tensor, and what is wrong with it. The same checkpoints and options give the
//! same bytes, wherever they are stored: the file records no times, threads, memory limits or parent folders.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::checkpoint::identity::Identity;
use crate::commands::autopsy::statistics::Statistics;
use crate::commands::autopsy::thresholds::Thresholds;
use crate::delta::record::Source;

/// The name of the file.
pub const AUTOPSY: &str = "autopsy.json";

/// The version of the file's format, as for `analysis.json`.
pub const AUTOPSY_VERSION: u32 = 2;

/// The whole of `autopsy.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Autopsy {
    /// [`AUTOPSY_VERSION`] of the program that wrote it.
    pub version: u32,
    /// Version of the program.
    pub trephine: String,
    /// The files that were read from, by checkpoint (`checkpoint`, `against`): names, sizes, digests of their headers.
    pub inputs: BTreeMap<String, Identity>,
    /// The checkpoint that was examined.
    pub checkpoint: Source,
    /// The checkpoint that it was compared with.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub against: Option<Source>,
    /// The limits that were applied.
    pub thresholds: Thresholds,
    /// Remarks, for example that names were paired by a prefix.
    pub notes: Vec<String>,
    /// All tensors together.
    pub total: Total,
    /// Every tensor that was examined, by name.
    pub tensors: Vec<TensorAutopsy>,
    /// Tensors whose values cannot be read as numbers, or that only one of the two checkpoints has, with the reason,
    /// by name.
    pub left_out: Vec<LeftUnread>,
}

/// All tensors together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Total {
    /// Number of tensors that were examined.
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
    /// For each fault, the number of tensors that have it.
    pub verdicts: BTreeMap<Fault, u64>,
    /// Number of tensors with a verdict that makes the check fail.
    pub errors: u64,
    /// Number of tensors that only have warnings.
    pub warnings: u64,
    /// The comparison over all tensors that were compared.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub comparison: Option<Comparison>,
}

/// One tensor: a weight after dequantization, a norm, a bias, a factor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorAutopsy {
    /// A module's name, without `.weight`, or the name of another tensor.
    pub name: String,
    /// The role that determines which rules apply.
    pub role: Role,
    /// Shape of the values, for a weight `[out, in]`.
    pub shape: Vec<usize>,
    /// Its stored element type, by its safetensors name.
    pub dtype: String,
    /// Whether it is stored as codes with scales.
    pub quantized: bool,
    /// Its stored bytes, scales included.
    pub bytes: u64,
    /// The statistics of its values.
    pub statistics: Statistics,
    /// Rows of a matrix that are all zero.
    pub zero_rows: u64,
    /// Codes that are the largest or the smallest of their format; absent unless it is quantized and the format
    /// reports them.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub saturated: Option<Saturated>,
    /// Its difference from its partner.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub comparison: Option<Comparison>,
    /// What is wrong with it.
    pub verdicts: Vec<Verdict>,
}

/// The role of a tensor, which determines the rules that apply to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Role {
    /// The weight of a linear layer, including a stack of experts.
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

/// Codes at the ends of their format's range.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Saturated {
    /// Number of such codes.
    pub codes: u64,
    /// Their share of all codes.
    pub share: f64,
    /// Bits per code.
    pub bits: u32,
}

/// A tensor `A` compared with its partner `B`, from sums over the elements where both are finite. Norms
/// are Frobenius norms.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The partner's name, if it differs.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<String>,
    /// `||A - B|| / ||B||`; 0 if both are zero, absent if only `B` is.
    pub relative_error: Option<f64>,
    /// `<A, B> / (||A|| ||B||)`; absent if either is zero.
    pub cosine: Option<f64>,
    /// `||A|| / ||B||`; absent if `B` is zero.
    pub norm_ratio: Option<f64>,
    /// The largest `|A - B|`.
    pub largest_difference: f64,
    /// How much the ratio of norms varies over blocks of 64 x 64, as a share of `norm_ratio`: the root mean square,
    /// weighted by the square of `B`'s norm in each block (a Hellinger distance of the blocks' energies). Rounding to
    /// any format leaves it near zero; misplaced scales do not. Absent for tensors that are not two-dimensional, and
    /// if a norm is zero.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub block_drift: Option<f64>,
}

/// The severity of a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Severity {
    /// Worth knowing, but not a failure.
    Warning,
    /// The check fails.
    Error,
}

/// A fault that a tensor can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Fault {
    /// NaN or infinities.
    NonFinite,
    /// All values are zero, or the same.
    Dead,
    /// The mean of a linear weight is far from zero, in its standard deviations.
    MeanOffZero,
    /// No trained network has weights of this size for their number of inputs.
    Scale,
    /// The standard deviation is far from the median of the same weights of all layers; for norms, the root mean
    /// square is.
    UnlikeItsKind,
    /// Too many rows are all zero.
    ZeroRows,
    /// With `--expect-init`: mean, standard deviation or extremes are outside the given range.
    OutsideRange,
    /// With `--expect-init`: a few values are outside the given range.
    Outliers,
    /// No more distinct magnitudes than 8-bit codes under one scale give.
    OneScale,
    /// Too many codes are at the ends of their format's range.
    Saturated,
    /// Too far from its partner.
    Differs,
    /// Its blocks are scaled in different proportions from its partner's.
    Rescaled,
    /// The partner has a different shape.
    ShapeDiffers,
}

impl Fault {
    /// The fault in words, for tables.
    pub fn words(self) -> &'static str {
        match self {
            Fault::NonFinite => "not finite",
            Fault::Dead => "dead",
            Fault::MeanOffZero => "mean off zero",
            Fault::Scale => "wrong scale",
            Fault::UnlikeItsKind => "unlike the other layers",
            Fault::ZeroRows => "zero rows",
            Fault::OutsideRange => "outside the expected range",
            Fault::Outliers => "outliers",
            Fault::OneScale => "one scale",
            Fault::Saturated => "saturated codes",
            Fault::Differs => "differs",
            Fault::Rescaled => "scales misplaced",
            Fault::ShapeDiffers => "different shape",
        }
    }
}

/// One verdict on one tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Its severity.
    pub gravity: Severity,
    /// What is wrong.
    pub fault: Fault,
    /// The number that the verdict rests on, in the unit of the fault; absent if it rests on no single number.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub measured: Option<f64>,
    /// The rest of the sentence that begins with the tensor's name, with its numbers.
    pub why: String,
}

/// A tensor that was not examined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftUnread {
    /// Its name.
    pub name: String,
    /// Why it was not examined, as the rest of the sentence that begins with its name.
    pub why: String,
}
