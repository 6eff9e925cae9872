//! Options that determine how the difference is computed.

use serde::{Deserialize, Serialize};

/// What to do with NaN and infinities in a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum NonFinite {
    /// Stop with an error that names the position.
    Fail,
    /// Set the difference there to zero, and count it.
    Zero,
}

/// Whether the dequantized base is rounded before it is subtracted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum RoundBase {
    /// No rounding: the exact product of code and scale, in f32.
    None,
    /// Rounded to bfloat16, as in a dequantized checkpoint on disk.
    Bf16,
}
