//! Products of a panel with a thin block, in register tiles.
//!
//! A general product packs both factors; if one of them is a block of 32 to 128 columns, packing costs up to a third of
//! the arithmetic. Here the block is packed once for all panels, and the panel is read in place: broadcast element by
//! element against a few vectors of the block, which stay in the first-level cache (the inner kernel of Goto and van de
//! Geijn, *Anatomy of high-performance matrix multiplication*, 2008, with the roles of the factors swapped).
//!
//! Every element of a result is summed in the order of the inner dimension, [`DEPTH`] terms at a time, whatever the
//! width of the machine's vectors, and a multiplication and an addition are rounded together wherever the processor
//! can.

use faer::reborrow::ReborrowMut;
use faer::{MatMut, MatRef};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::simd::{dispatch, fuses};

/// Inner dimension that is multiplied at a time: this much of a strip of the block fits in the first-level cache.
const DEPTH: usize = 256;
/// Vectors per strip, unless a single vector holds the block.
const VECTORS: usize = 2;
/// Rows of a register tile with vectors of 8 values and 16 registers.
const LOW: usize = 6;
/// Rows of a register tile with vectors of 16 values and 32 registers.
const HIGH: usize = 12;

/// Tiles of a panel that are packed at a time: a few successive cache lines of each row.
const TILES: usize = 32;
/// Rows of a block whose cache lines stay near while its columns are copied one by one.
const NEAR: usize = 64;

/// The most bytes that [`multiply_transposed`] packs of a panel of `height` rows.
pub(crate) fn packed_bytes(height: usize) -> usize {
    4 * TILES * HIGH * height
}

/// The strip width in which this machine packs a block with this many columns.
fn strip(columns: usize) -> usize {
    struct Lanes;
    impl WithSimd for Lanes {
        type Output = usize;

        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> usize {
            S::F32_LANES
        }
    }
    let lanes = dispatch(Lanes);
    if columns <= lanes { lanes } else { VECTORS * lanes }
}

/// A block `[rows, columns]` cut into strips of columns, each row-major; the last strip is padded with zeros.
#[derive(Debug, Default)]
pub(crate) struct Strips {
    rows: usize,
    columns: usize,
    strip: usize,
    /// `[strips, rows, strip]`.
    values: Vec<f32>,
}

impl Strips {
    /// Makes it a block of zeros, reusing its memory.
    pub(crate) fn clear(&mut self, rows: usize, columns: usize) {
        (self.rows, self.columns, self.strip) = (rows, columns, strip(columns));
        self.values.clear();
        self.values.resize(self.count() * rows * self.strip, 0.0);
    }

    /// Makes it a copy of `block`.
    pub(crate) fn pack(&mut self, block: MatRef<'_, f32>) {
        self.clear(block.nrows(), block.ncols());
        let width = self.strip;
        let strips = self.values.par_chunks_mut((block.nrows() * width).max(1));
        strips.enumerate().for_each(|(index, strip)| {
            let columns = block.subcols(index * width, width.min(block.ncols() - index * width));
            for first in (0..columns.nrows()).step_by(NEAR) {
                let rows = NEAR.min(columns.nrows() - first);
                for (j, column) in columns.subrows(first, rows).col_iter().enumerate() {
                    let to = strip[first * width + j..].iter_mut().step_by(width);
                    to.zip(column.iter()).for_each(|(to, from)| *to = *from);
                }
            }
        });
    }

    /// Copies it to `out`, which has the same shape.
    pub(crate) fn unpack(&self, out: MatMut<'_, f32>) {
        self.unpack_by(out, |to, from| *to = from);
    }

    /// Has `put` do something with each element of `out`, which has the same shape, and the element here.
    #[inline]
    pub(crate) fn unpack_by(&self, mut out: MatMut<'_, f32>, put: impl Fn(&mut f32, f32)) {
        for first in (0..out.nrows()).step_by(NEAR) {
            let rows = NEAR.min(out.nrows() - first);
            for (j, column) in out.rb_mut().subrows_mut(first, rows).col_iter_mut().enumerate() {
                let strip = &self.strip(j / self.strip)[first * self.strip..];
                let from = strip[j % self.strip..].iter().step_by(self.strip);
                column.iter_mut().zip(from).for_each(|(to, from)| put(to, *from));
            }
        }
    }

    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// Multiplies all values by a number.
    pub(crate) fn scale(&mut self, by: f32) {
        if by != 1.0 {
            self.values.iter_mut().for_each(|x| *x *= by);
        }
    }

    /// Adds a block of the same shape.
    pub(crate) fn add(&mut self, other: &Strips) {
        let pairs = self.values.par_chunks_mut(1 << 16).zip(other.values.par_chunks(1 << 16));
        pairs.for_each(|(to, from)| to.iter_mut().zip(from).for_each(|(to, from)| *to += from));
    }

    fn count(&self) -> usize {
        self.columns.div_ceil(self.strip)
    }

    fn strip(&self, index: usize) -> &[f32] {
        let length = self.rows * self.strip;
        &self.values[index * length..][..length]
    }

    fn strip_mut(&mut self, index: usize) -> &mut [f32] {
        let length = self.rows * self.strip;
        &mut self.values[index * length..][..length]
    }
}

/// `w += panel·v` for `panel` `[h, n]`, row-major, `v` `[n, b]`, `w` `[h, b]`.
pub(crate) fn multiply(panel: MatRef<'_, f32>, v: &Strips, w: &mut Strips) {
    dispatch(Tiled(Multiply { panel, v, w }));
}

/// `z += panel^T·w` for `panel` `[h, n]`, row-major, `w` `[h, b]`, `z` `[n, b]`. `packed` is working memory.
pub(crate) fn multiply_transposed(panel: MatRef<'_, f32>, w: &Strips, z: &mut Strips, packed: &mut Vec<f32>) {
    dispatch(Tiled(MultiplyTransposed { panel, w, z, packed }));
}

/// A product in register tiles of `M` rows and `V` vectors.
trait Kernel {
    /// The strip width that it multiplies with.
    fn strip(&self) -> usize;

    fn run<S: Simd, const M: usize, const V: usize>(self, simd: S);
}

/// A kernel in the tiles that fit the machine's registers and its strips.
struct Tiled<K>(K);

impl<K: Kernel> WithSimd for Tiled<K> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match (S::F32_LANES > 8, self.0.strip() > S::F32_LANES) {
            (true, true) => self.0.run::<S, HIGH, VECTORS>(simd),
            (true, false) => self.0.run::<S, HIGH, 1>(simd),
            (false, true) => self.0.run::<S, LOW, VECTORS>(simd),
            (false, false) => self.0.run::<S, LOW, 1>(simd),
        }
    }
}

struct Multiply<'a> {
    panel: MatRef<'a, f32>,
    v: &'a Strips,
    w: &'a mut Strips,
}

impl Kernel for Multiply<'_> {
    fn strip(&self) -> usize {
        self.v.strip
    }

    #[inline(always)]
    fn run<S: Simd, const M: usize, const V: usize>(self, simd: S) {
        let Multiply { panel, v, w } = self;
        let (height, n, width) = (panel.nrows(), panel.ncols(), v.strip);
        for from in (0..n).step_by(DEPTH) {
            let depth = DEPTH.min(n - from);
            for index in 0..v.count() {
                let block = vectors::<S, V>(&v.strip(index)[from * width..][..depth * width]);
                let out = w.strip_mut(index);
                for first in (0..height).step_by(M) {
                    // The last tile repeats its last row; the extra results are not stored.
                    let rows: [&[f32]; M] =
                        std::array::from_fn(|i| row(panel, (first + i).min(height - 1), from, depth));
                    let sums = product::<S, M, V>(simd, rows, block);
                    let out = vectors_mut::<S, V>(&mut out[first * width..]);
                    add(simd, out, &sums[..M.min(height - first)]);
                }
            }
        }
    }
}

/// Row `i` of a panel: `depth` elements, starting at `from`.
#[inline(always)]
fn row(panel: MatRef<'_, f32>, i: usize, from: usize, depth: usize) -> &[f32] {
    let row = panel.row(i).try_as_row_major().expect("panels are row-major");
    &row.as_slice()[from..from + depth]
}

/// Multiplies `M` rows with a strip that has as many rows as they have elements.
#[inline(always)]
fn product<S: Simd, const M: usize, const V: usize>(
    simd: S,
    rows: [&[f32]; M],
    block: &[[S::f32s; V]],
) -> [[S::f32s; V]; M] {
    let mut sums = [[simd.splat_f32s(0.0); V]; M];
    let fused = S::F32_LANES > 1 || fuses();
    let rows = rows.map(|row| &row[..block.len()]);
    for (k, vectors) in block.iter().enumerate() {
        for (sums, row) in sums.iter_mut().zip(rows) {
            let factor = simd.splat_f32s(row[k]);
            for (sum, vector) in sums.iter_mut().zip(vectors) {
                *sum = fused_add(simd, fused, factor, *vector, *sum);
            }
        }
    }
    sums
}

struct MultiplyTransposed<'a> {
    panel: MatRef<'a, f32>,
    w: &'a Strips,
    z: &'a mut Strips,
    packed: &'a mut Vec<f32>,
}

impl Kernel for MultiplyTransposed<'_> {
    fn strip(&self) -> usize {
        self.w.strip
    }

    #[inline(always)]
    fn run<S: Simd, const M: usize, const V: usize>(self, simd: S) {
        let MultiplyTransposed { panel, w, z, packed } = self;
        let (height, n, width) = (panel.nrows(), panel.ncols(), w.strip);
        packed.resize(TILES * height * M, 0.0);
        // From the end: what was multiplied last may still be in a near cache.
        for from in (0..n).step_by(TILES * M).rev() {
            let columns = (TILES * M).min(n - from);
            pack::<M>(panel, from, columns, packed);
            for index in 0..w.count() {
                let block = vectors::<S, V>(&w.strip(index)[..height * width]);
                let out = &mut z.strip_mut(index)[from * width..][..columns * width];
                let tiles = packed.chunks_exact(height * M);
                for (tile, out) in tiles.zip(vectors_mut::<S, V>(out).chunks_mut(M)) {
                    let sums = outer::<S, M, V>(simd, tile.as_chunks::<M>().0, block);
                    add(simd, out, &sums);
                }
            }
        }
    }
}

/// Copies columns of a panel to tiles `[h, M]`. Missing columns of the last tile keep their old values; results from
/// them are never read.
#[inline(always)]
fn pack<const M: usize>(panel: MatRef<'_, f32>, from: usize, columns: usize, packed: &mut [f32]) {
    let height = panel.nrows();
    for i in 0..height {
        let (tiles, rest) = row(panel, i, from, columns).as_chunks::<M>();
        for (t, tile) in tiles.iter().enumerate() {
            packed[(t * height + i) * M..][..M].copy_from_slice(tile);
        }
        if !rest.is_empty() {
            packed[(tiles.len() * height + i) * M..][..rest.len()].copy_from_slice(rest);
        }
    }
}

/// Multiplies the transpose of a tile `[h, M]` with a strip of `h` rows.
#[inline(always)]
fn outer<S: Simd, const M: usize, const V: usize>(
    simd: S,
    tile: &[[f32; M]],
    block: &[[S::f32s; V]],
) -> [[S::f32s; V]; M] {
    let mut sums = [[simd.splat_f32s(0.0); V]; M];
    let fused = S::F32_LANES > 1 || fuses();
    for (factors, vectors) in tile.iter().zip(block) {
        for (sums, factor) in sums.iter_mut().zip(factors) {
            let factor = simd.splat_f32s(*factor);
            for (sum, vector) in sums.iter_mut().zip(vectors) {
                *sum = fused_add(simd, fused, factor, *vector, *sum);
            }
        }
    }
    sums
}

/// `a·b + c`, rounded once where the processor can: every vector unit does, and scalar code if `fused`.
#[inline(always)]
fn fused_add<S: Simd>(simd: S, fused: bool, a: S::f32s, b: S::f32s, c: S::f32s) -> S::f32s {
    match fused {
        true => simd.mul_add_f32s(a, b, c),
        false => simd.mul_add_e_f32s(a, b, c),
    }
}

/// Adds the sums of a tile to the same number of rows of a strip.
#[inline(always)]
fn add<S: Simd, const V: usize>(simd: S, out: &mut [[S::f32s; V]], sums: &[[S::f32s; V]]) {
    for (out, sums) in out.iter_mut().zip(sums) {
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = simd.add_f32s(*out, *sum);
        }
    }
}

/// The rows of a strip as vectors.
#[inline(always)]
fn vectors<S: Simd, const V: usize>(strip: &[f32]) -> &[[S::f32s; V]] {
    S::as_simd_f32s(strip).0.as_chunks().0
}

#[inline(always)]
fn vectors_mut<S: Simd, const V: usize>(strip: &mut [f32]) -> &mut [[S::f32s; V]] {
    S::as_mut_simd_f32s(strip).0.as_chunks_mut().0
}

#[cfg(test)]
mod tests {
    use faer::Mat;

    use super::*;
    use crate::factorize::kernel::rng::Stream;

    fn packed(block: &Mat<f32>) -> Strips {
        let mut strips = Strips::default();
        strips.pack(block.as_ref());
        strips
    }

    fn zeros(rows: usize, columns: usize) -> Strips {
        packed(&Mat::zeros(rows, columns))
    }

    fn off(strips: &Strips, expected: Mat<f32>) -> f32 {
        let mut whole = Mat::zeros(expected.nrows(), expected.ncols());
        strips.unpack(whole.as_mut());
        (whole - expected).norm_max()
    }

    #[test]
    fn products_are_those_of_the_definition() {
        let mut fresh = Stream::new(3, "thin");
        for (h, n, b) in [(1, 1, 1), (5, 300, 7), (12, 256, 16), (50, 700, 33), (192, 513, 64), (31, 47, 100)]
        {
            let panel = fresh.gaussian(n, h);
            let panel = panel.transpose();
            let (v, w) = (fresh.gaussian(n, b), fresh.gaussian(h, b));
            let mut product = zeros(h, b);
            multiply(panel, &packed(&v), &mut product);
            let off_by = off(&product, panel.to_owned() * &v);
            assert!(off_by < 4e-5 * (n as f32).sqrt(), "{h} x {n} x {b}: {off_by}");
            let (mut sum, mut memory) = (zeros(n, b), Vec::new());
            for _ in 0..2 {
                multiply_transposed(panel, &packed(&w), &mut sum, &mut memory);
            }
            let off_by = off(&sum, panel.transpose().to_owned() * &w * faer::Scale(2.0));
            assert!(off_by < 8e-5 * (h as f32).sqrt(), "{h} x {n} x {b}, transposed: {off_by}");
        }
    }
}
