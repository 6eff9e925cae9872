//! What a process needs beside the data that it holds.

use crate::checkpoint::Checkpoint;
use crate::checkpoint::module::Module;

/// Resident memory of the process that no permit covers: code, catalogues, stacks, the allocator's own.
pub const OVERHEAD: u64 = 40 * 1024 * 1024;

/// What one entry of a checkpoint's catalogue takes, generously.
pub const CATALOGUE_ENTRY: u64 = 1024;

/// Packing buffers of the matrix products, and the stack, for each thread.
pub const THREAD: u64 = 4 * 1024 * 1024;

/// How many slices of a module are asked for what they map: enough to meet every way that slices and heads fall together.
pub(crate) const SLICES_LOOKED_AT: usize = 16;

/// The most stored bytes that a thread maps for one slice of any module, extracted or only compared, beside what is kept of it.
pub fn mapped(checkpoint: &Checkpoint) -> u64 {
    let slice = |module: &Module| {
        let [rows, cols] = module.shape();
        let slice = slice_rows(cols);
        // Mostly all the same, but where rows are permuted within heads a slice needs all heads that it touches.
        let starts = (0..rows).step_by(slice).take(SLICES_LOOKED_AT);
        starts.map(|start| module.packed_size(start..(start + slice).min(rows))).max().unwrap_or(0) as u64
    };
    checkpoint.modules().filter(|module| module.kept_size() == 0).map(slice).max().unwrap_or(0)
}

/// Rows of a slice of a matrix with so many columns.
pub fn slice_rows(cols: usize) -> usize {
    (SLICE / cols.max(1)).max(1)
}

/// Elements in a slice: what one thread maps at a time. A slice's bytes are the most of a mapped file that one thread keeps
/// resident.
pub(crate) const SLICE: usize = 1 << 19;
