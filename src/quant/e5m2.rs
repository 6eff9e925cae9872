//! The numbers of `F8_E5M2`: 5 bits of exponent (bias 15), 2 of mantissa, with infinities and NaN as IEEE has them (Micikevicius et
//! al. 2022, "FP8 formats for deep learning"). A code is the upper byte of an f16.

/// The value of each of the 256 codes.
pub static E5M2: [f32; 256] = table();

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
    let (exponent, mantissa) = ((code >> 2) & 31, code & 3);
    let magnitude = match (exponent, mantissa) {
        (31, 0) => f32::INFINITY,
        (31, _) => f32::NAN,
        (0, mantissa) => mantissa as f32 / 65536.0,
        // 112 takes the exponent's bias from 15 to the 127 of f32.
        _ => f32::from_bits(((exponent + 112) << 23) | (mantissa << 21)),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::E5M2;

    #[test]
    fn a_code_is_the_upper_byte_of_an_f16() {
        for (code, &value) in E5M2.iter().enumerate() {
            let half = f16::from_bits((code as u16) << 8).to_f32();
            assert!(value.to_bits() == half.to_bits() || value.is_nan() && half.is_nan(), "{code:#x}");
        }
        assert_eq!((E5M2[0x7b], E5M2[0x7c]), (57344.0, f32::INFINITY), "the largest, and infinity");
    }
}
