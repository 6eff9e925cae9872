//! The error of factors as they are stored.

use faer::linalg::matmul::matmul;
use faer::prelude::*;
use faer::{Accum, Par};
use rayon::prelude::*;

use crate::factorize::kernel::tiling::{panel_rows, pieces};
use crate::factorize::types::{Factors, Panels};
use crate::{Error, Result};

/// Rows whose product is compared at a time.
const ROWS: usize = 64;

/// What one pass over a delta measures, as squared Frobenius norms.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Residual {
    /// `||delta||^2`.
    pub norm2: f64,
    /// `||delta - left·right||^2`.
    pub residual2: f64,
}

/// `||delta||_F^2` and `||delta - left·right||_F^2` for `left` `[m, k]` and `right` `[k, n]`, both row-major, in one
/// pass. Sums are in f64.
///
/// # Errors
/// [`Kind::Unexpected`](crate::Kind::Unexpected) if the lengths do not fit the delta; any error from visiting it.
pub fn residual(delta: &dyn Panels, left: &[f32], right: &[f32]) -> Result<Residual> {
    let (m, n) = (delta.rows(), delta.cols());
    let k = left.len().checked_div(m).unwrap_or(0);
    if left.len() != m * k || right.len() != k * n {
        return Err(Error::unexpected(format!("the factors do not fit a matrix of {m} x {n}")));
    }
    let left = MatRef::from_row_major_slice(left, m, k);
    let right = MatRef::from_row_major_slice(right, k, n);
    let parts: Vec<_> = pieces(0..m, panel_rows(m, n).1).collect();
    let sum = |rows: std::ops::Range<usize>| -> Result<[f64; 2]> {
        let mut sum = [0.0; 2];
        let left = left.subrows(rows.start, rows.len());
        delta.visit(rows, &mut |p| {
            for part in pieces(0..p.nrows(), ROWS) {
                let (p, left) = (p.subrows(part.start, part.len()), left.subrows(part.start, part.len()));
                let squares = squares(p, left, right);
                (sum[0], sum[1]) = (sum[0] + squares[0], sum[1] + squares[1]);
            }
            Ok(())
        })?;
        Ok(sum)
    };
    let sums = parts.into_par_iter().with_max_len(1).map(sum).collect::<Result<Vec<_>>>()?;
    let (norm2, residual2) = sums.iter().fold((0.0, 0.0), |(n, r), s| (n + s[0], r + s[1]));
    Ok(Residual { norm2, residual2 })
}

fn squares(p: MatRef<'_, f32>, left: MatRef<'_, f32>, right: MatRef<'_, f32>) -> [f64; 2] {
    // Row-major like the panel, so that both are read in memory order.
    let mut values = vec![0f32; p.nrows() * p.ncols()];
    let mut product = MatMut::from_row_major_slice_mut(&mut values, p.nrows(), p.ncols());
    matmul(product.rb_mut(), Accum::Replace, left, right, 1.0, Par::Seq);
    let mut sums = [0.0; 2];
    for i in 0..p.nrows() {
        for (product, value) in product.rb().row(i).iter().zip(p.row(i).iter()) {
            sums[0] += f64::from(*value).powi(2);
            sums[1] += f64::from(value - product).powi(2);
        }
    }
    sums
}

/// The squared error of factors after rounding, without a pass over the delta: `stored_left` `[m, k]` and
/// `stored_right` `[k, n]` are `factors` rounded to bf16 or f16, and `norm2` is `||delta||_F^2`.
///
/// It is what the factors miss, `norm2 - captured`, plus the cost of rounding, `||B'·A' - B·A||^2`. The columns of `B`
/// and the rows of `A` are orthogonal, and those of a singular value `s` have the squared norm `s`; so to first order
/// the cost is the sum of `s` times the squared errors of its column and its row. The neglected term, the product of
/// two independent roundings, is as small beside that as their correlation. The first difference cancels where little
/// is missing: below `(3e-3)^2·norm2`, measure the [`residual`].
///
/// # Errors
/// [`Kind::Unexpected`](crate::Kind::Unexpected) if the lengths do not match.
pub fn stored_error(factors: &Factors, stored_left: &[f32], stored_right: &[f32], norm2: f64) -> Result<f64> {
    let same = stored_left.len() == factors.left.len() && stored_right.len() == factors.right.len();
    if !same || factors.singular_values.len() < factors.rank {
        return Err(Error::unexpected("the stored factors are not those of the module"));
    }
    let missed = (norm2 - factors.captured).max(0.0);
    let k = factors.rank;
    if k == 0 {
        return Ok(missed);
    }
    let squared = |stored: &f32, exact: &f32| f64::from(stored - exact).powi(2);
    let mut errors = vec![0.0; k];
    for (stored, exact) in stored_left.chunks_exact(k).zip(factors.left.chunks_exact(k)) {
        errors.iter_mut().zip(stored.iter().zip(exact)).for_each(|(sum, (s, e))| *sum += squared(s, e));
    }
    let n = factors.right.len() / k;
    let rows = stored_right.chunks_exact(n.max(1)).zip(factors.right.chunks_exact(n.max(1)));
    for (sum, (stored, exact)) in errors.iter_mut().zip(rows) {
        *sum += stored.iter().zip(exact).map(|(s, e)| squared(s, e)).sum::<f64>();
    }
    let rounding: f64 = errors.iter().zip(&factors.singular_values).map(|(error, s)| error * s).sum();
    Ok(missed + rounding)
}
