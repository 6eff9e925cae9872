//! A matrix as block Krylov uses it: by its products with thin blocks, and by what is known of its norm.

use std::sync::{Mutex, PoisonError};

use faer::Accum;
use faer::prelude::*;

use crate::Result;
use crate::factorize::kernel::arithmetic::Arithmetic;
use crate::factorize::kernel::block_ops::{cross, multiply, square_sum};
use crate::factorize::kernel::bytes::block;
use crate::factorize::kernel::bytes::passes::{self, ByteScratch, Codes, Step};
use crate::factorize::kernel::passes::{Scratch, sweep};
use crate::factorize::precision::{Missed, Split};
use crate::factorize::types::{Panels, Request};

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

    /// Whose linear algebra goes with its products.
    fn arithmetic(&self) -> Arithmetic;

    /// What it multiplies too much when it multiplies the block `v` `[cols, b]`: `v' - v`, if it rounds to `v'`.
    fn rounding_error(&self, _v: MatRef<'_, f32>) -> Option<Mat<f32>> {
        None
    }

    /// Whether its products are exact enough for a basis outside of which `outside2` is left, as squared norms of the
    /// matrix itself.
    fn is_enough(&self, outside2: f64) -> bool;
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

    fn arithmetic(&self) -> Arithmetic {
        Arithmetic::Native
    }

    fn is_enough(&self, _: f64) -> bool {
        true
    }
}

/// A matrix in bytes.
pub(crate) struct Quantized<'a> {
    codes: &'a dyn Codes,
    norm2: f64,
    request: &'a Request,
    /// Whether it has to be enough.
    must: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    scratch: ByteScratch,
    /// Of all blocks so far: the squared norm of what bytes miss, and the number of columns.
    missed: (f64, usize),
}

impl<'a> Quantized<'a> {
    /// The matrix of `codes`, which are those of a matrix of squared norm `norm2`; if they `must` they are enough.
    pub(crate) fn new(codes: &'a dyn Codes, norm2: f64, request: &'a Request, must: bool) -> Quantized<'a> {
        Quantized { codes, norm2, request, must, state: Mutex::default() }
    }
}

impl Operator for Quantized<'_> {
    fn rows(&self) -> usize {
        self.codes.rows()
    }

    fn cols(&self) -> usize {
        self.codes.cols()
    }

    fn multiplications(&self) -> usize {
        self.codes.rows() * self.codes.cols()
    }

    fn step(&self, v: MatRef<'_, f32>, w: MatMut<'_, f32>, scale: f32, _: &mut Scratch) -> Result<Mat<f32>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Step { z, missed2 } = passes::sweep(self.codes, v, w, scale, &mut state.scratch)?;
        state.missed.0 += missed2;
        state.missed.1 += v.ncols();
        Ok(z)
    }

    fn arithmetic(&self) -> Arithmetic {
        Arithmetic::Fixed
    }

    fn rounding_error(&self, v: MatRef<'_, f32>) -> Option<Mat<f32>> {
        Some(block::rounding_error(v))
    }

    fn is_enough(&self, outside2: f64) -> bool {
        let (missed2, columns) = self.state.lock().unwrap_or_else(PoisonError::into_inner).missed;
        let column2 = missed2 / columns.max(1) as f64;
        let missed = Missed { delta2: self.codes.error2(), column2 };
        let shape = [self.codes.rows(), self.codes.cols()];
        let captured = (self.norm2 - outside2).max(0.0);
        let split = Split { shape, rank: self.request.rank, captured, outside: outside2 };
        self.must || missed.is_little(self.request.tolerance, &split)
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
