//! A streaming writer for a safetensors file: front to back in pieces, with the header known before the data.

use std::collections::BTreeMap;
use std::path::Path;

use crate::container::safetensors::layout;
use crate::container::safetensors::layout::Placed;
use crate::durable::atomic_file::Draft;
use crate::durable::digest::Written;
use crate::durable::direct_io::DIRECT_BYTES;
use crate::quant::weight::TensorInfo;
use crate::{Error, Result};

/// From this many bytes on, a file is worth a writer thread and its buffers.
const LARGE: u64 = 16 << 20;

/// Bytes of memory that [`SafetensorsWriter::in_order`] needs to write a file of `length` bytes.
pub fn memory_for(length: u64) -> u64 {
    if length < LARGE { 1 << 20 } else { DIRECT_BYTES }
}

/// Writes a safetensors file tensor by tensor, in the order of [`layout`](Self::layout). [`finish`](Self::finish) gives
/// the file its name when every tensor is complete.
#[derive(Debug)]
pub struct SafetensorsWriter {
    draft: Draft,
    layout: Vec<Placed>,
    // The index of the current tensor, and how many bytes of it are written.
    turn: usize,
    done: u64,
}

impl SafetensorsWriter {
    /// Begins the file `path` for `tensors`, with the metadata `{"format": "pt"}` that PyTorch's readers require.
    ///
    /// # Errors
    /// The errors of [`with_metadata`](Self::with_metadata).
    pub fn create(path: &Path, tensors: Vec<TensorInfo>) -> Result<SafetensorsWriter> {
        Self::with_metadata(path, tensors, &BTreeMap::from([("format".to_owned(), "pt".to_owned())]))
    }

    /// Begins the file `path` for `tensors` and `metadata`. The order of `tensors` does not change the bytes.
    ///
    /// # Errors
    /// A name that occurs twice, a shape whose length overflows or ends inside a byte, a header above 100 MB;
    /// a folder that cannot be written; a full disk.
    pub fn with_metadata(
        path: &Path,
        tensors: Vec<TensorInfo>,
        metadata: &BTreeMap<String, String>,
    ) -> Result<SafetensorsWriter> {
        Self::begin(layout::build(tensors, metadata).map_err(|e| e.path(path))?, Draft::create(path)?)
    }

    /// Begins a checkpoint's file with the data in the given order of `tensors`, for tensors whose bytes are known only
    /// after those of others. Large files are written with [`Draft::create_direct`].
    ///
    /// # Errors
    /// The errors of [`with_metadata`](Self::with_metadata) and [`Draft::create_direct`], and an order in which a
    /// tensor would not be aligned.
    pub fn in_order(path: &Path, tensors: Vec<TensorInfo>) -> Result<SafetensorsWriter> {
        Self::in_order_with(path, tensors, &BTreeMap::from([("format".to_owned(), "pt".to_owned())]))
    }

    /// The same as [`in_order`](Self::in_order), with `metadata`.
    ///
    /// # Errors
    /// The errors of [`in_order`](Self::in_order).
    pub fn in_order_with(
        path: &Path,
        tensors: Vec<TensorInfo>,
        metadata: &BTreeMap<String, String>,
    ) -> Result<SafetensorsWriter> {
        let header = layout::build_in_order(tensors, metadata).map_err(|e| e.path(path))?;
        let draft = if header.length() < LARGE { Draft::create(path)? } else { Draft::create_direct(path)? };
        Self::begin(header, draft)
    }

    fn begin(header: layout::Header, draft: Draft) -> Result<SafetensorsWriter> {
        let mut draft = draft.expecting(header.length());
        draft.put(&header.bytes)?;
        let mut writer = SafetensorsWriter { draft, layout: header.layout, turn: 0, done: 0 };
        writer.advance();
        Ok(writer)
    }

    /// All tensors in the order in which their data must be written: the largest elements first, then by name, unless
    /// an order was given.
    pub fn layout(&self) -> &[Placed] {
        &self.layout
    }

    /// The tensor that the next data belong to; `None` when all are complete.
    pub fn due(&self) -> Option<&Placed> {
        self.layout.get(self.turn)
    }

    /// Appends `bytes`, the next piece of the tensor `name`. A tensor without bytes needs no call.
    ///
    /// # Errors
    /// A tensor out of order, more bytes than its shape has; a full disk.
    pub fn put(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let misplaced = |why: String| Error::unexpected(why).tensor(name).path(self.draft.path());
        let Some(due) = self.due().filter(|t| t.stored.name == name) else {
            let due = self.due().map_or("none".to_owned(), |t| format!("'{}'", t.stored.name));
            return Err(misplaced(format!("a tensor was written out of order: the next is {due}")));
        };
        let done = self.done + bytes.len() as u64;
        if done > due.len() {
            return Err(misplaced(format!("a tensor of {} bytes was given {done}", due.len())));
        }
        self.draft.put(bytes)?;
        self.done = done;
        self.advance();
        Ok(())
    }

    /// Completes the file durably and gives it its name.
    ///
    /// # Errors
    /// A tensor that is not complete; a full disk.
    pub fn finish(self) -> Result<Written> {
        if let Some(due) = self.due() {
            let why = format!("a tensor of {} bytes was given only {}", due.len(), self.done);
            return Err(Error::unexpected(why).tensor(&due.stored.name).path(self.draft.path()));
        }
        self.draft.finish()
    }

    /// Advances to the next tensor that still needs bytes.
    fn advance(&mut self) {
        while self.layout.get(self.turn).is_some_and(|t| t.len() == self.done) {
            self.turn += 1;
            self.done = 0;
        }
    }
}
