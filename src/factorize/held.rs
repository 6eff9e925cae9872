//! A matrix held in memory.

use std::ops::Range;

use faer::MatRef;

use super::Panels;
use crate::{Error, Result};

/// A matrix `[rows, cols]` in memory, row-major.
#[derive(Clone, Debug)]
pub struct Held {
    rows: usize,
    cols: usize,
    values: Vec<f32>,
}

impl Held {
    /// Takes `values`, row-major `[rows, cols]`.
    ///
    /// # Errors
    /// [`Kind::Unexpected`](crate::Kind::Unexpected) where the length is not `rows * cols`.
    pub fn new(rows: usize, cols: usize, values: Vec<f32>) -> Result<Self> {
        if rows.checked_mul(cols) != Some(values.len()) {
            let length = values.len();
            return Err(Error::unexpected(format!("{length} values are no matrix of {rows} x {cols}")));
        }
        Ok(Held { rows, cols, values })
    }

    /// The values, row-major.
    pub fn values(&self) -> &[f32] {
        &self.values
    }
}

impl Panels for Held {
    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn visit(&self, rows: Range<usize>, look: &mut dyn FnMut(MatRef<'_, f32>) -> Result<()>) -> Result<()> {
        let (height, cols) = (rows.len(), self.cols);
        let part = &self.values[rows.start * cols..rows.end * cols];
        look(MatRef::from_row_major_slice(part, height, cols))
    }
}
