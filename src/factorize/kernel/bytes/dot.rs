//! The inner product of bytes: four rows of a matrix with up to four strips of a thin block.
//!
//! Codes of the matrix are unsigned, with an offset of 128; those of the block are signed and within
//! [`BLOCK_MOST`](super::block::BLOCK_MOST), so that the sum of two products fits in 16 bits, which is what AVX2 sums
//! (`vpmaddubsw`).

use crate::simd::{SimdLevel, simd_limit};

/// Columns of a strip.
pub(crate) const STRIP: usize = 16;
/// Strips that are multiplied at a time.
pub(crate) const STRIPS: usize = 4;
/// Rows of a tile.
pub(crate) const ROWS: usize = 4;

/// Sums of a tile.
pub(crate) type Tile = [[i32; STRIPS * STRIP]; ROWS];

/// An implementation: `tile[i][j] = sum over k of matrix[i, k]·block[k, j]`.
type Product = unsafe fn(matrix: &[[u8; 16]], strips: &[&[[i8; 64]]], tile: &mut Tile);

/// The inner product with the widest instructions that the processor has, within the limit.
#[derive(Clone, Copy)]
pub(crate) struct Dot(Product);

impl Dot {
    /// The one for this processor.
    pub(crate) fn new() -> Dot {
        Dot::within(simd_limit())
    }

    #[cfg(target_arch = "x86_64")]
    fn within(limit: SimdLevel) -> Dot {
        use std::arch::is_x86_feature_detected as has;
        if limit >= SimdLevel::Widest && has!("avx512f") && has!("avx512bw") && has!("avx512vnni") {
            return Dot(x86::avx512_vnni);
        }
        if limit >= SimdLevel::Widest && has!("avxvnni") && has!("avx2") {
            return Dot(x86::avx_vnni);
        }
        if limit >= SimdLevel::Avx2 && has!("avx2") {
            return Dot(x86::avx2);
        }
        Dot(portable)
    }

    #[cfg(target_arch = "aarch64")]
    fn within(limit: SimdLevel) -> Dot {
        if limit >= SimdLevel::Widest && std::arch::is_aarch64_feature_detected!("neon") {
            return Dot(neon::neon);
        }
        Dot(portable)
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    fn within(_: SimdLevel) -> Dot {
        Dot(portable)
    }

    /// `tile[i][j] = sum over k of matrix[i, k]·block[k, j]`, for four rows in tiles of 4 x 4 bytes and at most
    /// [`STRIPS`] strips of as many rows.
    ///
    /// # Panics
    /// If there are more strips, or a strip has another number of rows.
    #[inline]
    pub(crate) fn tile(self, matrix: &[[u8; 16]], strips: &[&[[i8; 64]]], tile: &mut Tile) {
        assert!(strips.len() <= STRIPS && strips.iter().all(|strip| strip.len() == matrix.len()));
        // SAFETY: `within` chose an implementation whose instructions the processor has, and lengths were checked.
        unsafe { (self.0)(matrix, strips, tile) }
    }
}

/// # Safety
/// None is asked for: it is the same type as the others.
unsafe fn portable(matrix: &[[u8; 16]], strips: &[&[[i8; 64]]], tile: &mut Tile) {
    for (s, strip) in strips.iter().enumerate() {
        let mut sums = [[0i32; STRIP]; ROWS];
        for (matrix, block) in matrix.iter().zip(*strip) {
            for (sums, matrix) in sums.iter_mut().zip(matrix.as_chunks::<4>().0) {
                let [a, b, c, d] = matrix.map(i32::from);
                for (sum, block) in sums.iter_mut().zip(block.as_chunks::<4>().0) {
                    let [e, f, g, h] = block.map(i32::from);
                    *sum += (a * e + b * f) + (c * g + d * h);
                }
            }
        }
        for (row, sums) in tile.iter_mut().zip(&sums) {
            row[s * STRIP..][..STRIP].copy_from_slice(sums);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m512i, _mm256_add_epi32, _mm256_dpbusd_avx_epi32, _mm256_loadu_si256, _mm256_madd_epi16,
        _mm256_maddubs_epi16, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_setzero_si256,
        _mm256_storeu_si256, _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_set1_epi32,
        _mm512_setzero_si512, _mm512_storeu_si512,
    };

    use super::{ROWS, STRIP, Tile};

    /// Four bytes of row `i` of a tile of 4 x 4.
    #[inline(always)]
    fn row(tile: &[u8; 16], i: usize) -> i32 {
        i32::from_le_bytes([tile[4 * i], tile[4 * i + 1], tile[4 * i + 2], tile[4 * i + 3]])
    }

    /// # Safety
    /// The processor has AVX-512 F and VNNI; strips are as long as `matrix`.
    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) unsafe fn avx512_vnni(matrix: &[[u8; 16]], strips: &[&[[i8; 64]]], tile: &mut Tile) {
        // SAFETY: as for this function.
        unsafe {
            match *strips {
                [a, b, c, d] => avx512(matrix, [a, b, c, d], tile),
                [a, b, c] => avx512(matrix, [a, b, c], tile),
                [a, b] => avx512(matrix, [a, b], tile),
                [a] => avx512(matrix, [a], tile),
                _ => {}
            }
        }
    }

    /// # Safety
    /// As [`avx512_vnni`].
    #[target_feature(enable = "avx512f,avx512vnni")]
    unsafe fn avx512<const S: usize>(matrix: &[[u8; 16]], strips: [&[[i8; 64]]; S], tile: &mut Tile) {
        let mut sums = [[_mm512_setzero_si512(); S]; ROWS];
        for (k, matrix) in matrix.iter().enumerate() {
            // SAFETY: strips are as long as the matrix, and an element is 64 bytes.
            let block: [__m512i; S] = std::array::from_fn(|s| unsafe {
                _mm512_loadu_si512(strips[s].get_unchecked(k).as_ptr().cast())
            });
            for (i, sums) in sums.iter_mut().enumerate() {
                let matrix = _mm512_set1_epi32(row(matrix, i));
                for (sum, block) in sums.iter_mut().zip(block) {
                    *sum = _mm512_dpbusd_epi32(*sum, matrix, block);
                }
            }
        }
        for (to, sums) in tile.iter_mut().zip(sums) {
            for (to, sum) in to.as_chunks_mut::<STRIP>().0.iter_mut().zip(sums) {
                // SAFETY: 16 values of 4 bytes.
                unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), sum) };
            }
        }
    }

    /// Two halves of a strip, 256 bits each, with `$add` to add products to a sum.
    macro_rules! narrow {
        ($name:ident, $features:literal, $add:expr) => {
            /// # Safety
            /// The processor has the features; strips are as long as `matrix`.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn $name(matrix: &[[u8; 16]], strips: &[&[[i8; 64]]], tile: &mut Tile) {
                for (s, strip) in strips.iter().enumerate() {
                    let mut sums = [[_mm256_setzero_si256(); 2]; ROWS];
                    for (matrix, block) in matrix.iter().zip(*strip) {
                        let at = block.as_ptr();
                        // SAFETY: a row of a strip is 64 bytes.
                        let block =
                            unsafe { [_mm256_loadu_si256(at.cast()), _mm256_loadu_si256(at.add(32).cast())] };
                        for (i, sums) in sums.iter_mut().enumerate() {
                            let matrix = _mm256_set1_epi32(row(matrix, i));
                            for (sum, block) in sums.iter_mut().zip(block) {
                                *sum = $add(*sum, matrix, block);
                            }
                        }
                    }
                    for (to, sums) in tile.iter_mut().zip(sums) {
                        for (half, sum) in sums.into_iter().enumerate() {
                            let to = &mut to[s * STRIP + 8 * half..][..8];
                            // SAFETY: 8 values of 4 bytes.
                            unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), sum) };
                        }
                    }
                }
            }
        };
    }

    narrow!(avx2, "avx2", |sum, matrix, block| {
        let pairs = _mm256_maddubs_epi16(matrix, block);
        _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    });
    narrow!(avx_vnni, "avx2,avxvnni", |sum, matrix, block| _mm256_dpbusd_avx_epi32(sum, matrix, block));
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use std::arch::aarch64::{
        int8x16_t, vaddq_s32, vdupq_n_s8, vdupq_n_s32, veorq_s8, vget_low_s8, vld1q_s8, vmull_high_s8,
        vmull_s8, vpaddlq_s8, vpaddlq_s16, vpaddq_s32, vreinterpretq_s8_s32, vshlq_n_s32, vst1q_s32,
    };

    use super::{ROWS, STRIP, Tile};

    /// In 16-bit products, summed by pairs: instructions that every processor has, unlike `sdot`, which is not stable
    /// in Rust.
    ///
    /// # Safety
    /// The processor has NEON; strips are as long as `matrix`.
    #[target_feature(enable = "neon")]
    pub(super) unsafe fn neon(matrix: &[[u8; 16]], strips: &[&[[i8; 64]]], tile: &mut Tile) {
        for (s, strip) in strips.iter().enumerate() {
            let mut sums = [[vdupq_n_s32(0); 4]; ROWS];
            for (matrix, block) in matrix.iter().zip(*strip) {
                // SAFETY: a row of a strip is 64 bytes.
                let block: [int8x16_t; 4] =
                    std::array::from_fn(|quarter| unsafe { vld1q_s8(block.as_ptr().add(16 * quarter)) });
                for (sums, row) in sums.iter_mut().zip(matrix.as_chunks::<4>().0) {
                    // The offset is taken away and added as a product by itself: signed products fit in 16 bits.
                    let row = vdupq_n_s32(i32::from_le_bytes(*row));
                    let signed = veorq_s8(vreinterpretq_s8_s32(row), vdupq_n_s8(-128));
                    for (sum, block) in sums.iter_mut().zip(block) {
                        let low = vmull_s8(vget_low_s8(signed), vget_low_s8(block));
                        let high = vmull_high_s8(signed, block);
                        let pairs = vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high));
                        let offset = vpaddlq_s16(vpaddlq_s8(block));
                        *sum = vaddq_s32(*sum, vaddq_s32(pairs, vshlq_n_s32::<7>(offset)));
                    }
                }
            }
            for (to, sums) in tile.iter_mut().zip(sums) {
                for (quarter, sum) in sums.into_iter().enumerate() {
                    let to = &mut to[s * STRIP + 4 * quarter..][..4];
                    // SAFETY: 4 values of 4 bytes.
                    unsafe { vst1q_s32(to.as_mut_ptr(), sum) };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn every_level_gives_the_sums_of_the_definition() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        for (quads, count) in [(1, 1), (64, 4), (33, 3), (48, 2), (7, 4), (0, 1)] {
            // The extremes too, whose products are the largest that 16 bits have to hold.
            let matrix: Vec<[u8; 16]> = (0..quads)
                .map(|_| std::array::from_fn(|_| if rng.random_bool(0.2) { 255 } else { rng.random::<u8>() }))
                .collect();
            let block = |rng: &mut ChaCha8Rng| -> Vec<[i8; 64]> {
                let mut code = || if rng.random_bool(0.2) { 64 } else { rng.random_range(-64..=64) };
                (0..quads).map(|_| std::array::from_fn(|_| code())).collect()
            };
            let strips: Vec<Vec<[i8; 64]>> = (0..count).map(|_| block(&mut rng)).collect();
            let strips: Vec<&[[i8; 64]]> = strips.iter().map(Vec::as_slice).collect();
            for level in [SimdLevel::Portable, SimdLevel::Avx2, SimdLevel::Widest] {
                let mut tile: Tile = [[0; 64]; 4];
                Dot::within(level).tile(&matrix, &strips, &mut tile);
                for (i, row) in tile.iter().enumerate() {
                    for (j, sum) in row[..count * STRIP].iter().enumerate() {
                        let products = (0..4 * quads).map(|k| {
                            let code = i32::from(matrix[k / 4][4 * i + k % 4]);
                            code * i32::from(strips[j / STRIP][k / 4][4 * (j % STRIP) + k % 4])
                        });
                        assert_eq!(*sum, products.sum::<i32>(), "{level:?}: {quads} x {count}, ({i}, {j})");
                    }
                }
            }
        }
    }
}
