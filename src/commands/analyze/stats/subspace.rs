//! Leading singular subspaces: bases that are orthonormal to f32 precision, the angles between them, and the energy
//! that one matrix has in the span of another's basis.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::matmul::matmul;
use faer::linalg::triangular_solve::solve_lower_triangular_in_place;
use faer::prelude::*;
use faer::{Accum, Par, Spec};

use crate::commands::analyze::record::Angles;
use crate::factorize::kernel::block_ops;
use crate::factorize::types::Factors;
use crate::{Error, Result};

/// Number of vectors per projection pass, which bounds the memory.
const WIDTH: usize = 128;

/// Singular vectors with values below this share of the largest are rounding noise in f32 and are left out.
const NOISE: f64 = 1e-5;

/// Maximum number of cosines in the record.
const LISTED: usize = 8;

/// The converged leading singular vectors of a matrix.
#[derive(Clone, Debug)]
pub struct Basis {
    /// Left singular vectors, `[m, k]`, orthonormal.
    pub left: Mat<f32>,
    /// Right singular vectors, `[n, k]`, orthonormal.
    pub right: Mat<f32>,
    /// Singular values that have converged, descending; at least `k`.
    pub values: Vec<f64>,
}

impl Basis {
    /// Makes a basis from the factors of a matrix `[m, n]`, whose columns and rows are singular vectors times the
    /// square roots of their values.
    ///
    /// # Errors
    /// Factors that do not fit the shape, or that are too far from orthogonal to be singular vectors.
    pub fn of(factors: Factors, [m, n]: [usize; 2]) -> Result<Basis> {
        let rank = factors.rank;
        if factors.left.len() != m * rank || factors.right.len() != rank * n {
            return Err(Error::unexpected(format!("the factors do not fit a matrix of {m} x {n}")));
        }
        let floor = factors.singular_values.first().map_or(0.0, |largest| largest * NOISE);
        let k = factors.singular_values[..rank].iter().take_while(|value| **value > floor).count();
        let left = MatRef::from_row_major_slice(&factors.left, m, rank).subcols(0, k);
        let right = MatRef::from_column_major_slice(&factors.right, n, rank).subcols(0, k);
        let mut values = factors.singular_values.clone();
        values.truncate(factors.converged);
        Ok(Basis { left: orthonormal(left)?, right: orthonormal(right)?, values })
    }

    /// Number of vectors on each side.
    pub fn len(&self) -> usize {
        self.left.ncols()
    }

    /// Whether there are none, because the matrix is zero.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The sum of the squares of the `k` largest values.
    pub fn energy(&self, k: usize) -> f64 {
        self.values.iter().take(k).map(|value| value * value).sum()
    }

    /// `1 - s(k+1) / s(k)`, if both are known.
    pub fn gap(&self, k: usize) -> Option<f64> {
        let (this, next) = (self.values.get(k.checked_sub(1)?)?, self.values.get(k)?);
        (*this > 0.0).then(|| 1.0 - next / this)
    }
}

/// Makes nearly orthogonal columns orthonormal to f32 precision, such that for every `j` the first `j` span the same
/// space as before: `Q = X·L^{-T}` with the Cholesky factor `L` of their Gram matrix.
fn orthonormal(columns: MatRef<'_, f32>) -> Result<Mat<f32>> {
    let (rows, k) = (columns.nrows(), columns.ncols());
    let mut unit = columns.to_owned();
    for column in unit.col_iter_mut() {
        let norm = column.rb().iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        if norm > 0.0 {
            column.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
        }
    }
    let mut lower = block_ops::cross_gram(unit.as_ref(), unit.as_ref());
    let mut memory = MemBuffer::new(cholesky_in_place_scratch::<f64>(k, Par::Seq, Spec::default()));
    let stack = MemStack::new(&mut memory);
    cholesky_in_place(lower.as_mut(), Default::default(), Par::Seq, stack, Spec::default())
        .map_err(|_| Error::unexpected("the singular vectors are not linearly independent"))?;
    let mut inverse = Mat::<f64>::identity(k, k);
    solve_lower_triangular_in_place(lower.as_ref(), inverse.as_mut(), Par::Seq);
    let turn = Mat::from_fn(k, k, |i, j| if i <= j { inverse[(j, i)] as f32 } else { 0.0 });
    let mut out = Mat::zeros(rows, k);
    matmul(out.as_mut(), Accum::Replace, unit.as_ref(), turn.as_ref(), 1.0, Par::Seq);
    Ok(out)
}

/// The cosines between the first `k` columns of two orthonormal bases in one space, for every `k`.
pub struct Overlap {
    dimension: usize,
    cross: Mat<f64>,
}

impl Overlap {
    /// The overlap of `a` and `b`, each `[dimension, at least k]`.
    pub fn of(a: MatRef<'_, f32>, b: MatRef<'_, f32>) -> Overlap {
        Overlap { dimension: a.nrows(), cross: block_ops::cross_gram(a, b) }
    }

    /// The principal angles between the spans of the first `k` columns of each (Björck and Golub, *Numerical methods
    /// for computing angles between linear subspaces*, 1973): their cosines are the singular values of `A^T·B`. The
    /// shares of energy are passed in by the caller, who knows the matrices.
    ///
    /// # Errors
    /// Values that are not finite.
    pub fn angles(&self, k: usize, change_in_noise: f64, noise_in_change: f64) -> Result<Angles> {
        let corner = self.cross.as_ref().submatrix(0, 0, k, k);
        let mut square = Mat::<f64>::zeros(k, k);
        matmul(square.as_mut(), Accum::Replace, corner.transpose(), corner, 1.0, Par::Seq);
        let mean = (0..k).map(|i| square[(i, i)]).sum::<f64>() / k.max(1) as f64;
        let (squares, _) = block_ops::eigen(square.as_ref())?;
        Ok(Angles {
            dimension: self.dimension,
            largest_cosines: squares.iter().take(LISTED).map(|s| s.clamp(0.0, 1.0).sqrt()).collect(),
            mean_squared_cosine: mean,
            expected: k as f64 / self.dimension.max(1) as f64,
            change_in_noise,
            noise_in_change,
        })
    }
}

/// The components of a matrix `X` along the singular vectors `u`, `v` of another.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Projections {
    /// `||X^T·u||^2` for each left vector.
    pub left: Vec<f64>,
    /// `||X·v||^2` for each right vector.
    pub right: Vec<f64>,
    /// `u^T·X·v` for each pair.
    pub diagonal: Vec<f64>,
}

impl Projections {
    /// The shares of `norm2 = ||X||^2` in the spans of the first `k` vectors, left and right.
    pub fn shares(&self, k: usize, norm2: f64) -> [f64; 2] {
        [&self.left, &self.right]
            .map(|energies| if norm2 > 0.0 { energies.iter().take(k).sum::<f64>() / norm2 } else { 0.0 })
    }
}

/// Projects a matrix `X` onto the vectors of `basis`, by its products `X·v` and `X^T·u` with 128 of them at a time.
///
/// # Errors
/// Errors of the products.
pub fn project(
    times: impl Fn(MatRef<'_, f32>) -> Result<Mat<f32>>,
    transpose_times: impl Fn(MatRef<'_, f32>) -> Result<Mat<f32>>,
    basis: &Basis,
) -> Result<Projections> {
    let mut found = Projections::default();
    for start in (0..basis.len()).step_by(WIDTH) {
        let width = WIDTH.min(basis.len() - start);
        let (u, v) = (basis.left.as_ref().subcols(start, width), basis.right.as_ref().subcols(start, width));
        let across = times(v)?;
        found.right.extend(across.col_iter().map(|column| dot(column, column)));
        found.diagonal.extend(across.col_iter().zip(u.col_iter()).map(|(xv, u)| dot(xv, u)));
        drop(across);
        let down = transpose_times(u)?;
        found.left.extend(down.col_iter().map(|column| dot(column, column)));
    }
    Ok(found)
}

fn dot(a: ColRef<'_, f32>, b: ColRef<'_, f32>) -> f64 {
    a.iter().zip(b.iter()).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// An upper bound on the bytes that [`project`] needs, for a matrix `[m, n]` and `k` vectors.
pub fn projection_bytes([m, n]: [usize; 2], k: usize) -> u64 {
    // One sum for each of at most 8 groups of panels.
    (4 * k.min(WIDTH) * (m + 9 * n)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::factorize::in_memory::Held;
    use crate::factorize::kernel::{block_ops, passes};

    /// A basis for shape `[4, 3]` whose singular vectors are coordinate axes.
    fn basis(values: [f64; 2], axes: [usize; 2]) -> Basis {
        let column = |axis: usize, rows| Mat::from_fn(rows, 1, |i, _| f32::from(u8::from(i == axis)));
        let both = |rows| {
            let (a, b) = (column(axes[0], rows), column(axes[1], rows));
            Mat::from_fn(rows, 2, |i, j| if j == 0 { a[(i, 0)] } else { b[(i, 0)] })
        };
        Basis { left: both(4), right: both(3), values: values.into() }
    }

    #[test]
    fn energies_and_angles_of_axes() {
        let x = Held::new(4, 3, vec![3.0, 0.0, 0.0, 0.0, 4.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]).unwrap();
        let times = |v: MatRef<'_, f32>| passes::times(&x, v);
        let found = project(times, |u| passes::transpose_times(&x, u), &basis([2.0, 1.0], [1, 2])).unwrap();
        assert_eq!(found.left, [16.0, 0.0]);
        assert_eq!(found.right, [16.0, 0.0]);
        assert_eq!(found.diagonal, [4.0, 0.0]);
        assert_eq!(found.shares(1, 25.0), [0.64, 0.64]);
        let (a, b) = (basis([2.0, 1.0], [0, 1]), basis([2.0, 1.0], [1, 2]));
        let overlap = Overlap::of(a.left.as_ref(), b.left.as_ref());
        let (one, two) = (overlap.angles(1, 0.0, 0.0).unwrap(), overlap.angles(2, 0.0, 0.0).unwrap());
        assert_eq!((one.mean_squared_cosine, &one.largest_cosines[..]), (0.0, &[0.0][..]));
        assert_eq!((two.mean_squared_cosine, &two.largest_cosines[..]), (0.5, &[1.0, 0.0][..]));
        assert_eq!((two.expected, two.dimension), (0.5, 4));
        assert_eq!((a.gap(1), a.gap(2), a.energy(1)), (Some(0.5), None, 4.0));
    }

    #[test]
    fn columns_become_orthonormal_and_keep_their_spans() {
        let skewed = Mat::from_fn(5, 3, |i, j| if i == j { 2.0 } else { 1e-3 * (i + 2 * j) as f32 });
        let q = orthonormal(skewed.as_ref()).unwrap();
        let gram = block_ops::cross_gram(q.as_ref(), q.as_ref());
        for (i, j) in [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)] {
            assert!((gram[(i, j)] - f64::from(u8::from(i == j))).abs() < 1e-6);
        }
        // The first column has only been scaled.
        let first = skewed.col(0).norm_l2();
        assert!((0..5).all(|i| (q[(i, 0)] - skewed[(i, 0)] / first).abs() < 1e-6));
    }
}
