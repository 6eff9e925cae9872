//! The factors of a module, as another program scales and stores them.

use crate::lora::factor_dtype::FactorType;
use crate::lora::read::classify::PeftModule;
use crate::lora::read::{Factors, PeftAdapter};
use crate::{Error, Result};

/// Both factors in f32, with `lora_B` multiplied by what the module's scale is more than `scale`.
///
/// # Errors
/// A tensor that cannot be read, or holds NaN or infinities.
pub(crate) fn scaled(adapter: &PeftAdapter, module: &PeftModule, scale: f64) -> Result<Factors> {
    let mut factors = adapter.factors(module)?;
    let rest = module.scale() / scale;
    if rest != 1.0 {
        factors.b.iter_mut().for_each(|value| *value = (f64::from(*value) * rest) as f32);
    }
    if factors.a.iter().chain(&factors.b).any(|value| !value.is_finite()) {
        return Err(Error::input("a factor holds NaN or infinities")
            .tensor(module.name())
            .path(adapter.root()));
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
/// A value that the type cannot hold.
pub(crate) fn bytes(module: &PeftModule, dtype: FactorType, mut values: Vec<f32>) -> Result<Vec<u8>> {
    let bytes = dtype.round(&mut values);
    if values.iter().any(|value| !value.is_finite()) {
        let what = format!("{} cannot hold a factor of this module", dtype.dtype());
        return Err(Error::decide(what).tensor(module.name()).hint("give --dtype f32"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::transposed;

    #[test]
    fn rows_become_columns() {
        assert_eq!(transposed(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    }
}
