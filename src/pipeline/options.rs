//! How a run works, none of which decides its result: threads, memory, what is kept.

/// The options that only say how the work is run. They may change between a stop and the next run.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Threads that compute.
    pub threads: usize,
    /// Peak resident memory of the process in bytes.
    pub memory: u64,
    /// Keep the shards after the adapter is assembled.
    pub keep_shards: bool,
    /// Throw away what the output folder holds of an earlier run.
    pub overwrite: bool,
    /// Go on with a run that was begun at another SIMD level.
    pub other_simd: bool,
}

impl RunOptions {
    /// So many threads and so much memory, and no more to say.
    pub fn new(threads: usize, memory: u64) -> RunOptions {
        RunOptions { threads, memory, keep_shards: false, overwrite: false, other_simd: false }
    }
}
