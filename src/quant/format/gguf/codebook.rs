//! The blocks of the IQ1, IQ2 and IQ3 types: places in tables of eight or four values, and their signs.

use crate::quant::format::gguf::blocks::{half, number};
use crate::quant::format::gguf::grids;

/// Eight values from a table, of which bit `i` of `signs` makes number `i` negative.
#[inline(always)]
fn signed<const N: usize>(out: &mut [f32], scale: f32, values: &[i8; N], signs: u8) {
    for (i, (out, value)) in out.iter_mut().zip(values).enumerate() {
        let value = scale * f32::from(*value);
        *out = if signs >> i & 1 == 0 { value } else { -value };
    }
}

/// Seven signs, and an eighth that makes the number of minus signs even.
#[inline(always)]
fn even(signs: u32) -> u8 {
    let signs = (signs & 127) as u8;
    signs | (signs.count_ones() as u8 & 1) << 7
}

#[inline(always)]
fn word(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

#[inline(always)]
fn double_word(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// Eight parts of 32 values: four places, then four times seven signs with four bits of scale above them.
pub(super) fn iq2_xxs(block: &[u8; 66], out: &mut [f32; 256]) {
    let (d, grid) = (half(block, 0), &**grids::IQ2_XXS);
    for (k, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (places, signs) = (&block[2 + 8 * k..6 + 8 * k], double_word(block, 6 + 8 * k));
        let scale = d * (0.5 + (signs >> 28) as f32) * 0.25;
        for (j, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            signed(out, scale, &grid[usize::from(places[j])], even(signs >> (7 * j)));
        }
    }
}

/// Words of nine bits of place and seven signs; a scale of four bits for two of them.
pub(super) fn iq2_xs(block: &[u8; 74], out: &mut [f32; 256]) {
    let (d, grid) = (half(block, 0), &**grids::IQ2_XS);
    for (j, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let (place, scale) = (word(block, 2 + 2 * j), block[66 + j / 4] >> (4 * (j / 2 % 2)) & 15);
        let scale = d * (0.5 + number(scale)) * 0.25;
        signed(out, scale, &grid[usize::from(place & 511)], even(u32::from(place >> 9)));
    }
}

pub(super) fn iq2_s(block: &[u8; 82], out: &mut [f32; 256]) {
    let (d, grid) = (half(block, 0), &**grids::IQ2_S);
    for (j, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let high = u16::from(block[66 + j / 4] >> (2 * (j % 4)) & 3);
        let place = u16::from(block[2 + j]) | high << 8;
        let scale = d * (0.5 + number(block[74 + j / 4] >> (4 * (j / 2 % 2)) & 15)) * 0.25;
        signed(out, scale, &grid[usize::from(place)], block[34 + j]);
    }
}

pub(super) fn iq3_xxs(block: &[u8; 98], out: &mut [f32; 256]) {
    let (d, grid) = (half(block, 0), &**grids::IQ3_XXS);
    for (k, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let signs = double_word(block, 66 + 4 * k);
        let scale = d * (0.5 + (signs >> 28) as f32) * 0.5;
        for (j, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let (places, signs) = (&block[2 + 8 * k + 2 * j..], even(signs >> (7 * j)));
            let (low, high) = out.split_at_mut(4);
            signed(low, scale, &grid[usize::from(places[0])], signs);
            signed(high, scale, &grid[usize::from(places[1])], signs >> 4);
        }
    }
}

pub(super) fn iq3_s(block: &[u8; 110], out: &mut [f32; 256]) {
    let (d, grid) = (half(block, 0), &**grids::IQ3_S);
    for (j, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let place = u16::from(block[2 + j]) | u16::from(block[66 + j / 8] >> (j % 8) & 1) << 8;
        let scale = block[106 + j / 16] >> (4 * (j / 8 % 2)) & 15;
        let scale = d * (1.0 + 2.0 * number(scale));
        signed(out, scale, &grid[usize::from(place)], block[74 + j / 2] >> (4 * (j % 2)));
    }
}

/// Values of -1, 0 and 1, all of them shifted by an eighth up or down.
#[inline(always)]
fn shifted(out: &mut [f32; 8], scale: f32, values: &[i8; 8], down: bool) {
    let shift = if down { -0.125 } else { 0.125 };
    out.iter_mut().zip(values).for_each(|(out, value)| *out = scale * (f32::from(*value) + shift));
}

pub(super) fn iq1_s(block: &[u8; 50], out: &mut [f32; 256]) {
    let (d, grid) = (half(block, 0), &**grids::IQ1_S);
    for (j, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let high = word(block, 34 + 2 * (j / 4));
        let place = u16::from(block[2 + j]) | (high >> (3 * (j % 4)) & 7) << 8;
        let scale = d * f32::from(2 * (high >> 12 & 7) + 1);
        shifted(out, scale, &grid[usize::from(place)], high & 0x8000 != 0);
    }
}

/// The same with a scale for 16 values; the block's own is spread over the upper bits of four words.
pub(super) fn iq1_m(block: &[u8; 56], out: &mut [f32; 256]) {
    let scales: [u16; 4] = std::array::from_fn(|i| word(block, 48 + 2 * i));
    let bits = scales[0] >> 12 | (scales[1] >> 12) << 4 | (scales[2] >> 12) << 8 | (scales[3] >> 12) << 12;
    let (d, grid) = (half(&bits.to_le_bytes(), 0), &**grids::IQ1_S);
    for (j, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let high = u16::from(block[32 + j / 2] >> (4 * (j % 2)) & 15);
        let place = u16::from(block[j]) | (high & 7) << 8;
        let scale = d * f32::from(2 * (scales[j / 8] >> (3 * (j / 2 % 4)) & 7) + 1);
        shifted(out, scale, &grid[usize::from(place)], high & 8 != 0);
    }
}
