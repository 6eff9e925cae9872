//! The factors of a module, as another program scales and stores them.

use crate::lora::factor_dtype::FactorType;
use crate::lora::read::classify::PeftModule;
use crate::lora::read::{Factors, PeftAdapter};
use crate::{Error, Result};

/// Whether the programs that read it, in f32, can multiply by this scale and divide by it.
pub(crate) fn fits(scale: f64) -> bool {
    (scale as f32).is_normal()
}

/// Both factors in f32, with `lora_B` multiplied by what the module's scale is more than `scale`, maybe to infinity.
///
/// # Errors
/// A tensor that cannot be read, or holds NaN or infinities.
pub(crate) fn scaled(adapter: &PeftAdapter, module: &PeftModule, scale: f64) -> Result<Factors> {
    let mut factors = adapter.factors(module)?;
    if factors.a.iter().chain(&factors.b).any(|value| !value.is_finite()) {
        return Err(Error::input("a factor holds NaN or infinities")
            .tensor(module.name())
            .path(adapter.root()));
    }
    let rest = module.scale() / scale;
    if rest != 1.0 {
        factors.b.iter_mut().for_each(|value| *value = (f64::from(*value) * rest) as f32);
    }
    Ok(factors)
}

/// The transpose of a row-major matrix `[rows, columns]`.
pub(crate) fn transposed(values: &[f32], columns: usize) -> Vec<f32> {
    let rows = values.len() / columns.max(1);
    (0..columns).flat_map(|column| (0..rows).map(move |row| values[row * columns + column])).collect()
}

/// The stored bytes.
///
/// # Errors
/// Values that are too large or, on the whole, too small for the type.
pub(crate) fn bytes(module: &PeftModule, dtype: FactorType, mut values: Vec<f32>) -> Result<Vec<u8>> {
    let before = values.clone();
    let bytes = dtype.round(&mut values);
    let square = |value: f32| f64::from(value).powi(2);
    let missed: f64 = before.iter().zip(&values).map(|(before, now)| square(before - now)).sum();
    let all: f64 = before.iter().map(|value| square(*value)).sum();
    // Rounding alone misses at most 2^-9 of the norm.
    if values.iter().any(|value| !value.is_finite()) || missed > 1e-4 * all {
        let what = format!("{} cannot hold a factor of this module", dtype.dtype());
        return Err(Error::decide(what).tensor(module.name()).hint("give --dtype f32"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::{fits, transposed};

    #[test]
    fn scales_that_f32_divides_by() {
        assert!([1.0, -0.5, 1e30, 1e-30].into_iter().all(fits));
        assert!(![0.0, 1e300, 1e-300, -1e39, 1e-42, f64::NAN].into_iter().any(fits));
    }

    #[test]
    fn rows_become_columns() {
        assert_eq!(transposed(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    }
}
