//! The best right factor for a left one that is stored already, and the errors of both.

use faer::Accum;
use faer::prelude::*;

use crate::factorize::kernel::block_ops::{cross_gram, eigen, multiply, narrow, product};
use crate::factorize::kernel::passes::transpose_times;
use crate::factorize::residual;
use crate::factorize::types::Panels;
use crate::factorize::weighted::directions::probe;
use crate::factorize::weighted::root::Root;
use crate::{Error, Result};

/// Below this share of a norm an error is measured by itself: as the difference of two squares it has lost its digits.
const MEASURE_BELOW: f64 = 3e-3;

/// Directions of the left factor below this share of the largest are taken as its rounding.
const DEPENDENT: f64 = 1e-9;

/// The right factor for a given left one.
#[derive(Clone, Debug)]
pub struct Projected {
    /// `A` = `(B^T·B)^-1·B^T·D`, `[rank, n]` row-major: the best for this `B`, by whatever norm.
    pub right: Vec<f32>,
    /// `B^T·B`.
    gram: Mat<f64>,
    /// What `B·A` captures of the norms' squares.
    captured: Errors,
}

/// Squares of two norms.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Errors {
    /// Of the weight: `||.||_F^2`.
    pub weights2: f64,
    /// Of the outputs: `||.·R^T||_F^2`.
    pub outputs2: f64,
}

/// Projects `delta` `[m, n]` onto the columns of `left` `[m, rank]` (row-major), in one pass.
///
/// # Errors
/// A length that does not fit; what visiting the delta meets.
pub fn project(delta: &dyn Panels, root: &Root, left: &[f32], rank: usize) -> Result<Projected> {
    let (m, n) = (delta.rows(), delta.cols());
    if left.len() != m * rank {
        return Err(Error::unexpected(format!("the left factor does not fit a matrix of {m} x {n}")));
    }
    if rank == 0 {
        return Ok(Projected { right: Vec::new(), gram: Mat::new(), captured: Errors::default() });
    }
    // Column by column, as products want it.
    let left = MatRef::from_row_major_slice(left, m, rank).to_owned();
    let gram = cross_gram(left.as_ref(), left.as_ref());
    let inverse = inverse(gram.as_ref())?;
    let products = transpose_times(delta, left.as_ref())?;
    let outputs = root.times(products.as_ref());
    let captured = Errors {
        weights2: paired(inverse.as_ref(), cross_gram(products.as_ref(), products.as_ref()).as_ref()),
        outputs2: paired(inverse.as_ref(), cross_gram(outputs.as_ref(), outputs.as_ref()).as_ref()),
    };
    drop(outputs);
    let mut right = vec![0f32; rank * n];
    // Column-major [n, rank] is row-major [rank, n].
    let out = MatMut::from_column_major_slice_mut(&mut right, n, rank);
    multiply(out, Accum::Replace, products.as_ref(), narrow(inverse.as_ref()).as_ref(), 1.0);
    Ok(Projected { right, gram, captured })
}

/// The pseudo-inverse of a Gram matrix, by way of one with a diagonal of ones.
fn inverse(gram: MatRef<'_, f64>) -> Result<Mat<f64>> {
    let k = gram.nrows();
    let unit = |j: usize| if gram[(j, j)] > 0.0 { gram[(j, j)].sqrt().recip() } else { 0.0 };
    let units: Vec<f64> = (0..k).map(unit).collect();
    let (values, vectors) = eigen(Mat::from_fn(k, k, |i, j| gram[(i, j)] * units[i] * units[j]).as_ref())?;
    let floor = values.first().copied().unwrap_or(0.0) * DEPENDENT;
    let reciprocal = |j: usize| if values[j] > floor { values[j].recip() } else { 0.0 };
    let scaled = Mat::from_fn(k, k, |i, j| vectors[(i, j)] * units[i]);
    let right = Mat::from_fn(k, k, |i, j| scaled[(i, j)] * reciprocal(j));
    Ok(product(right.as_ref(), scaled.transpose()))
}

/// `trace(a·b)` of symmetric matrices.
fn paired(a: MatRef<'_, f64>, b: MatRef<'_, f64>) -> f64 {
    (0..a.ncols()).map(|j| (0..a.nrows()).map(|i| a[(i, j)] * b[(i, j)]).sum::<f64>()).sum()
}

impl Projected {
    /// The squared errors of the factors as they are stored: `left` as it was projected onto, `right` as it was
    /// rounded. `norms` are those of `delta` itself.
    ///
    /// An error that is a small difference of large norms is measured by a further pass: of the weights exactly, of the
    /// outputs on random inputs (to some 2 %).
    ///
    /// # Errors
    /// What visiting the delta meets.
    pub fn errors(
        &self,
        delta: &dyn Panels,
        root: &Root,
        (left, right): (&[f32], &[f32]),
        norms: Errors,
        (module, seed): (&str, u64),
    ) -> Result<Errors> {
        let rounding = self.rounding(root, right, delta.cols());
        let error = |norm2: f64, captured: f64, rounding: f64| (norm2 - captured).max(0.0) + rounding;
        let mut errors = Errors {
            weights2: error(norms.weights2, self.captured.weights2, rounding.weights2),
            outputs2: error(norms.outputs2, self.captured.outputs2, rounding.outputs2),
        };
        let small = |error2: f64, norm2: f64| error2 < MEASURE_BELOW * MEASURE_BELOW * norm2;
        if small(errors.weights2, norms.weights2) {
            errors.weights2 = residual::residual(delta, left, right)?.residual2;
        }
        if small(errors.outputs2, norms.outputs2) {
            errors.outputs2 = measured(delta, root, (left, right), (module, seed))?;
        }
        Ok(errors)
    }

    /// What rounding the right factor costs: it is orthogonal to what the projection leaves.
    fn rounding(&self, root: &Root, right: &[f32], n: usize) -> Errors {
        let rank = self.gram.nrows();
        if rank == 0 {
            return Errors::default();
        }
        let difference: Vec<f32> =
            right.iter().zip(&self.right).map(|(stored, exact)| stored - exact).collect();
        let difference = MatRef::from_column_major_slice(&difference, n, rank);
        let outputs = root.times(difference);
        Errors {
            weights2: paired(self.gram.as_ref(), cross_gram(difference, difference).as_ref()),
            outputs2: paired(self.gram.as_ref(), cross_gram(outputs.as_ref(), outputs.as_ref()).as_ref()),
        }
    }
}

/// `||(delta - left·right)·R^T||^2` from products with random columns.
fn measured(
    delta: &dyn Panels,
    root: &Root,
    (left, right): (&[f32], &[f32]),
    (module, seed): (&str, u64),
) -> Result<f64> {
    let (m, n) = (delta.rows(), delta.cols());
    let k = left.len() / m.max(1);
    let mut probe = probe(delta, root, &format!("{module} error"), seed)?;
    let inner = root.transpose_times(probe.columns.as_ref());
    let right = MatRef::from_row_major_slice(right, k, n).to_owned();
    let mut through = Mat::zeros(k, inner.ncols());
    multiply(through.as_mut(), Accum::Replace, right.as_ref(), inner.as_ref(), 1.0);
    let left = MatRef::from_row_major_slice(left, m, k);
    multiply(probe.products.as_mut(), Accum::Add, left, through.as_ref(), -1.0);
    Ok(probe.norm2())
}
