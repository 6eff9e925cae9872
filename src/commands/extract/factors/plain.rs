//! Factors whose error of the weights is the least.

use crate::commands::extract::factors::{MEASURE_BELOW, Made, StoredFactors, round};
use crate::commands::extract::output::manifest::{Spectrum, SpectrumOf};
use crate::delta::module_record::Quality;
use crate::factorize;
use crate::factorize::kernel::bytes::passes::Codes;
use crate::factorize::residual;
use crate::factorize::types::{Factors, Panels, Request};
use crate::lora::factor_dtype::FactorType;
use crate::{Error, Result};

/// The share of a delta's energy that rounding the factors may cost: far more than any rounding does but that of
/// numbers too small for their type.
const MOST_LOST: f64 = 0.01;

/// Factorizes `delta` of squared norm `norm2`.
///
/// # Errors
/// What visiting the delta met; factors that do not fit in the type they are stored in.
pub(crate) fn make(
    delta: &dyn Panels,
    norm2: f64,
    module: &str,
    request: &Request,
    dtype: FactorType,
    of: Option<SpectrumOf>,
) -> Result<Made> {
    let factors = factorize::factorize(delta, norm2, module, request)?;
    finish(delta, factors, norm2, module, dtype, of)
}

/// Factorizes a delta of squared norm `norm2` by its `codes`, and measures a small error on `delta` itself. `None`
/// where bytes are too coarse, unless they `must` do.
///
/// # Errors
/// As [`make`].
pub(crate) fn make_of_codes(
    (codes, must): (&dyn Codes, bool),
    delta: &dyn Panels,
    norm2: f64,
    module: &str,
    request: &Request,
    dtype: FactorType,
) -> Result<Option<Made>> {
    let factors = factorize::factorize_codes(codes, norm2, module, request, must)?;
    factors.map(|factors| finish(delta, factors, norm2, module, dtype, None)).transpose()
}

/// Rounds the factors of `delta`, and measures them.
fn finish(
    delta: &dyn Panels,
    factors: Factors,
    norm2: f64,
    module: &str,
    dtype: FactorType,
    of: Option<SpectrumOf>,
) -> Result<Made> {
    let spectrum = Spectrum {
        module: module.to_owned(),
        shape: [delta.rows(), delta.cols()],
        of,
        delta_norm: norm2.sqrt(),
        converged: factors.converged,
        singular_values: factors.singular_values.clone(),
    };
    let (stored, quality) = store(delta, &factors, norm2, dtype, module)?;
    Ok(Made {
        stored,
        rank: factors.rank,
        quality,
        method: method(factors.rank, factors.method.name()),
        precision: factors.precision,
        basis: factors.basis,
        passes: factors.passes,
        estimated_excess: factors.estimated_excess,
        spectrum,
        tensors: Vec::new(),
        energies: Vec::new(),
    })
}

/// A method's name, `none` where there is nothing.
pub(crate) fn method(rank: usize, name: &str) -> String {
    if rank == 0 { "none".into() } else { name.into() }
}

fn store(
    delta: &dyn Panels,
    factors: &Factors,
    norm2: f64,
    dtype: FactorType,
    name: &str,
) -> Result<(StoredFactors, Quality)> {
    let (mut left, mut right) = (factors.left.clone(), factors.right.clone());
    let (left_bytes, right_bytes) = (round(&mut left, dtype, name)?, round(&mut right, dtype, name)?);
    let mut error2 = residual::stored_error(factors, &left, &right, norm2)?;
    if error2 < MEASURE_BELOW * MEASURE_BELOW * norm2 {
        error2 = residual::residual(delta, &left, &right)?.residual2;
    }
    let kept: f64 = factors.singular_values.iter().take(factors.rank).map(|value| value * value).sum();
    let unavoidable = (norm2 - kept).max(0.0);
    if error2 > unavoidable + MOST_LOST * norm2 {
        let lost = 100.0 * (error2 - unavoidable) / norm2;
        let what =
            format!("storing the factors as {} costs {lost:.1} % of the difference's energy", dtype.dtype());
        return Err(Error::input(what)
            .tensor(name)
            .hint("--dtype bf16 or f32 holds smaller numbers than f16"));
    }
    Ok((StoredFactors { left, right, left_bytes, right_bytes }, Quality::of(norm2, error2)))
}
