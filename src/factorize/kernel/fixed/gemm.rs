//! Products in f64 in register tiles. Every element is summed in the order of the inner dimension, a few hundred terms
//! at a time.

use faer::prelude::*;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::factorize::kernel::block_ops::sum_of_chunks;
use crate::factorize::kernel::tiling::{pieces, split_rows};
use crate::simd::{dispatch, fuses};

/// Inner dimension that is multiplied at a time.
const DEPTH: usize = 256;
/// Rows of a tile.
const ROWS: usize = 6;
/// Columns of a strip: two of the widest vectors, so that a strip is whole vectors at every level.
const STRIP: usize = 16;
/// Rows of a task.
const TASK: usize = 96;

/// `x^T·y` `[a, b]` in f64 for `x` `[rows, a]` and `y` `[rows, b]` in f32.
pub(crate) fn cross_gram(x: MatRef<'_, f32>, y: MatRef<'_, f32>) -> Mat<f64> {
    sum_of_chunks(x.nrows(), (x.ncols(), y.ncols()), |rows| {
        let mut sums = Sums::new(x.ncols(), y.ncols());
        let (mut left, mut right) = (Vec::new(), Vec::new());
        for part in pieces(rows, DEPTH) {
            let (x, y) = (x.subrows(part.start, part.len()), y.subrows(part.start, part.len()));
            left.clear();
            x.col_iter().for_each(|column| left.extend(column.iter().map(|x| f64::from(*x))));
            pack(y.nrows(), y.ncols(), |k, j| f64::from(y[(k, j)]), &mut right);
            dispatch(Multiply { left: &left, right: &right, depth: part.len(), sums: &mut sums });
        }
        sums.unpack()
    })
}

/// `a·b`.
pub(crate) fn product(a: MatRef<'_, f64>, b: MatRef<'_, f64>) -> Mat<f64> {
    let mut out = Mat::zeros(a.nrows(), b.ncols());
    let ranges: Vec<_> = pieces(0..a.nrows(), TASK).collect();
    let packed: Vec<_> = pieces(0..b.nrows(), DEPTH)
        .map(|part| {
            let mut right = Vec::new();
            pack(part.len(), b.ncols(), |k, j| b[(part.start + k, j)], &mut right);
            (part, right)
        })
        .collect();
    let tasks: Vec<_> = ranges.iter().cloned().zip(split_rows(out.as_mut(), &ranges)).collect();
    tasks.into_par_iter().with_max_len(1).for_each(|(rows, mut out)| {
        let mut sums = Sums::new(rows.len(), b.ncols());
        let mut left = Vec::new();
        for (part, right) in &packed {
            left.clear();
            left.extend(rows.clone().flat_map(|i| part.clone().map(move |k| a[(i, k)])));
            dispatch(Multiply { left: &left, right, depth: part.len(), sums: &mut sums });
        }
        out.copy_from(sums.unpack());
    });
    out
}

/// Cuts `[depth, columns]` into strips of columns, each row-major; the last is padded with zeros.
fn pack(depth: usize, columns: usize, value: impl Fn(usize, usize) -> f64, out: &mut Vec<f64>) {
    out.clear();
    out.resize(depth * columns.next_multiple_of(STRIP), 0.0);
    for j in 0..columns {
        let strip = &mut out[j / STRIP * STRIP * depth..][..STRIP * depth];
        strip[j % STRIP..].iter_mut().step_by(STRIP).enumerate().for_each(|(k, to)| *to = value(k, j));
    }
}

/// Sums `[rows, columns]` in strips of columns, each row-major.
struct Sums {
    rows: usize,
    columns: usize,
    values: Vec<f64>,
}

impl Sums {
    fn new(rows: usize, columns: usize) -> Sums {
        Sums { rows, columns, values: vec![0.0; rows * columns.next_multiple_of(STRIP)] }
    }

    fn unpack(&self) -> Mat<f64> {
        let at = |i: usize, j: usize| j / STRIP * STRIP * self.rows + i * STRIP + j % STRIP;
        Mat::from_fn(self.rows, self.columns, |i, j| self.values[at(i, j)])
    }
}

/// `sums += left·right` for `left` `[rows, depth]`, row-major, and `right` in strips.
struct Multiply<'a> {
    left: &'a [f64],
    right: &'a [f64],
    depth: usize,
    sums: &'a mut Sums,
}

impl WithSimd for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match S::F64_LANES {
            8 => self.run::<S, 2>(simd),
            4 => self.run::<S, 4>(simd),
            2 => self.run::<S, 8>(simd),
            _ => self.run::<S, STRIP>(simd),
        }
    }
}

impl Multiply<'_> {
    /// In strips of `V` vectors, which are multiplied two at a time.
    #[inline(always)]
    fn run<S: Simd, const V: usize>(self, simd: S) {
        let Multiply { left, right, depth, sums } = self;
        let rows = sums.rows;
        let strips = right.chunks_exact((STRIP * depth).max(1));
        for (right, out) in strips.zip(sums.values.chunks_exact_mut((STRIP * rows).max(1))) {
            let right: &[[S::f64s; V]] = S::as_simd_f64s(right).0.as_chunks().0;
            let out: &mut [[S::f64s; V]] = S::as_mut_simd_f64s(out).0.as_chunks_mut().0;
            for first in (0..rows).step_by(ROWS) {
                // The last tile repeats its last row; the extra results are not stored.
                let left: [&[f64]; ROWS] =
                    std::array::from_fn(|i| &left[(first + i).min(rows - 1) * depth..][..depth]);
                let count = ROWS.min(rows - first);
                for pair in 0..V / 2 {
                    let tile = tile::<S, V>(simd, left, right, 2 * pair);
                    for (out, sums) in out[first..first + count].iter_mut().zip(&tile) {
                        out[2 * pair] = simd.add_f64s(out[2 * pair], sums[0]);
                        out[2 * pair + 1] = simd.add_f64s(out[2 * pair + 1], sums[1]);
                    }
                }
            }
        }
    }
}

/// The products of a few rows with two vectors of a strip, from `at` on.
#[inline(always)]
fn tile<S: Simd, const V: usize>(
    simd: S,
    left: [&[f64]; ROWS],
    right: &[[S::f64s; V]],
    at: usize,
) -> [[S::f64s; 2]; ROWS] {
    let mut sums = [[simd.splat_f64s(0.0); 2]; ROWS];
    let left = left.map(|row| &row[..right.len()]);
    let fused = S::F64_LANES > 1 || fuses();
    for (k, right) in right.iter().enumerate() {
        for (sums, left) in sums.iter_mut().zip(left) {
            let factor = simd.splat_f64s(left[k]);
            for (sum, right) in sums.iter_mut().zip([right[at], right[at + 1]]) {
                *sum = match fused {
                    true => simd.mul_add_f64s(factor, right, *sum),
                    false => simd.mul_add_e_f64s(factor, right, *sum),
                };
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::factorize::kernel::block_ops::widen;
    use crate::factorize::kernel::rng::Stream;
    use crate::simd::{SimdLevel, testing::at_level};

    #[test]
    fn products_are_those_of_the_definition_at_every_level() {
        let mut fresh = Stream::new(3, "gemm");
        for (rows, a, b) in [(1, 1, 1), (300, 40, 17), (700, 103, 64)] {
            let (x, y) = (fresh.gaussian(rows, a), fresh.gaussian(rows, b));
            let (wide, other) = (widen(x.as_ref()), widen(fresh.gaussian(a, b).as_ref()));
            let by = |level| {
                at_level(level, || {
                    (cross_gram(x.as_ref(), y.as_ref()), product(wide.as_ref(), other.as_ref()))
                })
            };
            let (crossed, out) = by(SimdLevel::Widest);
            let expected = wide.transpose() * widen(y.as_ref());
            assert!((&crossed - expected).norm_max() < 1e-11, "{rows} x {a} x {b}");
            assert!((&out - &wide * &other).norm_max() < 1e-11, "{rows} x {a} x {b}");
            assert!(by(SimdLevel::Portable) == (crossed.clone(), out.clone()), "{rows} x {a} x {b}");
            assert!(by(SimdLevel::Avx2) == (crossed, out), "{rows} x {a} x {b}");
        }
    }
}
