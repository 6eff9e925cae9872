//! The record of one module: how it was factorized, and how well.

use serde::{Deserialize, Serialize};

use crate::factorize::precision::Precision;

/// How well the factors, as stored, approximate a delta.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// Frobenius norm of the delta.
    pub delta_norm: f64,
    /// `||delta - B·A|| / ||delta||` (Frobenius); 0 for a delta of zero.
    pub relative_error: f64,
    /// `1 - relative_error^2`.
    pub captured_energy: f64,
    /// The error of the weights that will be served, where it was measured.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub served: Option<ServedError>,
    /// The error of the layer's outputs, where a calibration says what its inputs are like.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub outputs: Option<OutputError>,
}

/// How near the factors, as stored, come to what a delta changes a layer's outputs by: root mean squares over the
/// inputs of a calibration. Where the delta's product with the sketch was not formed the norm is an estimate, good to
/// some 2 %.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OutputError {
    /// `||delta·C^½||`, `C` the mean of `x·x^T` over the inputs.
    pub delta_norm: f64,
    /// `||(delta - B·A)·C^½|| / ||delta·C^½||`; 0 for a delta of zero.
    pub relative_error: f64,
    /// `1 - relative_error^2`.
    pub captured_energy: f64,
}

impl OutputError {
    /// From the squares of both norms.
    pub fn of(norm2: f64, error2: f64) -> OutputError {
        let Quality { delta_norm, relative_error, captured_energy, .. } = Quality::of(norm2, error2);
        OutputError { delta_norm, relative_error, captured_energy }
    }

    /// Square of the error's norm.
    pub fn error2(&self) -> f64 {
        (self.relative_error * self.delta_norm).powi(2)
    }
}

/// Which error the factors of a module are the least in, among all of their rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Minimized {
    /// That of the layer's outputs.
    Outputs,
    /// That of the weights.
    Weights,
    /// First that of the change on the dense base, then that of the weights.
    Hybrid,
}

impl Quality {
    /// The quality from the squared norms of the delta and of the error.
    pub fn of(norm2: f64, error2: f64) -> Quality {
        let share = if norm2 > 0.0 { error2.max(0.0) / norm2 } else { 0.0 };
        Quality {
            delta_norm: norm2.sqrt(),
            relative_error: share.sqrt(),
            captured_energy: 1.0 - share,
            served: None,
            outputs: None,
        }
    }

    /// Square of the error's norm.
    pub fn error2(&self) -> f64 {
        (self.relative_error * self.delta_norm).powi(2)
    }
}

/// The final weights' distance from the tuned ones, on the checkpoint that will serve the adapter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServedError {
    /// `||T - dequant(served)||`.
    pub without_adapter: f64,
    /// `||T - (dequant(served) + B·A)||`.
    pub with_adapter: f64,
}

/// One module of the adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModuleRecord {
    /// Its name in the base, without `.weight`.
    pub name: String,
    /// `[out, in]`.
    pub shape: [usize; 2],
    /// Rank before padding.
    pub rank: usize,
    /// `krylov`, `gram`, or `none` where the delta is zero or only completes a fused set.
    pub method: String,
    /// The numbers in which the delta was multiplied for its factors.
    #[serde(default = "Precision::before")]
    pub precision: Precision,
    /// Where the delta was rounded to bytes, if only to see what that would cost: the squared norm of what they miss,
    /// over that of the delta.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub missed_by_bytes: Option<f64>,
    /// Columns of the Krylov basis, or the side of the Gram matrix.
    pub basis: usize,
    /// Number of passes over the delta.
    pub passes: usize,
    /// The error that is minimized; absent if the run knows only that of the weights.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub minimized: Option<Minimized>,
    /// How well the stored factors approximate the delta.
    #[serde(flatten)]
    pub quality: Quality,
    /// Estimated upper bound of error / optimal error - 1, in the norm that is minimized.
    pub estimated_excess: f64,
    /// The norm of the base's rounding errors that is to be expected of its format, where it is quantized.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub expected_noise: Option<f64>,
    /// Elements where a weight was NaN or infinite, treated as unchanged.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub non_finite: u64,
    /// blake3 of the bytes of its `lora_A` followed by its `lora_B` in the adapter.
    pub blake3: String,
}

pub(crate) fn is_zero(count: &u64) -> bool {
    *count == 0
}
