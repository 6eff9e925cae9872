//! A matrix as block Krylov uses it: by its products with thin blocks, and by what is known of its norm.

use faer::Accum;
use faer::prelude::*;

use crate::Result;
use crate::factorize::kernel::block_ops::{cross, multiply, square_sum};
use crate::factorize::kernel::passes::{Scratch, sweep};
use crate::factorize::types::Panels;

/// A matrix `[rows, cols]` as block Krylov uses it: by its products with thin blocks.
pub(crate) trait Operator: Sync {
    /// Number of rows.
    fn rows(&self) -> usize;

    /// Number of columns.
    fn cols(&self) -> usize;

    /// Multiplications that a product with one column takes.
    fn multiplications(&self) -> usize;

    /// `w = scale·M·v` and the result `scale·M^T·w` `[cols, b]`, for `v` `[cols, b]` and `w` `[rows, b]`.
    ///
    /// # Errors
    /// What reading the matrix meets.
    fn step(
        &self,
        v: MatRef<'_, f32>,
        w: MatMut<'_, f32>,
        scale: f32,
        scratch: &mut Scratch,
    ) -> Result<Mat<f32>>;
}

/// A matrix of panels itself.
pub(crate) struct Plain<'a>(pub(crate) &'a dyn Panels);

impl Operator for Plain<'_> {
    fn rows(&self) -> usize {
        self.0.rows()
    }

    fn cols(&self) -> usize {
        self.0.cols()
    }

    fn multiplications(&self) -> usize {
        self.0.rows() * self.0.cols()
    }

    fn step(
        &self,
        v: MatRef<'_, f32>,
        w: MatMut<'_, f32>,
        scale: f32,
        scratch: &mut Scratch,
    ) -> Result<Mat<f32>> {
        sweep(self.0, v, w, scale, scratch)
    }
}

/// What is known of a matrix's squared Frobenius norm.
pub(crate) enum Norm {
    /// The square itself, which is neither zero nor infinite.
    Known(f64),
    /// Products with random columns, from which what lies outside a basis is estimated without bias.
    Probed(Probe),
}

/// Products of a matrix with independent standard normal columns.
pub(crate) struct Probe {
    /// `P`, `[cols, p]`.
    pub(crate) columns: Mat<f32>,
    /// `M·P`, `[rows, p]`.
    pub(crate) products: Mat<f32>,
}

impl Probe {
    /// An estimate of `||M||^2`.
    pub(crate) fn norm2(&self) -> f64 {
        self.outside(Mat::new().as_ref(), Mat::new().as_ref(), 1.0)
    }

    /// An estimate of `||scale·M·(I - V·V^T)||^2`, for an orthonormal `V` `[cols, d]` that does not depend on the
    /// probe and `W = scale·M·V` `[rows, d]` (Meyer, Musco, Musco and Woodruff, *Hutch++: optimal stochastic trace
    /// estimation*, 2021).
    pub(crate) fn outside(&self, v: MatRef<'_, f32>, w: MatRef<'_, f32>, scale: f32) -> f64 {
        let mut rest = &self.products * faer::Scale(scale);
        if w.ncols() > 0 {
            let inside = cross(v, self.columns.as_ref());
            multiply(rest.as_mut(), Accum::Add, w, inside.as_ref(), -1.0);
        }
        let sum =
            rest.col_iter().map(|column| column.try_as_col_major().map_or(0.0, |c| square_sum(c.as_slice())));
        sum.sum::<f64>() / self.columns.ncols().max(1) as f64
    }
}
