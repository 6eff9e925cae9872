//! The blocks of IQ4_NL and IQ4_XS, of the ternary types, and of the four-bit floats.

use crate::quant::format::gguf::blocks::{half, nibbles, number};

/// The values of IQ4_NL and IQ4_XS.
const NON_LINEAR: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0,
];

/// The numbers of E2M1, doubled, with one zero. The scales are halved.
const E2M1_DOUBLED: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

pub(super) fn iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half(block, 0);
    nibbles(&block[2..], out, |_, q| d * NON_LINEAR[usize::from(q)]);
}

pub(super) fn iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let (d, high) = (half(block, 0), u16::from_le_bytes([block[2], block[3]]));
    let (low, codes) = block[4..].split_at(4);
    for (k, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let scale = low[k / 2] >> (4 * (k % 2)) & 15 | ((high >> (2 * k) & 3) << 4) as u8;
        let scale = d * (number(scale) - 32.0);
        nibbles(&codes[16 * k..16 * (k + 1)], out, |_, q| scale * NON_LINEAR[usize::from(q)]);
    }
}

/// Five digits to the base of three in a byte, as a fraction of 256: the first of them is the byte times three over
/// 256.
pub(super) fn tq1_0(block: &[u8; 54], out: &mut [f32; 256]) {
    const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
    let d = half(block, 52);
    let value = |byte: u8, n: usize| {
        let digit = (u16::from(byte.wrapping_mul(POWERS[n])) * 3) >> 8;
        d * (f32::from(digit) - 1.0)
    };
    for (i, out) in out.iter_mut().enumerate() {
        *out = match i {
            ..160 => value(block[i % 32], i / 32),
            160..240 => value(block[32 + (i - 160) % 16], (i - 160) / 16),
            _ => value(block[48 + (i - 240) % 4], (i - 240) / 4),
        };
    }
}

pub(super) fn tq2_0(block: &[u8; 66], out: &mut [f32; 256]) {
    let d = half(block, 64);
    for (i, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let codes = &block[i / 4 * 32..][..32];
        out.iter_mut()
            .zip(codes)
            .for_each(|(out, code)| *out = d * (number(code >> (2 * (i % 4)) & 3) - 1.0));
    }
}

/// An exponent and 16 bytes. The largest exponent is a number here, where the standard has NaN.
pub(super) fn mxfp4(block: &[u8; 17], out: &mut [f32; 32]) {
    let exponent = u32::from(block[0]);
    let scale = f32::from_bits(if exponent < 2 { 0x0020_0000 << exponent } else { (exponent - 1) << 23 });
    nibbles(&block[1..], out, |_, q| scale * E2M1_DOUBLED[usize::from(q)]);
}

/// Four unsigned E4M3 scales, each for 16 values in eight bytes.
pub(super) fn nvfp4(block: &[u8; 36], out: &mut [f32; 64]) {
    for (k, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = half_unsigned_e4m3(block[k]);
        let (low, high) = out.split_at_mut(8);
        for ((low, high), byte) in low.iter_mut().zip(high).zip(&block[4 + 8 * k..]) {
            *low = scale * E2M1_DOUBLED[usize::from(byte & 15)];
            *high = scale * E2M1_DOUBLED[usize::from(byte >> 4)];
        }
    }
}

/// Half of an unsigned E4M3, whose NaN is zero here.
fn half_unsigned_e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    match (code, exponent) {
        (0 | 0x7f, _) => 0.0,
        (_, 0) => mantissa * 2f32.powi(-10),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 8),
    }
}
