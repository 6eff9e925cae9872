//! Reading a module in slices, repeatedly and from several threads. Every pass over a module's rows uses it.

use std::ops::Range;

use crate::checkpoint::Checkpoint;
use crate::checkpoint::module::{Module, PackedRows};
use crate::{Error, Result};

/// How many ranges of rows are asked for ahead, where they come from a server: rows are read in their order.
const AHEAD: usize = 8;

/// A module that is open for reading.
///
/// Where any row needs all stored bytes, as in formats that are packed along columns, they are mapped once and shared
/// by every slice and thread until the reader is dropped: [`Module::kept_size`] bytes. All other modules are mapped
/// slice by slice, and the reader keeps nothing of them.
#[derive(Debug)]
pub struct ModuleReader<'a> {
    checkpoint: &'a Checkpoint,
    module: &'a Module,
    kept: Option<PackedRows>,
}

impl<'a> ModuleReader<'a> {
    /// Opens `module` of `checkpoint`.
    ///
    /// # Errors
    /// The errors of [`Checkpoint::read`].
    pub fn open(checkpoint: &'a Checkpoint, module: &'a Module) -> Result<ModuleReader<'a>> {
        let all = || module.read(checkpoint, 0..module.shape()[0]);
        let kept = module.is_whole().then(all).transpose()?;
        Ok(ModuleReader { checkpoint, module, kept })
    }

    /// The module.
    pub fn module(&self) -> &'a Module {
        self.module
    }

    /// Whether the stored bytes are mapped as a whole. Then short ranges of rows cost far more per row than long ones.
    pub fn is_kept(&self) -> bool {
        self.kept.is_some()
    }

    /// Maps `rows`, for decoding in pieces.
    ///
    /// # Errors
    /// The errors of [`Checkpoint::read`].
    ///
    /// # Panics
    /// If the rows are out of range.
    pub fn rows(&self, rows: Range<usize>) -> Result<MappedRows<'_>> {
        if self.kept.is_none() && self.checkpoint.is_remote() {
            let end = (rows.end + AHEAD * rows.len()).min(self.module.shape()[0]);
            self.module.prefetch(self.checkpoint, rows.start..end);
        }
        let rows = match &self.kept {
            Some(kept) => Rows::Kept(kept),
            None => Rows::Own(self.module.read(self.checkpoint, rows).map_err(|e| self.at(e))?),
        };
        Ok(MappedRows { reader: self, rows })
    }

    /// Maps and decodes `rows` into `out`, row-major, `rows.len() * in` values.
    ///
    /// # Errors
    /// The errors of [`rows`](Self::rows) and [`MappedRows::decode`].
    ///
    /// # Panics
    /// If the rows are out of range, or `out` has the wrong length.
    pub fn panel(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.rows(rows.clone())?.decode(rows, out)
    }

    /// The same in f64.
    ///
    /// # Errors
    /// The errors of [`panel`](Self::panel).
    ///
    /// # Panics
    /// Under the conditions of [`panel`](Self::panel).
    pub fn panel_f64(&self, rows: Range<usize>, out: &mut [f64]) -> Result<()> {
        self.rows(rows.clone())?.decode_f64(rows, out)
    }

    fn at(&self, error: Error) -> Error {
        error.path(self.checkpoint.path(self.module.tensors()[0].file))
    }
}

/// Mapped rows of an open module.
#[derive(Debug)]
pub struct MappedRows<'a> {
    reader: &'a ModuleReader<'a>,
    rows: Rows<'a>,
}

#[derive(Debug)]
enum Rows<'a> {
    /// Mapped for these rows only.
    Own(PackedRows),
    /// All rows, mapped by the reader.
    Kept(&'a PackedRows),
}

impl MappedRows<'_> {
    fn packed(&self) -> &PackedRows {
        match &self.rows {
            Rows::Own(rows) => rows,
            Rows::Kept(rows) => rows,
        }
    }

    /// Decodes a subset of the rows into `out`, row-major, `subset.len() * in` values.
    ///
    /// # Errors
    /// The errors of [`Dequantize::dequantize`](crate::quant::Dequantize::dequantize).
    ///
    /// # Panics
    /// If the subset is not within the mapped rows, or `out` has the wrong length.
    pub fn decode(&self, subset: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.packed().decode_some(subset, out).map_err(|e| self.reader.at(e))
    }

    /// The same in f64.
    ///
    /// # Errors
    /// The errors of [`decode`](Self::decode).
    ///
    /// # Panics
    /// Under the conditions of [`decode`](Self::decode).
    pub fn decode_f64(&self, subset: Range<usize>, out: &mut [f64]) -> Result<()> {
        self.packed().decode_some_f64(subset, out).map_err(|e| self.reader.at(e))
    }
}
