//! What a run tells while it works. The library knows no progress bar: a binary brings its own.

use std::time::Duration;

use crate::ledger::ModuleRecord;

/// Observer of a run. Every method may be called from any thread.
pub trait Progress: Send + Sync {
    /// The work ahead: modules and bytes of tensors to read, and how many of each an earlier run has done.
    fn begin(&self, modules: usize, bytes: u64, done_modules: usize, done_bytes: u64) {
        let _ = (modules, bytes, done_modules, done_bytes);
    }

    /// So many more bytes of tensors have been read.
    fn read(&self, bytes: u64) {
        let _ = bytes;
    }

    /// A module's shard is safe on disk.
    fn module(&self, record: &ModuleRecord, took: Duration) {
        let _ = (record, took);
    }

    /// A record of the journal is safe on disk.
    fn journaled(&self) {}

    /// A remark that the user should see.
    fn note(&self, text: &str) {
        let _ = text;
    }

    /// The adapter is being assembled from its shards.
    fn assembling(&self) {}
}

/// Tells no one.
pub struct Silent;

impl Progress for Silent {}
