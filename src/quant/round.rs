//! Rounding in place, for `--round-base`.

/// Rounds each value to the nearest bf16 (ties to even) and keeps it as f32, as a bridge on disk would.
///
/// NaN stays NaN; what lies beyond the largest bf16 becomes infinite, as it does in every reference.
pub fn round_to_bf16(values: &mut [f32]) {
    for value in values {
        let bits = value.to_bits();
        // Adding just under half of the dropped part, and one more where the kept part is odd, carries as it must.
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000;
        *value = if value.is_nan() { *value } else { f32::from_bits(rounded) };
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::round_to_bf16;

    #[test]
    fn agrees_with_half_on_a_sweep_of_all_exponents() {
        let mut values: Vec<f32> = (0..=u32::MAX).step_by(4099).map(f32::from_bits).collect();
        values.extend([0x3f80_8000, 0x3f81_8000, 0x7f7f_ffff, 0x0000_8000, 0x8000_8001].map(f32::from_bits));
        let expected: Vec<f32> = values.iter().map(|&v| bf16::from_f32(v).to_f32()).collect();
        round_to_bf16(&mut values);
        for (got, want) in values.iter().zip(&expected) {
            assert!(
                got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(),
                "{got:e} is not {want:e}"
            );
        }
    }
}
