//! The memory that a process needs besides its data.

use crate::checkpoint::module::Module;
use crate::checkpoint::{Checkpoint, Room};

/// Resident memory of the process that nothing else counts: code, stacks, the allocator's own data. Every command takes
/// 13 to 17 MiB on checkpoints of some hundred kilobytes.
pub const OVERHEAD: u64 = 20 << 20;

/// [`OVERHEAD`], and the least that the link takes where the process reads from a server.
pub fn overhead() -> u64 {
    OVERHEAD + crate::storage::link_least()
}

/// Packing buffers of the matrix products, and the stack, per thread.
pub const THREAD: u64 = 4 << 20;

/// The stack and the allocator's pool of a thread that computes no matrix products.
pub const SMALL_THREAD: u64 = 1 << 20;

/// What one tensor of an open checkpoint takes besides its name: its description, its share of a module and its
/// decoder, and of the plan. Measured on 92,160 tensors (`scripts/memory.py`), with a margin of a quarter.
const CATALOGUE_ENTRY: u64 = 480;

/// What is recorded of one tensor that was read: its digest, its share of the unit's result and of the journal's entry
/// while a run is resumed, and all of that once more in the output's record. Measured in the same way.
const TENSOR_RECORD: u64 = 720;

/// What one tensor of an adapter takes.
pub const ADAPTER_TENSOR: u64 = 1024;

/// Bytes that an open checkpoint takes, and a plan over all of it. A name stands in the catalogue, and without its last
/// part in the modules.
pub fn catalogue(checkpoint: &Checkpoint) -> u64 {
    checkpoint.tensors().map(|tensor| CATALOGUE_ENTRY + 2 * tensor.name().len() as u64).sum()
}

/// Bytes of what a run records of all tensors of a checkpoint. The name stands in the identifier of a unit.
pub fn records(checkpoint: &Checkpoint) -> u64 {
    checkpoint.tensors().map(|tensor| TENSOR_RECORD + 2 * tensor.name().len() as u64).sum()
}

/// Room for checkpoints whose tensors are all read and recorded, in a process that may take `memory` bytes.
pub fn room(memory: u64) -> Room {
    Room::new(memory, overhead(), [CATALOGUE_ENTRY + TENSOR_RECORD, 4])
}

/// Room for checkpoints of which nothing is recorded, where `taken` bytes are needed besides.
pub fn room_unrecorded(memory: u64, taken: u64) -> Room {
    Room::new(memory, overhead().saturating_add(taken), [CATALOGUE_ENTRY, 2])
}

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
