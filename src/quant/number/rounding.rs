//! Rounding: in place, for `--round-base`, and to the bytes of a narrower type.

use half::f16;
use half::slice::HalfFloatSliceExt;
use safetensors::Dtype;

use crate::simd::{Loop, widest};

/// How many of `values` are NaN or infinite.
pub fn non_finite(values: &[f32]) -> u64 {
    widest(CountNonFinite(values))
}

struct CountNonFinite<'a>(&'a [f32]);

impl Loop for CountNonFinite<'_> {
    type Output = u64;

    #[inline(always)]
    fn run(self) -> u64 {
        // As many at a time as a u32 can count, so that the loop runs in vectors of the values' own width.
        let count = |values: &[f32]| values.iter().map(|v| u32::from(!v.is_finite())).sum::<u32>();
        self.0.chunks(1 << 16).map(|values| u64::from(count(values))).sum()
    }
}

/// Rounds each value to the nearest bf16 (ties to even) and keeps it as f32, as storing it on disk in bf16 would.
///
/// NaN stays NaN; values beyond the largest bf16 become infinite, as in every reference.
pub fn round_to_bf16(values: &mut [f32]) {
    widest(RoundToBf16(values));
}

struct RoundToBf16<'a>(&'a mut [f32]);

impl Loop for RoundToBf16<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for value in self.0 {
            let bits = value.to_bits();
            // Adding just under half of the dropped part, plus one if the kept part is odd, rounds to nearest even.
            let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000;
            *value = if value.is_nan() { *value } else { f32::from_bits(rounded) };
        }
    }
}

/// The little-endian bytes of `values` in BF16, F16 or F32, each rounded to nearest even. NaN stays NaN; values beyond
/// the largest number of the type become infinite.
///
/// # Panics
/// If `out` has another length, or for another dtype.
pub fn to_bytes(dtype: Dtype, values: &[f32], out: &mut [u8]) {
    assert_eq!(out.len() * 8, values.len() * dtype.bitsize(), "the bytes of the values");
    match dtype {
        Dtype::BF16 => widest(ToBf16(values, out)),
        Dtype::F16 => {
            let mut buffer = [f16::ZERO; 256];
            for (out, values) in out.chunks_mut(512).zip(values.chunks(256)) {
                let buffer = &mut buffer[..values.len()];
                buffer.convert_from_f32_slice(values);
                let numbers = out.as_chunks_mut::<2>().0.iter_mut().zip(buffer);
                numbers.for_each(|(out, value)| *out = value.to_le_bytes());
            }
        }
        Dtype::F32 => {
            for (out, value) in out.as_chunks_mut::<4>().0.iter_mut().zip(values) {
                *out = value.to_le_bytes();
            }
        }
        other => panic!("{other} is not a type to round to"),
    }
}

struct ToBf16<'a>(&'a [f32], &'a mut [u8]);

impl Loop for ToBf16<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (out, value) in self.1.as_chunks_mut::<2>().0.iter_mut().zip(self.0) {
            *out = bf16(*value).to_le_bytes();
        }
    }
}

/// The bits of the nearest bf16, with NaN made quiet.
#[inline(always)]
fn bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let quiet = bits >> 16 | 0x40;
    (if value.is_nan() { quiet } else { rounded }) as u16
}

/// Rounds to the nearest number of a dtype, kept as f32.
pub(crate) fn round(dtype: Dtype, values: &mut [f32]) {
    match dtype {
        Dtype::BF16 => round_to_bf16(values),
        Dtype::F16 => {
            let mut buffer = [f16::ZERO; 256];
            for values in values.chunks_mut(256) {
                let buffer = &mut buffer[..values.len()];
                buffer.convert_from_f32_slice(values);
                buffer.convert_to_f32_slice(values);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use half::bf16 as Bf16;

    use super::*;

    #[test]
    fn agrees_with_half_on_a_sweep_of_all_exponents() {
        let mut values: Vec<f32> = (0..=u32::MAX).step_by(4099).map(f32::from_bits).collect();
        values.extend([0x3f80_8000, 0x3f81_8000, 0x7f7f_ffff, 0x0000_8000, 0x8000_8001].map(f32::from_bits));
        let expected: Vec<f32> = values.iter().map(|&v| Bf16::from_f32(v).to_f32()).collect();
        round_to_bf16(&mut values);
        for (got, want) in values.iter().zip(&expected) {
            assert!(
                got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(),
                "{got:e} is not {want:e}"
            );
        }
    }

    #[test]
    fn bytes_are_those_of_half() {
        let values: Vec<f32> = (0..=u32::MAX).step_by(65_521).map(f32::from_bits).collect();
        let expected: [(Dtype, Vec<u8>); 3] = [
            (Dtype::BF16, values.iter().flat_map(|&v| Bf16::from_f32(v).to_le_bytes()).collect()),
            (Dtype::F16, values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect()),
            (Dtype::F32, values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        ];
        for (dtype, expected) in expected {
            let mut got = vec![0; expected.len()];
            to_bytes(dtype, &values, &mut got);
            let size = dtype.bitsize() / 8;
            for ((got, want), value) in got.chunks(size).zip(expected.chunks(size)).zip(&values) {
                // The payload of a NaN does not matter.
                let [got_nan, want_nan] = [got, want]
                    .map(|bytes| crate::quant::format::dense::to_f32(dtype, bytes).unwrap()[0].is_nan());
                assert!(got == want || got_nan && want_nan, "{value:e} as {dtype}: {got:x?}, not {want:x?}");
            }
        }
    }
}
