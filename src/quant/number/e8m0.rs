//! Scales that consist of an exponent only.

/// The value of a scale that is an exponent only: 2^(code - 127), with NaN at 0xFF (OCP Microscaling Formats 1.0,
/// section 5.4.1).
pub(crate) fn e8m0(code: u8) -> f32 {
    match code {
        0xff => f32::NAN,
        0 => f32::from_bits(1 << 22), // 2^-127 is subnormal
        code => f32::from_bits(u32::from(code) << 23),
    }
}
