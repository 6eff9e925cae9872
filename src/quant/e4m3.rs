//! The numbers of `F8_E4M3`, which in safetensors is e4m3**fn**: 4 bits of exponent (bias 7), 3 of mantissa, no infinities,
//! NaN at 0x7F and 0xFF (Micikevicius et al. 2022, "FP8 formats for deep learning").

/// The value of each of the 256 codes.
pub static E4M3: [f32; 256] = table();

const fn table() -> [f32; 256] {
    let mut table = [0f32; 256];
    let mut code = 0;
    while code < 256 {
        table[code] = value(code as u32);
        code += 1;
    }
    table
}

const fn value(code: u32) -> f32 {
    let (exponent, mantissa) = ((code >> 3) & 15, code & 7);
    let magnitude = if code & 0x7f == 0x7f {
        f32::NAN
    } else if exponent == 0 {
        mantissa as f32 / 512.0
    } else {
        // 120 takes the exponent's bias from 7 to the 127 of f32.
        f32::from_bits(((exponent + 120) << 23) | (mantissa << 20))
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

#[cfg(test)]
mod tests {
    use super::E4M3;

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
