//! A module that is read in slices, by several threads and time and again: what every pass over its rows goes through.

use std::ops::Range;

use crate::checkpoint::Checkpoint;
use crate::checkpoint::module::{Module, PackedRows};
use crate::{Error, Result};

/// A module that is open for reading.
///
/// Where any row needs all of the stored bytes, as in formats that are packed along columns, they are mapped here, once, and
/// shared by every slice and thread until this is dropped: [`Module::kept_size`] bytes. All other modules keep nothing, and are
/// mapped slice by slice.
#[derive(Debug)]
pub struct ModuleReader<'a> {
    checkpoint: &'a Checkpoint,
    module: &'a Module,
    kept: Option<PackedRows>,
}

impl<'a> ModuleReader<'a> {
    /// Opens `module`, one of `checkpoint`'s.
    ///
    /// # Errors
    /// As [`Checkpoint::read`].
    pub fn open(checkpoint: &'a Checkpoint, module: &'a Module) -> Result<ModuleReader<'a>> {
        let all = || module.read(checkpoint, 0..module.shape()[0]);
        let kept = module.is_whole().then(all).transpose()?;
        Ok(ModuleReader { checkpoint, module, kept })
    }

    /// The module.
    pub fn module(&self) -> &'a Module {
        self.module
    }

    /// Whether the stored bytes are mapped as a whole: then short runs of rows cost far more than long ones.
    pub fn is_kept(&self) -> bool {
        self.kept.is_some()
    }

    /// Maps `rows`, to be decoded in pieces.
    ///
    /// # Errors
    /// As [`Checkpoint::read`].
    ///
    /// # Panics
    /// If the rows are not the module's.
    pub fn rows(&self, rows: Range<usize>) -> Result<MappedRows<'_>> {
        let rows = match &self.kept {
            Some(kept) => Rows::Kept(kept),
            None => Rows::Own(self.module.read(self.checkpoint, rows).map_err(|e| self.at(e))?),
        };
        Ok(MappedRows { reader: self, rows })
    }

    /// Maps and decodes `rows` into `out`, row-major, `rows.len() * in` values.
    ///
    /// # Errors
    /// As [`rows`](Self::rows) and [`MappedRows::decode`].
    ///
    /// # Panics
    /// If the rows are not the module's, or `out` is of another length.
    pub fn panel(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.rows(rows.clone())?.decode(rows, out)
    }

    /// The same in f64.
    ///
    /// # Errors
    /// As [`panel`](Self::panel).
    ///
    /// # Panics
    /// As [`panel`](Self::panel).
    pub fn panel_f64(&self, rows: Range<usize>, out: &mut [f64]) -> Result<()> {
        self.rows(rows.clone())?.decode_f64(rows, out)
    }

    fn at(&self, error: Error) -> Error {
        error.path(self.checkpoint.path(self.module.tensors()[0].file))
    }
}

/// Mapped rows of a module that is being read.
#[derive(Debug)]
pub struct MappedRows<'a> {
    reader: &'a ModuleReader<'a>,
    rows: Rows<'a>,
}

#[derive(Debug)]
enum Rows<'a> {
    /// Mapped for these rows alone.
    Own(PackedRows),
    /// What the reader keeps.
    Kept(&'a PackedRows),
}

impl MappedRows<'_> {
    fn packed(&self) -> &PackedRows {
        match &self.rows {
            Rows::Own(rows) => rows,
            Rows::Kept(rows) => rows,
        }
    }

    /// Decodes `some` of the rows into `out`, row-major, `some.len() * in` values.
    ///
    /// # Errors
    /// As [`Dequantize::dequantize`](crate::quant::Dequantize::dequantize).
    ///
    /// # Panics
    /// If the rows are not among those that were mapped, or `out` is of another length.
    pub fn decode(&self, some: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.packed().decode_some(some, out).map_err(|e| self.reader.at(e))
    }

    /// The same in f64.
    ///
    /// # Errors
    /// As [`decode`](Self::decode).
    ///
    /// # Panics
    /// As [`decode`](Self::decode).
    pub fn decode_f64(&self, some: Range<usize>, out: &mut [f64]) -> Result<()> {
        self.packed().decode_some_f64(some, out).map_err(|e| self.reader.at(e))
    }
}
