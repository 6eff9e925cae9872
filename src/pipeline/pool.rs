//! The threads of a run.

use crate::{Error, Result};

/// A pool of so many threads.
///
/// # Errors
/// The system gives no more threads, or no memory for them.
pub(crate) fn pool(threads: usize) -> Result<rayon::ThreadPool> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.map_err(|e| {
        Error::unexpected("cannot start the threads").because(e).hint(
            "raise the limit on threads or memory (ulimit -u, ulimit -v, the job's or container's), or give less to \
             --threads",
        )
    })
}
