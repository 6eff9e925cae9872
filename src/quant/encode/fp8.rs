//! The inverse of decoding: values to block FP8, as [`BlockFp8`](super::BlockFp8) reads it.
//!
//! A block's scale is its largest magnitude divided by 448, the largest e4m3; a code is the nearest e4m3 to
//! `w / scale`, ties to even. The arithmetic is that of compressed-tensors on an f32 weight
//! (`quantization/utils/helpers.py:calculate_qparams` and `lifecycle/forward_helpers.py:_quantize`), including its
//! scale for a block of zeros.

/// The block shape of Qwen3-FP8 and DeepSeek-V3: rows, columns.
pub const FP8_BLOCK: [usize; 2] = [128, 128];

/// The largest finite e4m3.
const LARGEST: f32 = 448.0;

/// Encodes consecutive rows, `values` `[rows, columns]` row-major, in blocks of `block` (rows, columns). `codes` are
/// e4m3, one per value; `scales` are `[ceil(rows / block rows), ceil(columns / block columns)]` and multiply the codes.
/// Blocks at the right and lower edges are partial; rows of a larger matrix must begin and end at block boundaries.
///
/// A block of zeros has the scale `f32::EPSILON`. A block with a NaN has the scale NaN, and its codes are NaN; one with
/// an infinity has an infinite scale. The caller must refuse weights that are not finite.
///
/// # Panics
/// If `codes` or `scales` do not have the lengths that the shape requires, or a dimension of `block` is zero.
pub fn encode_block_fp8(
    values: &[f32],
    columns: usize,
    block: [usize; 2],
    codes: &mut [u8],
    scales: &mut [f32],
) {
    let [height, width] = block;
    let rows = values.len() / columns.max(1);
    let grid = columns.div_ceil(width);
    assert_eq!((values.len(), codes.len()), (rows * columns, rows * columns), "the panel's values and codes");
    assert_eq!(scales.len(), rows.div_ceil(height) * grid, "the panel's scales");
    if values.is_empty() {
        return;
    }
    let bands = values.chunks(height * columns).zip(codes.chunks_mut(height * columns));
    for ((values, codes), scales) in bands.zip(scales.chunks_exact_mut(grid)) {
        largest(values, columns, width, scales);
        for scale in scales.iter_mut() {
            *scale /= LARGEST;
            if *scale == 0.0 {
                *scale = f32::EPSILON;
            }
        }
        for (values, codes) in values.chunks_exact(columns).zip(codes.chunks_exact_mut(columns)) {
            let blocks = values.chunks(width).zip(codes.chunks_mut(width)).zip(&*scales);
            for ((values, codes), &scale) in blocks {
                codes.iter_mut().zip(values).for_each(|(code, value)| *code = to_e4m3(value / scale));
            }
        }
    }
}

/// The largest magnitude of each block in one row of blocks.
fn largest(values: &[f32], columns: usize, width: usize, out: &mut [f32]) {
    // Without their sign bit, floats sort by their bits, with NaN above all.
    let mut most = vec![0u32; out.len()];
    for row in values.chunks_exact(columns) {
        for (block, most) in row.chunks(width).zip(&mut most) {
            *most = block.iter().fold(*most, |most, value| most.max(value.abs().to_bits()));
        }
    }
    out.iter_mut().zip(most).for_each(|(out, bits)| *out = f32::from_bits(bits));
}

/// The nearest e4m3 code, ties to even; the largest code beyond 448, NaN for NaN.
#[inline(always)]
pub fn to_e4m3(value: f32) -> u8 {
    /// The smallest normal e4m3, and a number whose last bit is worth the smallest subnormal, 2^-9.
    const NORMAL: u32 = (127 - 6) << 23;
    const SUBNORMALS: f32 = 16384.0;
    // All paths are computed and one is selected, so that the loop around this can be vectorized.
    let bits = value.to_bits();
    let magnitude = (bits & 0x7fff_ffff).min(LARGEST.to_bits());
    let normal = ((magnitude + 0x7_ffff + (magnitude >> 20 & 1)) >> 20).wrapping_sub(120 << 3);
    let small = (f32::from_bits(magnitude) + SUBNORMALS).to_bits() - SUBNORMALS.to_bits();
    let code = if magnitude < NORMAL { small } else { normal };
    let code = if bits & 0x7fff_ffff > 0x7f80_0000 { 0x7f } else { code };
    (code | bits >> 24 & 0x80) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::number::e4m3::E4M3;

    #[test]
    fn the_nearest_code_by_search() {
        let finite: Vec<u8> = (0..=0x7e).collect();
        let nearest = |value: f32| {
            let far = |code: u8| (f64::from(E4M3[usize::from(code)]) - f64::from(value.abs())).abs();
            // Of two equally near codes the even one: parities alternate.
            let best =
                finite.iter().copied().min_by(|&a, &b| far(a).total_cmp(&far(b)).then((a & 1).cmp(&(b & 1))));
            best.unwrap() | if value.is_sign_negative() { 0x80 } else { 0 }
        };
        let middles = E4M3[..0x7e].iter().zip(&E4M3[1..0x7f]).map(|(a, b)| (a + b) / 2.0);
        let around =
            middles.flat_map(|v| [v, f32::from_bits(v.to_bits() - 1), f32::from_bits(v.to_bits() + 1)]);
        let sweep = (0..=u32::MAX).step_by(65_537).map(f32::from_bits).filter(|v| v.abs() < 1e6);
        let values: Vec<f32> = E4M3[..0x7f].iter().copied().chain(around).chain(sweep).collect();
        for value in values.iter().flat_map(|&v| [v, -v]) {
            assert_eq!(to_e4m3(value), nearest(value), "{value:e}");
        }
        assert_eq!([f32::NAN, -f32::NAN, f32::INFINITY].map(to_e4m3), [0x7f, 0xff, 0x7e]);
    }

    #[test]
    fn blocks_are_encoded_by_themselves() {
        let (rows, columns) = (5, 7);
        let values: Vec<f32> = (0..rows * columns).map(|i| (i as f32 - 11.0) * 0.37).collect();
        let (mut codes, mut scales) = (vec![0; values.len()], vec![0.0; 6]);
        encode_block_fp8(&values, columns, [2, 4], &mut codes, &mut scales);
        for (at, (&value, &code)) in values.iter().zip(&codes).enumerate() {
            let scale = scales[at / columns / 2 * 2 + at % columns / 4];
            let error = (E4M3[usize::from(code)] * scale - value).abs();
            assert!(error <= value.abs() / 16.0 + scale / 1024.0, "{at}: {value} is off by {error}");
        }
        // A band encoded alone gives the same as within the whole matrix.
        let (mut part, mut part_scales) = (vec![0; 2 * columns], vec![0.0; 2]);
        encode_block_fp8(&values[2 * columns..4 * columns], columns, [2, 4], &mut part, &mut part_scales);
        assert_eq!((&part[..], &part_scales[..]), (&codes[2 * columns..4 * columns], &scales[2..4]));
    }

    #[test]
    fn what_is_not_finite_shows() {
        let mut values = vec![1.0f32; 8];
        (values[1], values[5]) = (f32::NAN, f32::INFINITY);
        let (mut codes, mut scales) = (vec![0; 8], vec![0.0; 2]);
        encode_block_fp8(&values, 8, [1, 4], &mut codes, &mut scales);
        assert!(scales[0].is_nan() && scales[1] == f32::INFINITY);
        assert!(codes[..4].iter().all(|code| code & 0x7f == 0x7f), "{codes:x?}");
        encode_block_fp8(&[], 0, FP8_BLOCK, &mut [], &mut []);
    }
}
