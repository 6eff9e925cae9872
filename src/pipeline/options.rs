//! How a run executes, without any effect on its result: threads, memory, what is kept.

/// The options that only affect execution. They may change between a stop and the next run.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Number of compute threads.
    pub threads: usize,
    /// Peak resident memory of the process in bytes.
    pub memory: u64,
    /// Keep the shards after the adapter is assembled.
    pub keep_shards: bool,
    /// Delete what the output folder holds from an earlier run.
    pub overwrite: bool,
    /// Resume a run that was started at another SIMD level.
    pub other_simd: bool,
}

impl RunOptions {
    /// These threads and this memory, with every other option off.
    pub fn new(threads: usize, memory: u64) -> RunOptions {
        RunOptions { threads, memory, keep_shards: false, overwrite: false, other_simd: false }
    }
}
