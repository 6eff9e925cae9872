//! Products of tall thin blocks in f32, in the register tiles of `skinny_gemm`.

use std::ops::Range;

use faer::prelude::*;
use faer::{Accum, MatMut};
use rayon::prelude::*;

use crate::factorize::kernel::block_ops::sum_of_chunks;
use crate::factorize::kernel::skinny_gemm::{self, Strips};
use crate::factorize::kernel::tiling::{chunks, pieces, split_rows};

/// Columns of `x` that are summed before they are added to the result.
const DEPTH: usize = 192;
/// Columns of a result that a task sums at a time.
const COLUMNS: usize = 256;

/// Bytes that [`multiply`] needs besides its arguments, for blocks `[rows, a]` and `[a, columns]`.
pub(crate) fn multiply_bytes(rows: usize, a: usize, columns: usize) -> usize {
    4 * (rows * COLUMNS.min(columns.next_multiple_of(32)) + a * columns.next_multiple_of(32))
}

/// `x^T·y` `[a, b]` for `x` `[rows, a]` and `y` `[rows, b]`.
pub(crate) fn cross(x: MatRef<'_, f32>, y: MatRef<'_, f32>) -> Mat<f32> {
    sum_of_chunks(x.nrows(), (x.ncols(), y.ncols()), |rows| {
        let (x, y) = (x.subrows(rows.start, rows.len()), y.subrows(rows.start, rows.len()));
        let (mut packed, mut product) = (Strips::default(), Strips::default());
        packed.pack(y);
        product.clear(x.ncols(), y.ncols());
        skinny_gemm::multiply(x.transpose(), &packed, &mut product);
        let mut out = Mat::zeros(x.ncols(), y.ncols());
        product.unpack(out.as_mut());
        out
    })
}

/// `out = alpha·x·c` for `x` `[rows, a]` and `c` `[a, b]`, or `out += alpha·x·c`, as `accum` says.
pub(crate) fn multiply(
    out: MatMut<'_, f32>,
    accum: Accum,
    x: MatRef<'_, f32>,
    c: MatRef<'_, f32>,
    alpha: f32,
) {
    let parts: Vec<_> = pieces(0..x.ncols(), DEPTH).collect();
    let columns = pieces(0..c.ncols(), COLUMNS);
    let pack = |rows: &Range<usize>, columns: &Range<usize>| {
        let mut strips = Strips::default();
        strips.pack(c.submatrix(rows.start, columns.start, rows.len(), columns.len()));
        strips
    };
    let packed: Vec<(Range<usize>, Vec<Strips>)> = columns
        .map(|columns| {
            let strips = parts.iter().map(|rows| pack(rows, &columns)).collect();
            (columns, strips)
        })
        .collect();
    let ranges = chunks(x.nrows());
    let tasks: Vec<_> = ranges.iter().cloned().zip(split_rows(out, &ranges)).collect();
    tasks.into_par_iter().with_max_len(1).for_each(|(rows, mut out)| {
        let (mut sum, mut memory) = (Strips::default(), Vec::new());
        for (columns, strips) in &packed {
            sum.clear(rows.len(), columns.len());
            for (part, strips) in parts.iter().zip(strips) {
                let x = x.submatrix(rows.start, part.start, rows.len(), part.len());
                skinny_gemm::multiply_transposed(x.transpose(), strips, &mut sum, &mut memory);
            }
            let out = out.rb_mut().subcols_mut(columns.start, columns.len());
            match accum {
                Accum::Replace => sum.unpack_by(out, |to, from| *to = alpha * from),
                Accum::Add => sum.unpack_by(out, |to, from| *to += alpha * from),
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::factorize::kernel::rng::Stream;
    use crate::simd::{SimdLevel, testing::at_level};

    #[test]
    fn products_are_those_of_the_definition_at_every_level() {
        let mut fresh = Stream::new(3, "blocks");
        for (rows, a, b) in [(1, 1, 1), (300, 40, 17), (1030, 210, 64)] {
            let (x, y, c) = (fresh.gaussian(rows, a), fresh.gaussian(rows, b), fresh.gaussian(a, b));
            let by = |level| {
                at_level(level, || {
                    let mut out = y.clone();
                    multiply(out.as_mut(), Accum::Add, x.as_ref(), c.as_ref(), -0.5);
                    (cross(x.as_ref(), y.as_ref()), out)
                })
            };
            let (crossed, out) = by(SimdLevel::Widest);
            let size = ((rows + a) as f32).sqrt();
            assert!((&crossed - x.transpose() * &y).norm_max() < 1e-5 * size, "{rows} x {a} x {b}");
            assert!(
                (&out - (&y - &x * &c * faer::Scale(0.5))).norm_max() < 1e-5 * size,
                "{rows} x {a} x {b}"
            );
            assert!(by(SimdLevel::Portable) == (crossed.clone(), out.clone()), "{rows} x {a} x {b}");
            assert!(by(SimdLevel::Avx2) == (crossed, out), "{rows} x {a} x {b}");
        }
    }
}
