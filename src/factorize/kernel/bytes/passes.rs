//! One Krylov step over a matrix in bytes.
//!
//! The delta's run of columns and the block's run of rows meet in one sum of integers, which is below 2^24 and so exact
//! in f32; there it gets both scales and is added to the sums before it.

use std::ops::Range;

use faer::prelude::*;
use rayon::prelude::*;

use crate::Result;
use crate::factorize::kernel::bytes::block::{Block, Run};
use crate::factorize::kernel::bytes::codes::{RUN, Record, record_words};
use crate::factorize::kernel::bytes::dot::{Dot, ROWS, STRIP, STRIPS, Tile};
use crate::factorize::kernel::tiling::{chunks, panel_rows, pieces, split_rows};
use crate::simd::{Loop, widest};

/// A matrix `[rows, cols]` in bytes that is visited in panels of consecutive rows, any number of times. The same rows
/// have the same codes at every visit.
pub trait Codes: Sync {
    /// Number of rows.
    fn rows(&self) -> usize;

    /// Number of columns.
    fn cols(&self) -> usize;

    /// The squared norm of what the codes miss of the matrix.
    fn error2(&self) -> f64;

    /// Passes the records of `rows`, which start at a multiple of 4, to `look`.
    ///
    /// # Errors
    /// Any error from the source of the rows, or the error that `look` returned.
    fn visit(&self, rows: Range<usize>, look: &mut dyn FnMut(&[f32]) -> Result<()>) -> Result<()>;
}

/// Memory that all passes over a matrix share.
#[derive(Debug, Default)]
pub(crate) struct ByteScratch {
    v: Block,
    groups: Vec<Group>,
}

/// The working memory of one group of panels.
#[derive(Debug, Default)]
struct Group {
    /// The group's sum of `delta^T·w`, `[cols, width]`, row-major.
    z: Vec<f32>,
    /// `delta·v` of a panel, `[height, width]`, row-major.
    product: Vec<f32>,
    /// The same in bytes, times the scales of one run of columns.
    block: Block,
    /// The panel's tiles of one run of columns, transposed: `[RUN / 4, height / 4]`.
    turned: Vec<[u8; 16]>,
}

/// Bytes that passes need, for a matrix `[m, n]`, `b` columns and so many groups of panels.
pub(crate) fn pass_bytes(m: usize, n: usize, b: usize, groups: usize) -> usize {
    let (width, height) = (b.next_multiple_of(STRIP), panel_rows(m, n).1);
    let group = 4 * (n + STRIP) * width + 5 * height * width + 4 * height * RUN;
    groups * group + (n + STRIP) * width * 2 + 4 * n * b
}

/// What a pass gives besides `w`.
pub(crate) struct Step {
    /// `scale·M^T·w`, `[cols, b]`.
    pub(crate) z: Mat<f32>,
    /// The squared norm of what the bytes miss of `v`.
    pub(crate) missed2: f64,
}

/// One Krylov step in one pass: `w = scale·M·v` and `z = scale·M^T·w`, for `v` `[cols, b]` and `w` `[rows, b]`.
///
/// # Errors
/// Any error from visiting the matrix.
pub(crate) fn sweep(
    codes: &dyn Codes,
    v: MatRef<'_, f32>,
    w: MatMut<'_, f32>,
    scale: f32,
    scratch: &mut ByteScratch,
) -> Result<Step> {
    let (m, n) = (codes.rows(), codes.cols());
    let (group, panel) = panel_rows(m, n);
    let ranges: Vec<_> = pieces(0..m, group).collect();
    scratch.groups.resize_with(ranges.len(), Group::default);
    let missed2 = scratch.v.pack(v);
    let (v, width, dot) = (&scratch.v, scratch.v.width(), Dot::new());
    let parts = split_rows(w, &ranges);
    let tasks: Vec<_> = scratch.groups.iter_mut().zip(ranges).zip(parts).collect();
    tasks.into_par_iter().with_max_len(1).try_for_each(|((group, rows), mut w)| -> Result<()> {
        let Group { z, product, block, turned } = group;
        z.clear();
        z.resize(n.next_multiple_of(STRIP) * width, 0.0);
        for part in pieces(rows.clone(), panel) {
            let mut w = w.rb_mut().subrows_mut(part.start - rows.start, part.len());
            product.clear();
            product.resize(part.len().next_multiple_of(ROWS) * width, 0.0);
            codes.visit(part, &mut |records| {
                let panel = Panel { records, cols: n, width, dot };
                widest(Multiply { panel, v, product });
                // One after the other: the square of a scale may be beyond f32.
                product.iter_mut().for_each(|x| *x *= scale);
                unpack(product, width, w.rb_mut());
                product.iter_mut().for_each(|x| *x *= scale);
                widest(MultiplyTransposed { panel, product, z, block, turned });
                Ok(())
            })?;
        }
        Ok(())
    })?;
    Ok(Step { z: sum(&mut scratch.groups, (n, v.columns()), width), missed2 })
}

/// `M·v` `[rows, b]` for `v` `[cols, b]`, in one pass.
///
/// # Errors
/// Any error from visiting the matrix.
pub(crate) fn times(codes: &dyn Codes, v: MatRef<'_, f32>) -> Result<Mat<f32>> {
    let (m, n) = (codes.rows(), codes.cols());
    let mut block = Block::default();
    block.pack(v);
    let (v, width, dot) = (&block, block.width(), Dot::new());
    let mut out = Mat::zeros(m, v.columns());
    let parts: Vec<_> = pieces(0..m, panel_rows(m, n).1).collect();
    let tasks: Vec<_> = parts.iter().cloned().zip(split_rows(out.as_mut(), &parts)).collect();
    tasks.into_par_iter().with_max_len(1).try_for_each(|(rows, mut out)| {
        let mut product = vec![0.0; rows.len().next_multiple_of(ROWS) * width];
        codes.visit(rows, &mut |records| {
            let panel = Panel { records, cols: n, width, dot };
            widest(Multiply { panel, v, product: &mut product });
            unpack(&product, width, out.rb_mut());
            Ok(())
        })
    })?;
    Ok(out)
}

/// `M^T·u` `[cols, b]` for `u` `[rows, b]`, in one pass.
///
/// # Errors
/// Any error from visiting the matrix.
pub(crate) fn transpose_times(codes: &dyn Codes, u: MatRef<'_, f32>) -> Result<Mat<f32>> {
    let (m, n) = (codes.rows(), codes.cols());
    let (group, panel) = panel_rows(m, n);
    let (width, dot) = (u.ncols().next_multiple_of(STRIP), Dot::new());
    let mut groups: Vec<_> = pieces(0..m, group).map(|rows| (rows, Group::default())).collect();
    groups.par_iter_mut().with_max_len(1).try_for_each(|(rows, group)| -> Result<()> {
        let Group { z, product, block, turned } = group;
        z.resize(n.next_multiple_of(STRIP) * width, 0.0);
        for part in pieces(rows.clone(), panel) {
            product.clear();
            product.resize(part.len().next_multiple_of(ROWS) * width, 0.0);
            for (j, column) in u.subrows(part.start, part.len()).col_iter().enumerate() {
                product[j..].iter_mut().step_by(width).zip(column.iter()).for_each(|(to, from)| *to = *from);
            }
            codes.visit(part, &mut |records| {
                let panel = Panel { records, cols: n, width, dot };
                widest(MultiplyTransposed { panel, product, z, block, turned });
                Ok(())
            })?;
        }
        Ok(())
    })?;
    let mut groups: Vec<Group> = groups.into_iter().map(|(_, group)| group).collect();
    Ok(sum(&mut groups, (n, u.ncols()), width))
}

/// Adds the groups' sums in order: `[n, columns]`, of which each has `width`.
fn sum(groups: &mut [Group], (n, columns): (usize, usize), width: usize) -> Mat<f32> {
    let mut groups = groups.iter_mut();
    let Some(Group { z: total, .. }) = groups.next() else { return Mat::new() };
    for group in groups {
        let pairs = total.par_chunks_mut(1 << 16).zip(group.z.par_chunks(1 << 16));
        pairs.for_each(|(to, from)| to.iter_mut().zip(from).for_each(|(to, from)| *to += from));
    }
    let mut z = Mat::zeros(n, columns);
    let rows = chunks(n);
    let parts: Vec<_> = rows.iter().cloned().zip(split_rows(z.as_mut(), &rows)).collect();
    parts.into_par_iter().for_each(|(rows, out)| unpack(&total[rows.start * width..], width, out));
    z
}

/// Copies a row-major block of rows of `width` to `out`.
fn unpack(values: &[f32], width: usize, mut out: MatMut<'_, f32>) {
    /// Rows whose cache lines stay near while columns are written one by one.
    const NEAR: usize = 64;
    for part in pieces(0..out.nrows(), NEAR) {
        let values = &values[part.start * width..];
        let out = out.rb_mut().subrows_mut(part.start, part.len());
        for (j, column) in out.col_iter_mut().enumerate() {
            let from = values[j..].iter().step_by(width);
            column.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        }
    }
}

/// Some rows of a matrix, four to a record.
#[derive(Clone, Copy)]
struct Panel<'a> {
    records: &'a [f32],
    cols: usize,
    /// Of the block that it is multiplied with.
    width: usize,
    dot: Dot,
}

impl<'a> Panel<'a> {
    fn records(&self) -> impl Iterator<Item = Record<'a>> + Clone + use<'a> {
        let cols = self.cols;
        self.records.chunks_exact(record_words(cols)).map(move |words| Record::of(words, cols))
    }

    fn runs(&self) -> usize {
        self.cols.div_ceil(RUN)
    }
}

struct Multiply<'a> {
    panel: Panel<'a>,
    v: &'a Block,
    product: &'a mut [f32],
}

impl Loop for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Multiply { panel, v, product } = self;
        let mut tile: Tile = [[0; STRIPS * STRIP]; ROWS];
        for index in 0..panel.runs() {
            let run = v.run(index);
            for first in (0..run.count()).step_by(STRIPS) {
                let (strips, count) = run.strips(first);
                for (record, out) in panel.records().zip(product.chunks_exact_mut(ROWS * panel.width)) {
                    panel.dot.tile(record.run(index), &strips[..count], &mut tile);
                    add(&tile, run, (first, count), record.scales[index], out, panel.width);
                }
            }
        }
    }
}

/// Adds a tile of sums, without what the offset added and times both scales, to four rows.
#[inline(always)]
fn add(
    tile: &Tile,
    run: Run<'_>,
    (first, count): (usize, usize),
    scales: [f32; ROWS],
    out: &mut [f32],
    width: usize,
) {
    for ((sums, row), scale) in tile.iter().zip(out.chunks_exact_mut(width)).zip(scales) {
        let (sums, out) = (sums.as_chunks::<STRIP>().0, row.as_chunks_mut::<STRIP>().0);
        for s in 0..count {
            // Copies of their own, which the compiler keeps in vectors.
            let (sums, mut total) = (sums[s], out[first + s]);
            let (offsets, columns) = (run.offsets[first + s], run.scales[first + s]);
            for j in 0..STRIP {
                total[j] += (sums[j] - offsets[j]) as f32 * columns[j] * scale;
            }
            out[first + s] = total;
        }
    }
}

struct MultiplyTransposed<'a> {
    panel: Panel<'a>,
    /// `[height, width]`.
    product: &'a [f32],
    z: &'a mut [f32],
    block: &'a mut Block,
    turned: &'a mut Vec<[u8; 16]>,
}

impl Loop for MultiplyTransposed<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let MultiplyTransposed { panel, product, z, block, turned } = self;
        let quads = product.len() / (ROWS * panel.width);
        let mut tile: Tile = [[0; STRIPS * STRIP]; ROWS];
        turned.resize(RUN / 4 * quads, [0; 16]);
        for index in 0..panel.runs() {
            let columns = turn_run(panel, index, turned, quads);
            let scales = panel.records().flat_map(|record| record.scales[index]);
            block.pack_rows(product, panel.width, scales);
            let run = block.run(0);
            let z = &mut z[index * RUN * panel.width..];
            for first in (0..run.count()).step_by(STRIPS) {
                let (strips, count) = run.strips(first);
                let tiles = turned.chunks_exact(quads).take(columns);
                for (tiles, out) in tiles.zip(z.chunks_exact_mut(ROWS * panel.width)) {
                    panel.dot.tile(tiles, &strips[..count], &mut tile);
                    add(&tile, run, (first, count), [1.0; ROWS], out, panel.width);
                }
            }
        }
    }
}

/// Writes the transposes of a run's tiles to `turned` `[columns / 4, quads]`, a cache line of them at a time. Returns
/// the columns, in fours.
#[inline(always)]
fn turn_run(panel: Panel<'_>, index: usize, turned: &mut [[u8; 16]], quads: usize) -> usize {
    let mut records = panel.records();
    let (mut columns, mut first) = (0, 0);
    while let Some(record) = records.next() {
        let tiles = record.run(index);
        columns = tiles.len();
        // The last line repeats its first record where there are fewer than four.
        let mut four = [tiles; 4];
        let mut count = 1;
        for (to, from) in four[1..].iter_mut().zip(&mut records) {
            *to = from.run(index);
            count += 1;
        }
        let [a, b, c, d] = four;
        let lines = a.iter().zip(b).zip(c).zip(d).zip(turned.chunks_exact_mut(quads));
        for ((((a, b), c), d), out) in lines {
            let line = [turn(a), turn(b), turn(c), turn(d)];
            match out[first..].first_chunk_mut::<4>() {
                Some(out) if count == 4 => *out = line,
                _ => out[first..first + count].copy_from_slice(&line[..count]),
            }
        }
        first += count;
    }
    columns
}

/// The transpose of a tile of 4 x 4 bytes. Written out, so that it is one shuffle where it is inlined: a closure would
/// be compiled without the vector instructions of its caller.
#[inline(always)]
fn turn(t: &[u8; 16]) -> [u8; 16] {
    [t[0], t[4], t[8], t[12], t[1], t[5], t[9], t[13], t[2], t[6], t[10], t[14], t[3], t[7], t[11], t[15]]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::factorize::in_memory::Held;
    use crate::factorize::kernel::passes;
    use crate::factorize::kernel::rng::Stream;
    use crate::factorize::quantized::HeldCodes;
    use crate::simd::{SimdLevel, testing::at_level};

    #[test]
    fn a_step_is_that_of_f32_but_for_rounding_and_the_level_changes_no_bit() {
        for (m, n, b) in [(1, 1, 1), (70, 300, 16), (517, 389, 33), (300, 1100, 70), (90, 256, 64)] {
            let mut fresh = Stream::new(8, "bytes");
            let values: Vec<f32> = fresh.gaussian(m * n, 1).col_as_slice(0).to_vec();
            let (held, v) = (Held::new(m, n, values).unwrap(), fresh.gaussian(n, b));
            let codes = HeldCodes::of(&held).unwrap();
            let by = |level| {
                at_level(level, || {
                    let (mut w, mut scratch) = (Mat::zeros(m, b), ByteScratch::default());
                    let step = sweep(&codes, v.as_ref(), w.as_mut(), 0.5, &mut scratch).unwrap();
                    let alone = times(&codes, v.as_ref()).unwrap();
                    let back = transpose_times(&codes, alone.as_ref()).unwrap();
                    (w, step.z, step.missed2, (alone, back))
                })
            };
            let (w, z, missed2, alone) = by(SimdLevel::Widest);
            let mut exact = Mat::zeros(m, b);
            let exact_z =
                passes::sweep(&held, v.as_ref(), exact.as_mut(), 0.5, &mut passes::Scratch::default())
                    .unwrap();
            let off = |a: &Mat<f32>, b: &Mat<f32>| f64::from((a - b).norm_l2() / b.norm_l2());
            assert!(off(&w, &exact) < 0.02, "{m} x {n} x {b}: {}", off(&w, &exact));
            assert!(off(&z, &exact_z) < 0.03, "{m} x {n} x {b}: {}", off(&z, &exact_z));
            let share = missed2 / f64::from(v.squared_norm_l2());
            assert!(share < 4e-4, "{m} x {n} x {b}: {share}");
            // Each product by itself: a power of two changes no bit.
            let scaled = (&alone.0 * faer::Scale(0.5), &alone.1 * faer::Scale(0.25));
            assert!(scaled == (w.clone(), z.clone()), "{m} x {n} x {b}");
            let found = (w, z, missed2, alone);
            assert!(by(SimdLevel::Portable) == found, "{m} x {n} x {b}");
            assert!(by(SimdLevel::Avx2) == found, "{m} x {n} x {b}");
        }
    }
}
