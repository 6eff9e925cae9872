//! Orthonormal blocks, robust to loss of rank.
//!
//! A block is projected against the basis and orthonormalized by the eigenvectors of its f64 Gram matrix (SVQB:
//! Stathopoulos and Wu, *A block orthogonalization procedure with constant synchronization requirements*, 2002), until
//! it no longer changes. Unlike Cholesky-QR this cannot break down: directions that are only rounding noise show up as
//! small eigenvalues and are replaced by fresh random ones.

use faer::prelude::*;
use faer::{Accum, ColRef};
use rayon::prelude::*;

use crate::Result;
use crate::factorize::kernel::arithmetic::Arithmetic;
use crate::factorize::kernel::block_ops::{narrow, square_sum};
use crate::factorize::kernel::rng::Stream;

/// Projection leaves about 1e-7 (the rounding of f32) of a column that is already in the span of the basis.
const SPENT: f64 = 1e-6;
/// Eigenvalues of the Gram matrix of unit columns, relative to the largest: the square of what f32 can still resolve.
const DEPENDENT: f64 = 1e-13;
/// A block of unit columns whose Gram matrix has no eigenvalue below this share of the largest is hardly scaled up.
const EVEN: f64 = 1e-2;
/// A block whose Gram matrix is this close to the identity is orthonormal to f32 after one more correction.
const NEARLY: f64 = 1e-3;

/// Makes `block` `[n, b]` orthonormal, and orthogonal to the orthonormal `basis` `[n, d]`, with `d + b <= n`. If the
/// block overlaps the basis, most of the overlap must be with its last `near` columns: orthogonality in f32 takes two
/// projections, and the first is against those only. Returns how many of the block's directions were spent (already in
/// the span of the basis) and were replaced by random ones.
///
/// # Errors
/// [`Kind::Input`](crate::Kind::Input) if the block holds NaN.
pub fn orthonormalize(
    basis: MatRef<'_, f32>,
    near: usize,
    block: &mut Mat<f32>,
    fresh: &mut Stream,
) -> Result<usize> {
    orthonormalize_by(Arithmetic::Native, basis, near, block, fresh)
}

/// [`orthonormalize`], with the products of `by`.
pub(crate) fn orthonormalize_by(
    by: Arithmetic,
    basis: MatRef<'_, f32>,
    near: usize,
    block: &mut Mat<f32>,
    fresh: &mut Stream,
) -> Result<usize> {
    let mut spent = project_first(by, basis, near.min(basis.ncols()), block, fresh);
    for _ in 0..6 {
        let gram = unit_gram(by, block);
        let off = distance_from_identity(gram.as_ref());
        if off < 1e-6 {
            break;
        }
        let (values, vectors) = by.eigen(gram.as_ref(), gram.ncols())?;
        let floor = values.first().copied().unwrap_or(0.0) * DEPENDENT;
        let full = values.iter().take_while(|v| **v > floor).count();
        let mut c = vectors;
        for (j, value) in values.iter().enumerate() {
            let factor = if j < full { 1.0 / value.sqrt() } else { 0.0 };
            c.col_mut(j).iter_mut().for_each(|x| *x *= factor);
        }
        let mut better = Mat::zeros(block.nrows(), block.ncols());
        by.multiply(better.as_mut(), Accum::Replace, block.as_ref(), narrow(c.as_ref()).as_ref(), 1.0);
        *block = better;
        for j in full..block.ncols() {
            fresh.fill(block.col_as_slice_mut(j));
        }
        spent += block.ncols() - full;
        if off < NEARLY {
            break;
        }
        // Scaling up small remainders also scaled up what was left of the basis in them.
        let scaled_up = values.last().is_none_or(|last| *last < EVEN * values[0]);
        if scaled_up || by == Arithmetic::Native {
            project(by, basis, block);
        }
    }
    Ok(spent.min(block.ncols()))
}

/// Projects twice and replaces the columns of which nothing is left. Returns their number.
fn project_first(
    by: Arithmetic,
    basis: MatRef<'_, f32>,
    near: usize,
    block: &mut Mat<f32>,
    fresh: &mut Stream,
) -> usize {
    let before = norms(block);
    project(by, basis.subcols(basis.ncols() - near, near), block);
    project(by, basis, block);
    let mut spent = 0;
    for (j, (before, after)) in before.into_iter().zip(norms(block)).enumerate() {
        if after <= SPENT * before || after < f64::from(f32::MIN_POSITIVE) {
            fresh.fill(block.col_as_slice_mut(j));
            spent += 1;
        }
    }
    if spent > 0 {
        project(by, basis, block);
    }
    spent
}

/// `block -= basis·basis^T·block`.
fn project(by: Arithmetic, basis: MatRef<'_, f32>, block: &mut Mat<f32>) {
    if basis.ncols() > 0 {
        let c = by.cross(basis, block.as_ref());
        by.multiply(block.as_mut(), Accum::Add, basis, c.as_ref(), -1.0);
    }
}

/// Scales the columns to unit length, to f32, and returns their Gram matrix.
fn unit_gram(by: Arithmetic, block: &mut Mat<f32>) -> Mat<f64> {
    block.as_mut().par_col_iter_mut().for_each(|column| {
        let norm = norm(column.rb());
        if norm > 0.0 {
            // A single reciprocal could overflow if the column is tiny.
            let (half, rest) = (norm.sqrt().recip() as f32, (norm * norm.sqrt().recip()).recip() as f32);
            column.iter_mut().for_each(|x| *x = *x * half * rest);
        }
    });
    by.cross_gram(block.as_ref(), block.as_ref())
}

fn norms(block: &Mat<f32>) -> Vec<f64> {
    block.par_col_iter().map(norm).collect()
}

fn norm(column: ColRef<'_, f32>) -> f64 {
    column.try_as_col_major().map_or(0.0, |column| square_sum(column.as_slice())).sqrt()
}

fn distance_from_identity(gram: MatRef<'_, f64>) -> f64 {
    let side = gram.nrows();
    let deviation = |i, j| (gram[(i, j)] - f64::from(u8::from(i == j))).abs();
    (0..side).flat_map(|j| (0..side).map(move |i| (i, j))).map(|(i, j)| deviation(i, j)).fold(0.0, f64::max)
}

/// To make a block `[n, block]` orthogonal to at most `most` columns: the block, its copy, its better and partial
/// Gram matrices.
pub(crate) fn orthogonal_bytes(n: usize, most: usize, block: usize) -> usize {
    4 * 4 * n * block + 17 * 8 * most * block
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::factorize::kernel::block_ops::cross_gram;

    fn off(basis: &Mat<f32>, block: &Mat<f32>) -> f64 {
        let inside = distance_from_identity(cross_gram(block.as_ref(), block.as_ref()).as_ref());
        let across = cross_gram(basis.as_ref(), block.as_ref());
        across.norm_max().max(inside)
    }

    #[test]
    fn dependent_columns_are_replaced() {
        let mut fresh = Stream::new(1, "test");
        let mut basis = fresh.gaussian(300, 20);
        assert_eq!(orthonormalize(Mat::zeros(300, 0).as_ref(), 0, &mut basis, &mut fresh).unwrap(), 0);
        // Two columns of the basis, two equal ones, a zero one, and pairs that differ by 1e-5.
        let mut block = fresh.gaussian(300, 8);
        for i in 0..300 {
            block[(i, 0)] = basis[(i, 3)];
            block[(i, 1)] = 1e6 * basis[(i, 4)];
            block[(i, 3)] = block[(i, 2)];
            block[(i, 4)] = 0.0;
            block[(i, 6)] = block[(i, 5)] + 1e-5 * block[(i, 6)];
        }
        assert_eq!(orthonormalize(basis.as_ref(), 20, &mut block, &mut fresh).unwrap(), 4);
        assert!(off(&basis, &block) < 1e-6, "{}", off(&basis, &block));
    }

    #[test]
    fn a_basis_can_be_filled_up() {
        let mut fresh = Stream::new(2, "test");
        let mut basis = fresh.gaussian(40, 30);
        orthonormalize(Mat::zeros(40, 0).as_ref(), 0, &mut basis, &mut fresh).unwrap();
        let mut rest = fresh.gaussian(40, 10);
        orthonormalize(basis.as_ref(), 0, &mut rest, &mut fresh).unwrap();
        assert!(off(&basis, &rest) < 2e-6, "{}", off(&basis, &rest));
    }
}
