//! The blocks of Q4_0 to Q8_0 and of the K-quants.

use half::f16;

/// Decodes block after block.
#[inline(always)]
pub(super) fn each<const B: usize, const N: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; B], &mut [f32; N]),
) {
    for (block, out) in bytes.as_chunks::<B>().0.iter().zip(out.as_chunks_mut::<N>().0) {
        decode(block, out);
    }
}

/// The F16 at byte `at`.
#[inline(always)]
pub(super) fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

#[inline(always)]
pub(super) fn number(code: u8) -> f32 {
    f32::from(code)
}

pub(super) fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half(block, 0);
    out.iter_mut().zip(&block[2..]).for_each(|(out, &q)| *out = f32::from(q as i8) * d);
}

pub(super) fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half(block, 0);
    nibbles(&block[2..], out, |_, q| d * (number(q) - 8.0));
}

pub(super) fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    nibbles(&block[4..], out, |_, q| d * number(q) + m);
}

pub(super) fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = half(block, 0);
    let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    nibbles(&block[6..], out, |i, q| d * (number(q | fifth(high, i)) - 16.0));
}

pub(super) fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    let high = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
    nibbles(&block[8..], out, |i, q| d * number(q | fifth(high, i)) + m);
}

/// The fifth bit of value `i`, shifted into place.
#[inline(always)]
fn fifth(high: u32, i: usize) -> u8 {
    ((high >> i & 1) << 4) as u8
}

/// The 32 values in 16 bytes: the low nibbles are the first half.
#[inline(always)]
pub(super) fn nibbles(bytes: &[u8], out: &mut [f32; 32], value: impl Fn(usize, u8) -> f32) {
    let (low, high) = out.split_at_mut(16);
    for (i, ((low, high), &byte)) in low.iter_mut().zip(high).zip(bytes).enumerate() {
        *low = value(i, byte & 15);
        *high = value(i + 16, byte >> 4);
    }
}

/// The scales and minima of the eight parts of a Q4_K or Q5_K block: six bits each in 12 bytes; those of the last four
/// parts are split between the upper bits of the first eight bytes and the nibbles of the last four.
#[inline(always)]
fn parts(block: &[u8]) -> ([f32; 8], [f32; 8]) {
    let (d, dmin, packed) = (half(block, 0), half(block, 2), &block[4..16]);
    let (mut scales, mut minima) = ([0f32; 8], [0f32; 8]);
    for i in 0..4 {
        let (sc, m, last) = (packed[i], packed[i + 4], packed[i + 8]);
        scales[i] = d * number(sc & 63);
        minima[i] = dmin * number(m & 63);
        scales[i + 4] = d * number((last & 15) | (sc >> 2 & 48));
        minima[i + 4] = dmin * number((last >> 4) | (m >> 2 & 48));
    }
    (scales, minima)
}

pub(super) fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (scales, minima) = parts(block);
    let codes = block[16..].as_chunks::<32>().0;
    for (i, (codes, out)) in codes.iter().zip(out.as_chunks_mut::<64>().0).enumerate() {
        let (low, high) = out.split_at_mut(32);
        let (scale, minimum) = (scales[2 * i], minima[2 * i]);
        low.iter_mut().zip(codes).for_each(|(out, &q)| *out = scale * number(q & 15) - minimum);
        let (scale, minimum) = (scales[2 * i + 1], minima[2 * i + 1]);
        high.iter_mut().zip(codes).for_each(|(out, &q)| *out = scale * number(q >> 4) - minimum);
    }
}

pub(super) fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (scales, minima) = parts(block);
    let (fifths, codes) = block[16..].split_at(32);
    for (i, (codes, out)) in codes.as_chunks::<32>().0.iter().zip(out.as_chunks_mut::<64>().0).enumerate() {
        let (low, high) = out.split_at_mut(32);
        let (scale, minimum) = (scales[2 * i], minima[2 * i]);
        for ((out, &q), &fifth) in low.iter_mut().zip(codes).zip(fifths) {
            *out = scale * number((q & 15) | (fifth >> (2 * i) & 1) << 4) - minimum;
        }
        let (scale, minimum) = (scales[2 * i + 1], minima[2 * i + 1]);
        for ((out, &q), &fifth) in high.iter_mut().zip(codes).zip(fifths) {
            *out = scale * number((q >> 4) | (fifth >> (2 * i + 1) & 1) << 4) - minimum;
        }
    }
}

/// Two halves of 128 values, each with four parts of 32: the low nibbles of 64 bytes, then the high ones, plus two
/// upper bits from 32 bytes that all four share. A scale covers 16 values.
pub(super) fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = half(block, 208);
    let (low, rest) = block.split_at(128);
    let (high, scales) = rest.split_at(64);
    for (i, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (half, part) = (i / 4, i % 4);
        let low = &low[half * 64 + part % 2 * 32..][..32];
        let high = &high[half * 32..][..32];
        let scale = |i: usize| d * f32::from(scales[i] as i8);
        let scales = [scale(2 * i), scale(2 * i + 1)];
        for (j, ((out, &low), &high)) in out.iter_mut().zip(low).zip(high).enumerate() {
            let code = (low >> (part / 2 * 4) & 15) | (high >> (part * 2) & 3) << 4;
            *out = scales[j / 16] * (number(code) - 32.0);
        }
    }
}

/// Sixteen parts of 16 values with two bits each, under scales and minima of four bits.
pub(super) fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (d, dmin) = (half(block, 80), half(block, 82));
    let (scales, codes) = (&block[..16], &block[16..80]);
    for (i, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (scale, minimum) = (d * number(scales[i] & 15), dmin * number(scales[i] >> 4));
        let codes = two_bits(codes, i);
        out.iter_mut().zip(codes).for_each(|(out, q)| *out = scale * number(q) - minimum);
    }
}

/// The same codes with a third bit elsewhere, less four, under scales of six bits.
pub(super) fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let (high, codes, scales, d) = (&block[..32], &block[32..96], &block[96..108], half(block, 108));
    for (i, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let low = if i < 8 { scales[i] & 15 } else { scales[i - 8] >> 4 };
        let upper = scales[8 + i % 4] >> (2 * (i / 4)) & 3;
        let scale = d * (number(low | upper << 4) - 32.0);
        let high = high[i % 2 * 16..].iter().map(|byte| byte >> (i / 2) & 1);
        for ((out, q), high) in out.iter_mut().zip(two_bits(codes, i)).zip(high) {
            *out = scale * (number(q) - if high == 0 { 4.0 } else { 0.0 });
        }
    }
}

/// The sixteen codes of two bits of part `i`: each half of 128 values has 32 bytes, which its four quarters share.
#[inline(always)]
fn two_bits(codes: &[u8], i: usize) -> impl Iterator<Item = u8> {
    let (half, quarter) = (i / 8, i % 8 / 2);
    codes[half * 32 + i % 2 * 16..].iter().take(16).map(move |byte| byte >> (2 * quarter) & 3)
}
