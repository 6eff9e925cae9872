//! `D·R^T`: by its products, or, of a diagonal `R`, as panels.

use std::ops::Range;

use faer::prelude::*;

use crate::Result;
use crate::factorize::backend::operator::Operator;
use crate::factorize::kernel::arithmetic::Arithmetic;
use crate::factorize::kernel::passes::{Scratch, sweep};
use crate::factorize::types::Panels;
use crate::factorize::weighted::root::Root;

/// `D·R^T` `[m, rows of R]` by products.
pub(crate) struct Weighted<'a> {
    pub(crate) delta: &'a dyn Panels,
    pub(crate) root: &'a Root,
}

impl Operator for Weighted<'_> {
    fn rows(&self) -> usize {
        self.delta.rows()
    }

    fn cols(&self) -> usize {
        self.root.rows()
    }

    fn multiplications(&self) -> usize {
        (self.delta.rows() + self.root.rows()) * self.delta.cols()
    }

    fn step(
        &self,
        v: MatRef<'_, f32>,
        w: MatMut<'_, f32>,
        scale: f32,
        scratch: &mut Scratch,
    ) -> Result<Mat<f32>> {
        let inner = self.root.transpose_times(v);
        let z = sweep(self.delta, inner.as_ref(), w, scale, scratch)?;
        drop(inner);
        Ok(self.root.times(z.as_ref()))
    }

    fn arithmetic(&self) -> Arithmetic {
        Arithmetic::Native
    }

    fn is_enough(&self, _: f64) -> bool {
        true
    }
}

/// A matrix with its columns multiplied by `factors`.
pub(crate) struct ScaledColumns<'a> {
    pub(crate) delta: &'a dyn Panels,
    pub(crate) factors: &'a [f32],
}

impl Panels for ScaledColumns<'_> {
    fn rows(&self) -> usize {
        self.delta.rows()
    }

    fn cols(&self) -> usize {
        self.delta.cols()
    }

    fn visit(&self, rows: Range<usize>, look: &mut dyn FnMut(MatRef<'_, f32>) -> Result<()>) -> Result<()> {
        self.delta.visit(rows, &mut |panel| {
            let (height, cols) = (panel.nrows(), panel.ncols());
            let mut values = vec![0f32; height * cols];
            for (to, row) in values.chunks_exact_mut(cols.max(1)).zip(panel.row_iter()) {
                to.iter_mut().zip(row.iter()).zip(self.factors).for_each(|((to, x), f)| *to = x * f);
            }
            look(MatRef::from_row_major_slice(&values, height, cols))
        })
    }
}
