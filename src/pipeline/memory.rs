//! The memory that a process needs besides its data.

use crate::checkpoint::Checkpoint;
use crate::checkpoint::module::Module;

/// Resident memory of the process that no permit covers: code, catalogues, stacks, the allocator's own data.
pub const OVERHEAD: u64 = 40 * 1024 * 1024;

/// [`OVERHEAD`], and the least that the link takes where the process reads from a server.
pub fn overhead() -> u64 {
    OVERHEAD + crate::storage::link_least()
}

/// A generous estimate of the bytes that one entry of a checkpoint's catalogue takes.
pub const CATALOGUE_ENTRY: u64 = 1024;

/// What is recorded of one tensor that was read, in bytes: it is held until the output is written, and stands there
/// as text then. An estimate with a margin: two runs over 92,160 tensors, neither of them finished, had taken up to
/// 2.3 KiB each.
pub const TENSOR_RECORD: u64 = 2560;

/// Packing buffers of the matrix products, and the stack, per thread.
pub const THREAD: u64 = 4 * 1024 * 1024;

/// How many slices of a module are asked how much they map: enough to cover every alignment of slices with heads.
pub(crate) const SLICES_LOOKED_AT: usize = 16;

/// The most stored bytes that a thread maps for one slice of any module, extracted or only compared, besides what is
/// kept of it.
pub fn mapped(checkpoint: &Checkpoint) -> u64 {
    let slice = |module: &Module| {
        let [rows, cols] = module.shape();
        let slice = slice_rows(cols);
        // Mostly the same for all slices, but where rows are permuted within heads, a slice needs all heads that it
        // touches.
        let starts = (0..rows).step_by(slice).take(SLICES_LOOKED_AT);
        starts.map(|start| module.packed_size(start..(start + slice).min(rows))).max().unwrap_or(0) as u64
    };
    checkpoint.modules().filter(|module| module.kept_size() == 0).map(slice).max().unwrap_or(0)
}

/// The number of rows in a slice of a matrix with this many columns.
pub fn slice_rows(cols: usize) -> usize {
    (SLICE / cols.max(1)).max(1)
}

/// Elements in a slice, which is what one thread maps at a time. A slice's bytes are the most that one thread keeps
/// resident of a mapped file.
pub(crate) const SLICE: usize = 1 << 19;
