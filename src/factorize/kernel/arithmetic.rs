//! Two ways to do the linear algebra around the passes.

use faer::prelude::*;
use faer::{Accum, MatMut, Par, Spec};

use crate::Result;
use crate::factorize::kernel::block_ops;
use crate::factorize::kernel::fixed::{blocks, gemm, square, symmetric};

/// Whose products and eigenvalues are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arithmetic {
    /// faer's: the order of sums depends on the width of the machine's vectors.
    Native,
    /// Those of [`fixed`](super::fixed): the same bits everywhere.
    Fixed,
}

impl Arithmetic {
    /// `x^T·y` in f64.
    pub(crate) fn cross_gram(self, x: MatRef<'_, f32>, y: MatRef<'_, f32>) -> Mat<f64> {
        match self {
            Arithmetic::Native => block_ops::cross_gram(x, y),
            Arithmetic::Fixed => gemm::cross_gram(x, y),
        }
    }

    /// `x^T·y` in f32.
    pub(crate) fn cross(self, x: MatRef<'_, f32>, y: MatRef<'_, f32>) -> Mat<f32> {
        match self {
            Arithmetic::Native => block_ops::cross(x, y),
            Arithmetic::Fixed => blocks::cross(x, y),
        }
    }

    /// `out = alpha·x·c`, or `out += alpha·x·c`, as `accum` says.
    pub(crate) fn multiply(
        self,
        out: MatMut<'_, f32>,
        accum: Accum,
        x: MatRef<'_, f32>,
        c: MatRef<'_, f32>,
        alpha: f32,
    ) {
        match self {
            Arithmetic::Native => block_ops::multiply(out, accum, x, c, alpha),
            Arithmetic::Fixed => blocks::multiply(out, accum, x, c, alpha),
        }
    }

    /// `a·b` in f64.
    pub(crate) fn product(self, a: MatRef<'_, f64>, b: MatRef<'_, f64>) -> Mat<f64> {
        match self {
            Arithmetic::Native => block_ops::product(a, b),
            Arithmetic::Fixed => gemm::product(a, b),
        }
    }

    /// The eigenvalues of a symmetric square, in descending order, and at least `count` leading vectors.
    ///
    /// # Errors
    /// [`Kind::Input`](crate::Kind::Input) if the solver does not converge, for example with NaN.
    pub(crate) fn eigen(self, square: MatRef<'_, f64>, count: usize) -> Result<(Vec<f64>, Mat<f64>)> {
        match self {
            Arithmetic::Native => block_ops::eigen(square),
            Arithmetic::Fixed => symmetric::eigen(square, count),
        }
    }

    /// Only the eigenvalues of a symmetric square, in descending order.
    ///
    /// # Errors
    /// Those of [`eigen`](Self::eigen).
    pub(crate) fn eigenvalues(self, square: MatRef<'_, f64>) -> Result<Vec<f64>> {
        match self {
            Arithmetic::Native => block_ops::eigenvalues(square),
            Arithmetic::Fixed => symmetric::eigenvalues(square),
        }
    }

    /// Cholesky's lower triangular factor, with zeros above; `None` for a square that is not positive definite.
    pub(crate) fn cholesky(self, gram: MatRef<'_, f64>) -> Option<Mat<f64>> {
        use faer::dyn_stack::{MemBuffer, MemStack};
        use faer::linalg::cholesky::llt::factor::{cholesky_in_place, cholesky_in_place_scratch};
        if self == Arithmetic::Fixed {
            return square::cholesky(gram);
        }
        let d = gram.nrows();
        let mut lower = gram.to_owned();
        let scratch = cholesky_in_place_scratch::<f64>(d, Par::Seq, Spec::default());
        let mut memory = MemBuffer::new(scratch);
        let stack = MemStack::new(&mut memory);
        cholesky_in_place(lower.as_mut(), Default::default(), Par::Seq, stack, Spec::default()).ok()?;
        for j in 1..d {
            lower.col_mut(j).subrows_mut(0, j).fill(0.0);
        }
        Some(lower)
    }

    /// Solves `lower·x = right` in place.
    pub(crate) fn solve_lower(self, lower: MatRef<'_, f64>, right: MatMut<'_, f64>) {
        use faer::linalg::triangular_solve::solve_lower_triangular_in_place;
        match self {
            Arithmetic::Native => solve_lower_triangular_in_place(lower, right, Par::Seq),
            Arithmetic::Fixed => square::solve_lower(lower, right),
        }
    }

    /// Solves `lower^T·x = right` in place.
    pub(crate) fn solve_upper(self, lower: MatRef<'_, f64>, right: MatMut<'_, f64>) {
        use faer::linalg::triangular_solve::solve_upper_triangular_in_place;
        match self {
            Arithmetic::Native => solve_upper_triangular_in_place(lower.transpose(), right, Par::Seq),
            Arithmetic::Fixed => square::solve_upper(lower, right),
        }
    }
}
