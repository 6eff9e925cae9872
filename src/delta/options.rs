//! Options that decide what is subtracted.

use serde::{Deserialize, Serialize};

/// What to do with NaN and infinities in a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NonFinite {
    /// Stop with an error that names the place.
    Fail,
    /// Take the difference there as zero, and count it.
    Zero,
}

/// Whether the dequantized base is rounded before it is subtracted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RoundBase {
    /// The exact product of code and scale, in f32.
    None,
    /// Rounded to bfloat16, as a bridge on disk would be.
    Bf16,
}
