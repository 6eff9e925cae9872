//! A matrix held in memory.

use std::ops::Range;

use faer::MatRef;

use crate::factorize::types::Panels;
use crate::{Error, Result};

/// A matrix `[rows, cols]` in memory, row-major, in any container of f32.
#[derive(Clone, Debug)]
pub struct Held<S = Vec<f32>> {
    rows: usize,
    cols: usize,
    values: S,
}

impl<S: AsRef<[f32]>> Held<S> {
    /// The matrix of `values`, row-major `[rows, cols]`.
    ///
    /// # Errors
    /// [`Kind::Unexpected`](crate::Kind::Unexpected) if the length is not `rows * cols`.
    pub fn new(rows: usize, cols: usize, values: S) -> Result<Self> {
        let length = values.as_ref().len();
        if rows.checked_mul(cols) != Some(length) {
            return Err(Error::unexpected(format!(
                "{length} values do not make a matrix of {rows} x {cols}"
            )));
        }
        Ok(Held { rows, cols, values })
    }

    /// The memory itself.
    pub fn into_inner(self) -> S {
        self.values
    }

    /// The values, row-major.
    pub fn values(&self) -> &[f32] {
        self.values.as_ref()
    }
}

impl<S: AsRef<[f32]> + Sync> Panels for Held<S> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn visit(&self, rows: Range<usize>, look: &mut dyn FnMut(MatRef<'_, f32>) -> Result<()>) -> Result<()> {
        let (height, cols) = (rows.len(), self.cols);
        let part = &self.values()[rows.start * cols..rows.end * cols];
        look(MatRef::from_row_major_slice(part, height, cols))
    }
}
