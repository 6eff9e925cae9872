//! The numbers of `F8_E4M3`, which in safetensors means e4m3**fn**: 4 exponent bits (bias 7), 3 mantissa bits, no
//! infinities, NaN at 0x7F and 0xFF (Micikevicius et al. 2022, "FP8 formats for deep learning").

/// The value of each of the 256 codes.
pub static E4M3: [f32; 256] = table();

const fn table() -> [f32; 256] {
    let mut table = [0f32; 256];
    let mut code = 0;
    while code < 256 {
        table[code] = e4m3(code as u8);
        code += 1;
    }
    table
}

/// The value of a code, without a branch: when many are decoded this vectorizes, which a table lookup does not.
#[inline(always)]
pub(crate) const fn e4m3(code: u8) -> f32 {
    let (sign, rest) = ((code as u32 & 0x80) << 24, code as u32 & 0x7f);
    // 120 moves the exponent's bias from 7 to the 127 of f32.
    let normal = f32::from_bits((rest << 20) + (120 << 23));
    // A subnormal becomes normal with an exponent of 1 and a leading one, which is then subtracted again.
    let subnormal = f32::from_bits((rest << 20) + (121 << 23)) - f32::from_bits(121 << 23);
    let magnitude = if rest < 8 { subnormal } else { normal };
    let magnitude = if rest == 0x7f { f32::NAN } else { magnitude };
    f32::from_bits(magnitude.to_bits() | sign)
}

#[cfg(test)]
mod tests {
    use super::E4M3;

    #[test]
    fn every_number_is_what_the_format_says() {
        for (code, &value) in E4M3.iter().enumerate() {
            let (exponent, mantissa) = (code as i32 >> 3 & 15, (code & 7) as f32 / 8.0);
            let magnitude = match exponent {
                0 => mantissa * 2f32.powi(-6),
                _ => (1.0 + mantissa) * 2f32.powi(exponent - 7),
            };
            let expected = if code & 0x80 == 0 { magnitude } else { -magnitude };
            assert!(code & 0x7f == 0x7f || value.to_bits() == expected.to_bits(), "{code:#x}: {value}");
        }
    }

    #[test]
    fn landmarks() {
        assert_eq!(E4M3[0x00].to_bits(), 0f32.to_bits());
        assert_eq!(E4M3[0x80].to_bits(), (-0f32).to_bits());
        assert_eq!(E4M3[0x01], 2f32.powi(-9), "the smallest subnormal");
        assert_eq!(E4M3[0x08], 2f32.powi(-6), "the smallest normal");
        assert_eq!(E4M3[0x38], 1.0);
        assert_eq!(E4M3[0x7e], 448.0, "the largest");
        assert_eq!(E4M3[0xfe], -448.0);
        assert!(E4M3[0x7f].is_nan() && E4M3[0xff].is_nan());
        assert_eq!(E4M3.iter().filter(|v| !v.is_finite()).count(), 2, "no infinities");
    }
}
