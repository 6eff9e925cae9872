//! A module that is read in slices, by several threads and time and again: what every pass over its rows goes through.

use std::ops::Range;

use super::{Checkpoint, Module, PackedRows};
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
        let kept = module.weight().is_whole().then(all).transpose()?;
        Ok(ModuleReader { checkpoint, module, kept })
    }

    /// The module.
    pub fn module(&self) -> &'a Module {
        self.module
    }

    /// Decodes `rows` into `out`, row-major, `rows.len() * in` values.
    ///
    /// # Errors
    /// As [`Checkpoint::read`] and [`Dequantize::dequantize`](crate::quant::Dequantize::dequantize).
    ///
    /// # Panics
    /// If the rows are not the module's, or `out` is of another length.
    pub fn panel(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        match &self.kept {
            None => self.module.panel(self.checkpoint, rows, out),
            Some(kept) => kept.decode_some(rows, out).map_err(|e| self.at(e)),
        }
    }

    /// The same in f64.
    ///
    /// # Errors
    /// As [`panel`](Self::panel).
    ///
    /// # Panics
    /// As [`panel`](Self::panel).
    pub fn panel_f64(&self, rows: Range<usize>, out: &mut [f64]) -> Result<()> {
        match &self.kept {
            None => self.module.panel_f64(self.checkpoint, rows, out),
            Some(kept) => kept.decode_some_f64(rows, out).map_err(|e| self.at(e)),
        }
    }

    fn at(&self, error: Error) -> Error {
        error.path(self.checkpoint.path(self.module.tensors()[0].file))
    }
}
