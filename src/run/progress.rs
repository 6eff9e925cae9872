//! Progress reports of a run. The library has no progress bar: the binary brings its own.

use std::sync::Arc;
use std::time::Duration;

use crate::delta::module_record::ModuleRecord;
use crate::delta::record::LeftOut;
use crate::run::life::Life;

/// Observer of a run. Every method may be called from any thread.
pub trait Progress: Send + Sync {
    /// The total work: modules and bytes of tensors to read, and how much of each an earlier run has done.
    fn begin(&self, modules: usize, bytes: u64, done_modules: usize, done_bytes: u64) {
        let _ = (modules, bytes, done_modules, done_bytes);
    }

    /// The seconds that the work that is not done yet will take, by the plan's cost model. The next three methods
    /// report in the same seconds.
    fn expect(&self, seconds: f64) {
        let _ = seconds;
    }

    /// A small part of the expected work is done, for example a panel is read.
    fn step(&self, seconds: f64) {
        let _ = seconds;
    }

    /// A unit of that much work is begun.
    fn enter(&self, seconds: f64) {
        let _ = seconds;
    }

    /// A unit of that much work is finished.
    fn leave(&self, seconds: f64) {
        let _ = seconds;
    }

    /// `bytes` more bytes of tensors have been read.
    fn read(&self, bytes: u64) {
        let _ = bytes;
    }

    /// A module's shard is safe on disk.
    fn module(&self, record: &ModuleRecord, took: Duration) {
        let _ = (record, took);
    }

    /// A tensor that the adapter does not contain has been compared.
    fn compared(&self, left_out: &LeftOut) {
        let _ = left_out;
    }

    /// A module has been analyzed.
    fn analyzed(&self, name: &str, took: Duration) {
        let _ = (name, took);
    }

    /// A record of the journal is safe on disk.
    fn journaled(&self) {}

    /// Work begins. A signal handler that ends the process may record that with [`Life::stopped`].
    fn alive(&self, life: &Arc<Life>) {
        let _ = life;
    }

    /// The total work of a conversion: weight files to write and their bytes, and how much of each an earlier run
    /// has done.
    fn begin_files(&self, files: usize, bytes: u64, done_files: usize, done_bytes: u64) {
        let _ = (files, bytes, done_files, done_bytes);
    }

    /// `bytes` more bytes have been written.
    fn written(&self, bytes: u64) {
        let _ = bytes;
    }

    /// A weight file is safe on disk.
    fn file(&self, name: &str, took: Duration) {
        let _ = (name, took);
    }

    /// A note for the user.
    fn note(&self, text: &str) {
        let _ = text;
    }

    /// The adapter is being assembled from its shards.
    fn assembling(&self) {}
}

/// Ignores every report.
pub struct Silent;

impl Progress for Silent {}
