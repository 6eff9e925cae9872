//! A matrix in bytes, held in memory or made anew from f32 at every visit. Both give the same bits.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use crate::factorize::kernel::bytes::codes::{quantize, record_words, words};
use crate::factorize::kernel::bytes::passes::Codes;
use crate::factorize::kernel::tiling::{panel_rows, pieces};
use crate::factorize::types::Panels;
use crate::{Error, Result};

/// Rows that share a record.
const ROWS: usize = 4;

/// A matrix in bytes in memory, in any container of f32 words: a byte a value and 1.6 % for scales.
#[derive(Clone, Debug)]
pub struct HeldCodes<S = Vec<f32>> {
    rows: usize,
    cols: usize,
    words: S,
    error2: f64,
}

impl<S: AsRef<[f32]>> HeldCodes<S> {
    /// The matrix of the records `words`, with the squared norm `error2` of what they miss of it.
    ///
    /// # Errors
    /// [`Kind::Unexpected`](crate::Kind::Unexpected) if there are not as many words as the shape has.
    pub fn new(rows: usize, cols: usize, words: S, error2: f64) -> Result<Self> {
        let (given, needed) = (words.as_ref().len(), self::words(rows, cols));
        if given != needed {
            return Err(Error::unexpected(format!(
                "{given} words do not make a matrix of {rows} x {cols} in bytes: {needed} do"
            )));
        }
        Ok(HeldCodes { rows, cols, words, error2 })
    }

    /// The memory itself.
    pub fn into_inner(self) -> S {
        self.words
    }
}

impl HeldCodes {
    /// The codes of a matrix in f32.
    ///
    /// # Errors
    /// What visiting the matrix meets.
    pub fn of(delta: &dyn Panels) -> Result<HeldCodes> {
        let (m, n) = (delta.rows(), delta.cols());
        let mut held = vec![0f32; words(m, n)];
        let step = panel_rows(m, n).1;
        let parts = held.par_chunks_mut((step / ROWS * record_words(n)).max(1));
        let parts = parts.zip(pieces(0..m, step).collect::<Vec<_>>());
        let errors = parts.map(|(out, rows)| quantize_panel(delta, rows, out)).collect::<Result<Vec<_>>>()?;
        HeldCodes::new(m, n, held, errors.into_iter().sum())
    }
}

impl<S: AsRef<[f32]> + Sync> Codes for HeldCodes<S> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn error2(&self) -> f64 {
        self.error2
    }

    fn visit(&self, rows: Range<usize>, look: &mut dyn FnMut(&[f32]) -> Result<()>) -> Result<()> {
        let record = record_words(self.cols);
        look(&self.words.as_ref()[rows.start / ROWS * record..rows.end.div_ceil(ROWS) * record])
    }
}

/// A matrix in f32 whose codes are made anew at every visit.
pub struct Requantized<'a> {
    delta: &'a dyn Panels,
    error2: f64,
}

impl<'a> Requantized<'a> {
    /// The squared norm of what the codes of `delta` miss of it, found by making them once.
    ///
    /// # Errors
    /// What visiting the matrix meets.
    pub fn missed(delta: &dyn Panels) -> Result<f64> {
        let (m, n) = (delta.rows(), delta.cols());
        let parts: Vec<_> = pieces(0..m, panel_rows(m, n).1).collect();
        let missed = parts.into_par_iter().map(|rows| {
            let mut records = vec![0.0; words(rows.len(), n)];
            quantize_panel(delta, rows, &mut records)
        });
        Ok(missed.collect::<Result<Vec<_>>>()?.into_iter().sum())
    }

    /// The codes of `delta`, with the squared norm `error2` of what they miss of it.
    pub fn new(delta: &'a dyn Panels, error2: f64) -> Requantized<'a> {
        Requantized { delta, error2 }
    }
}

impl Codes for Requantized<'_> {
    fn rows(&self) -> usize {
        self.delta.rows()
    }

    fn cols(&self) -> usize {
        self.delta.cols()
    }

    fn error2(&self) -> f64 {
        self.error2
    }

    fn visit(&self, rows: Range<usize>, look: &mut dyn FnMut(&[f32]) -> Result<()>) -> Result<()> {
        thread_local! { static RECORDS: RefCell<Vec<f32>> = RefCell::default(); }
        let mut records = RECORDS.take();
        records.resize(words(rows.len(), self.cols()), 0.0);
        let looked = quantize_panel(self.delta, rows, &mut records).and_then(|_| look(&records));
        RECORDS.set(records);
        looked
    }
}

/// Writes the codes of `rows` to `out`. Returns the squared norm of the error.
fn quantize_panel(delta: &dyn Panels, rows: Range<usize>, out: &mut [f32]) -> Result<f64> {
    let (cols, mut error2) = (delta.cols(), 0.0);
    let mut four = Vec::with_capacity(ROWS * cols);
    delta.visit(rows, &mut |panel| {
        let records = out.chunks_exact_mut(record_words(cols).max(1));
        for (record, rows) in records.zip(pieces(0..panel.nrows(), ROWS)) {
            four.clear();
            for i in rows {
                let row = panel.row(i).try_as_row_major();
                row.map(|row| four.extend_from_slice(row.as_slice()))
                    .ok_or_else(|| Error::unexpected("a panel that is not row-major"))?;
            }
            error2 += quantize(&four, cols, record);
        }
        Ok(())
    })?;
    Ok(error2)
}
