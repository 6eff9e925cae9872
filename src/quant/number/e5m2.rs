//! The numbers of `F8_E5M2`: 5 exponent bits (bias 15), 2 mantissa bits, with infinities and NaN as in IEEE 754
//! (Micikevicius et al. 2022, "FP8 formats for deep learning"). A code is the upper byte of an f16.

/// The value of a code, without a branch, so that loops vectorize.
#[inline(always)]
pub(crate) fn e5m2(code: u8) -> f32 {
    let (sign, rest) = ((u32::from(code) & 0x80) << 24, u32::from(code) & 0x7f);
    // 112 moves the exponent's bias from 15 to the 127 of f32.
    let normal = f32::from_bits((rest << 21) + (112 << 23));
    // A subnormal becomes normal with an exponent of 1 and a leading one, which is then subtracted again.
    let subnormal = f32::from_bits((rest << 21) + (113 << 23)) - f32::from_bits(113 << 23);
    let magnitude = if rest < 4 { subnormal } else { normal };
    let special = f32::from_bits((rest << 21) | (255 << 23));
    let magnitude = if rest >= 0x7c { special } else { magnitude };
    f32::from_bits(magnitude.to_bits() | sign)
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::e5m2;

    #[test]
    fn a_code_is_the_upper_byte_of_an_f16() {
        for code in 0..=u8::MAX {
            let value = e5m2(code);
            let half = f16::from_bits(u16::from(code) << 8).to_f32();
            assert!(value.to_bits() == half.to_bits() || value.is_nan() && half.is_nan(), "{code:#x}");
        }
        assert_eq!((e5m2(0x7b), e5m2(0x7c)), (57344.0, f32::INFINITY), "the largest, and infinity");
    }
}
