//! The factors of one module, rounded as they are stored, in whichever norm their error is the least.

pub(crate) mod hybrid;
pub(crate) mod plain;
pub(crate) mod weighted;

use crate::commands::extract::output::manifest::Spectrum;
use crate::delta::module_record::Quality;
use crate::delta::record::TensorRecord;
use crate::factorize::precision::Precision;
use crate::lora::factor_dtype::FactorType;
use crate::{Error, Result};

/// Below this share of the delta the error is measured by one more pass: the difference of the two norms, which tells
/// it for free, has lost its digits to cancellation.
pub(crate) const MEASURE_BELOW: f64 = 3e-3;

/// The factors of a module, and what is known of them.
pub(crate) struct Made {
    /// As they will be stored.
    pub stored: StoredFactors,
    /// Their rank.
    pub rank: usize,
    /// How near they come.
    pub quality: Quality,
    /// How they were found.
    pub method: String,
    /// The numbers in which the delta was multiplied.
    pub precision: Precision,
    /// Columns of the Krylov basis, or the side of the Gram matrix.
    pub basis: usize,
    /// How often the delta was gone through.
    pub passes: usize,
    /// Error over least error, minus 1, as estimated.
    pub estimated_excess: f64,
    /// The singular values.
    pub spectrum: Spectrum,
    /// What was read beside the delta's own two sides.
    pub tensors: Vec<TensorRecord>,
    /// The energy of each direction in the norm of the weights, where the spectrum is of another.
    pub energies: Vec<f64>,
}

/// Rounded factors: `left` `[rows, rank]`, `right` `[rank, cols]`, row-major.
pub(crate) struct StoredFactors {
    pub left: Vec<f32>,
    pub right: Vec<f32>,
    pub left_bytes: Vec<u8>,
    pub right_bytes: Vec<u8>,
}

impl StoredFactors {
    /// Factors that are rounded already, with their bytes.
    pub fn of(left: Vec<f32>, right: Vec<f32>, dtype: FactorType) -> StoredFactors {
        let bytes = |values: &[f32]| dtype.round(&mut values.to_vec());
        StoredFactors { left_bytes: bytes(&left), right_bytes: bytes(&right), left, right }
    }
}

/// Rounds `values` to what they are stored in, and gives the bytes.
///
/// # Errors
/// A value that the type cannot hold.
pub(crate) fn round(values: &mut [f32], dtype: FactorType, module: &str) -> Result<Vec<u8>> {
    let bytes = dtype.round(values);
    if values.iter().all(|v| v.is_finite()) {
        return Ok(bytes);
    }
    Err(Error::input("a factor does not fit in the type it is to be stored in")
        .tensor(module)
        .hint("--dtype bf16 has a wider range than f16, f32 the same"))
}
