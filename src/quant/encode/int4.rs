//! The inverse of decoding W4A16: values to symmetric 4-bit integers with one scale per group of columns, as
//! compressed-tensors' `pack-quantized` stores them.
//!
//! A group's scale is its largest magnitude divided by 7.5, half the range of -8 to 7; a code is the nearest integer to
//! `w / scale`, ties to even. As in compressed-tensors (`quantization/utils/helpers.py:calculate_qparams`,
//! `quantization/lifecycle/forward_helpers.py:_quantize`), every step is rounded to the dtype that the weight has while
//! it is quantized. In bf16 this includes the quotient, so a code may differ by one from what f32 would give.

use safetensors::Dtype;

use crate::quant::number::rounding::round;

/// Half the range of the codes.
const HALF_RANGE: f32 = 7.5;

/// Encodes rows, `values` `[rows, columns]` row-major, in groups of `group` columns (the last group of a row may be
/// shorter): `codes` from -8 to 7, one per value, and `scales` `[rows, ceil(columns / group)]`. Values, scales and
/// quotients are rounded to `dtype`, which is BF16, F16 or F32. A group of zeros has the dtype's epsilon as its scale.
/// The caller must refuse weights that are not finite: a NaN is encoded as 0.
///
/// # Panics
/// If `codes` or `scales` do not have the lengths that the shape requires, or `group` is zero.
pub fn encode_int4(
    values: &[f32],
    columns: usize,
    group: usize,
    dtype: Dtype,
    codes: &mut [i8],
    scales: &mut [f32],
) {
    let rows = values.len() / columns.max(1);
    let grid = columns.div_ceil(group);
    assert_eq!((values.len(), codes.len()), (rows * columns, rows * columns), "the panel's values and codes");
    assert_eq!(scales.len(), rows * grid, "the panel's scales");
    if values.is_empty() {
        return;
    }
    let lines = values.chunks_exact(columns).zip(codes.chunks_exact_mut(columns));
    let mut quotients = vec![0f32; group];
    for ((values, codes), scales) in lines.zip(scales.chunks_exact_mut(grid)) {
        for ((values, codes), scale) in values.chunks(group).zip(codes.chunks_mut(group)).zip(scales) {
            let quotients = &mut quotients[..values.len()];
            quotients.copy_from_slice(values);
            round(dtype, quotients);
            *scale = scale_of(quotients, dtype);
            quotients.iter_mut().for_each(|value| *value /= *scale);
            round(dtype, quotients);
            for (code, quotient) in codes.iter_mut().zip(&*quotients) {
                *code = quotient.clamp(-8.0, 7.0).round_ties_even() as i8;
            }
        }
    }
}

fn scale_of(values: &[f32], dtype: Dtype) -> f32 {
    let mut scale = [values.iter().fold(0f32, |most, value| most.max(value.abs())) / HALF_RANGE];
    round(dtype, &mut scale);
    match scale {
        [0.0] => epsilon(dtype),
        [scale] => scale,
    }
}

/// The distance from 1 to the next number of a dtype.
fn epsilon(dtype: Dtype) -> f32 {
    match dtype {
        Dtype::BF16 => half::bf16::EPSILON.to_f32(),
        Dtype::F16 => half::f16::EPSILON.to_f32(),
        _ => f32::EPSILON,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_encoded_by_themselves() {
        let values = [7.5, -7.5, 0.4, 0.5, 1.5, -0.5, 0.0, 0.0, 0.0, 15.0, -15.0, 1.0];
        let (mut codes, mut scales) = ([0i8; 12], [0f32; 4]);
        encode_int4(&values, 6, 3, Dtype::F32, &mut codes, &mut scales);
        assert_eq!(scales, [1.0, 0.2, f32::EPSILON, 2.0]);
        // Ties go to even: 7.5 / 1 rounds to 8, which is clamped to 7; -7.5 rounds to -8.
        assert_eq!(codes, [7, -8, 0, 2, 7, -2, 0, 0, 0, 7, -8, 0]);
    }
}
