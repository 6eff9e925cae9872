//! Linear algebra on thin blocks `[long, few]` in f32 and on small squares in f64.

use std::ops::Range;

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack, StackReq};
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::linalg::matmul::matmul;
use faer::prelude::*;
use faer::traits::ComplexField;
use faer::{Accum, Par, Spec};
use rayon::prelude::*;

use crate::factorize::kernel::tiling::{chunks, pieces, split_rows};
use crate::{Error, Result};

/// Values of a block that are widened to f64 at a time: few enough for the second-level cache.
const WIDENED: usize = 1 << 15;

/// `x^T·y` `[a, b]` in f64 for `x` `[rows, a]` and `y` `[rows, b]`.
///
/// In f64 because singular values below 3e-4 of the largest are lost in an f32 Gram matrix, which squares them.
pub fn cross_gram(x: MatRef<'_, f32>, y: MatRef<'_, f32>) -> Mat<f64> {
    let partial = |rows: Range<usize>| {
        let mut sum = Mat::<f64>::zeros(x.ncols(), y.ncols());
        for part in pieces(rows, (WIDENED / x.ncols().max(1)).max(64)) {
            let left = widen(x.subrows(part.start, part.len()));
            let right = widen(y.subrows(part.start, part.len()));
            matmul(sum.as_mut(), Accum::Add, left.transpose(), &right, 1.0, Par::Seq);
        }
        sum
    };
    sum_of_chunks(x.nrows(), (x.ncols(), y.ncols()), partial)
}

/// The sum `[a, b]` of what `partial` returns for each chunk of the rows, added in order.
pub(crate) fn sum_of_chunks<T: ComplexField + Send>(
    rows: usize,
    (a, b): (usize, usize),
    partial: impl Fn(Range<usize>) -> Mat<T> + Send + Sync,
) -> Mat<T> {
    let sums: Vec<_> = chunks(rows).into_par_iter().with_max_len(1).map(partial).collect();
    let mut total = Mat::zeros(a, b);
    for sum in sums {
        total += sum;
    }
    total
}

/// `a·b` in f64, on one thread: faer's operators use as many as there are.
pub(crate) fn product(a: MatRef<'_, f64>, b: MatRef<'_, f64>) -> Mat<f64> {
    let mut out = Mat::zeros(a.nrows(), b.ncols());
    matmul(out.as_mut(), Accum::Replace, a, b, 1.0, Par::Seq);
    out
}

/// The sum of squares in f64, in lanes so that it can be vectorized: the order depends only on the length.
pub fn square_sum(values: &[f32]) -> f64 {
    const LANES: usize = 16;
    let mut sums = [0f64; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for chunk in whole {
        for (sum, &v) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(v) * f64::from(v);
        }
    }
    let rest: f64 = rest.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
    sums.iter().sum::<f64>() + rest
}

/// `mat` in f64.
pub(crate) fn widen(mat: MatRef<'_, f32>) -> Mat<f64> {
    let mut out = Mat::zeros(mat.nrows(), mat.ncols());
    for (to, from) in out.col_iter_mut().zip(mat.col_iter()) {
        to.iter_mut().zip(from.iter()).for_each(|(to, from)| *to = f64::from(*from));
    }
    out
}

/// `mat` in f32.
pub(crate) fn narrow(mat: MatRef<'_, f64>) -> Mat<f32> {
    Mat::from_fn(mat.nrows(), mat.ncols(), |i, j| mat[(i, j)] as f32)
}

/// `out = x·c` for `x` `[rows, a]` and `c` `[a, b]`, or `out += alpha·x·c`, as `accum` says.
pub(crate) fn multiply(
    out: MatMut<'_, f32>,
    accum: Accum,
    x: MatRef<'_, f32>,
    c: MatRef<'_, f32>,
    alpha: f32,
) {
    let ranges = chunks(x.nrows());
    let tasks: Vec<_> = ranges.iter().cloned().zip(split_rows(out, &ranges)).collect();
    tasks.into_par_iter().with_max_len(1).for_each(|(rows, out)| {
        matmul(out, accum, x.subrows(rows.start, rows.len()), c, alpha, Par::Seq);
    });
}

/// `x^T·y` `[a, b]` in f32, for projections that are repeated anyway.
pub(crate) fn cross(x: MatRef<'_, f32>, y: MatRef<'_, f32>) -> Mat<f32> {
    let partial = |rows: Range<usize>| {
        let mut sum = Mat::<f32>::zeros(x.ncols(), y.ncols());
        let (x, y) = (x.subrows(rows.start, rows.len()), y.subrows(rows.start, rows.len()));
        matmul(sum.as_mut(), Accum::Replace, x.transpose(), y, 1.0, Par::Seq);
        sum
    };
    sum_of_chunks(x.nrows(), (x.ncols(), y.ncols()), partial)
}

/// Appends the columns of `block`, within the capacity of `to`.
pub(crate) fn append(to: &mut Mat<f32>, block: MatRef<'_, f32>) {
    let old = to.ncols();
    to.resize_with(block.nrows(), old + block.ncols(), |_, _| 0.0);
    to.as_mut().subcols_mut(old, block.ncols()).copy_from(block);
}

/// Bytes that [`eigen`] needs besides its argument, for a square of `side`.
pub(crate) fn eigen_bytes(side: usize) -> usize {
    scratch(side, ComputeEigenvectors::Yes).unaligned_bytes_required() + 2 * side * side * 8
}

/// Bytes that [`eigenvalues`] needs besides its argument, for a square of `side`.
pub(crate) fn eigenvalues_bytes(side: usize) -> usize {
    scratch(side, ComputeEigenvectors::No).unaligned_bytes_required() + 2 * side * 8
}

fn scratch(side: usize, compute: ComputeEigenvectors) -> StackReq {
    self_adjoint_evd_scratch::<f64>(side, compute, Par::Seq, Spec::default())
}

/// The eigenvalues, descending, and eigenvectors (columns in the same order) of the symmetric `square`, whose lower
/// triangle is read. On one thread: the parallel solver splits its sums by the number of threads.
///
/// # Errors
/// [`Kind::Input`](crate::Kind::Input) if the solver does not converge, for example with NaN.
pub fn eigen(square: MatRef<'_, f64>) -> Result<(Vec<f64>, Mat<f64>)> {
    let side = square.nrows();
    let mut vectors = Mat::zeros(side, side);
    let values = solve(square, Some(vectors.as_mut()))?;
    // faer sorts them in ascending order.
    for j in 0..side / 2 {
        for i in 0..side {
            let kept = vectors[(i, j)];
            vectors[(i, j)] = vectors[(i, side - 1 - j)];
            vectors[(i, side - 1 - j)] = kept;
        }
    }
    Ok((values, vectors))
}

/// Only the eigenvalues of the symmetric `square`, in descending order.
pub(crate) fn eigenvalues(square: MatRef<'_, f64>) -> Result<Vec<f64>> {
    solve(square, None)
}

fn solve(square: MatRef<'_, f64>, vectors: Option<MatMut<'_, f64>>) -> Result<Vec<f64>> {
    let side = square.nrows();
    let compute = if vectors.is_some() { ComputeEigenvectors::Yes } else { ComputeEigenvectors::No };
    let mut memory = MemBuffer::new(scratch(side, compute));
    let mut values = Diag::<f64>::zeros(side);
    let stack = MemStack::new(&mut memory);
    self_adjoint_evd(square, values.as_mut(), vectors, Par::Seq, stack, Spec::default()).map_err(|_| {
        Error::input("the eigenvalues do not converge: the difference may hold infinities or NaN")
    })?;
    let mut values: Vec<f64> = values.column_vector().iter().copied().collect();
    values.reverse();
    Ok(values)
}
/// Cost of an eigensolver for a square of side `s`, in f32 flops of a product on all threads.
pub(crate) fn eigen_flops(s: f64) -> f64 {
    // Some 9 s^3 in f64, half of them matrix-vector products, on one thread: measured, 2 threads, sides of 500 to 2500.
    25.0 * s.powi(3)
}
