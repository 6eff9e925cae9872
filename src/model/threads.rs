//! Runs independent tasks on several threads.

use std::sync::{Mutex, PoisonError};

use crate::{Error, Result};

/// Runs every task once, on `threads` threads: for tasks that write to separate places and cannot fail.
pub fn run_tasks<T: Send>(threads: usize, tasks: Vec<T>, work: impl Fn(T) + Sync) {
    let done = spread(threads, tasks, |(): &mut (), task| {
        work(task);
        Ok(())
    });
    debug_assert!(done.is_ok(), "no task fails");
}

/// Runs every task once, with one scratch value per thread. Tasks write to separate places, so their order affects only
/// the error that is returned: that of the earliest task that failed.
///
/// # Errors
/// The first error that `work` returns; tasks that were not started by then are skipped.
pub(super) fn spread<T: Send, S: Default>(
    threads: usize,
    tasks: Vec<T>,
    work: impl Fn(&mut S, T) -> Result<()> + Sync,
) -> Result<()> {
    let threads = threads.clamp(1, tasks.len().max(1));
    let tasks = Mutex::new(tasks.into_iter().enumerate());
    let failed: Mutex<Option<(usize, Error)>> = Mutex::new(None);
    let next = || {
        let stop = failed.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        if stop { None } else { tasks.lock().unwrap_or_else(PoisonError::into_inner).next() }
    };
    let run = || {
        let mut scratch = S::default();
        while let Some((number, task)) = next() {
            if let Err(error) = work(&mut scratch, task) {
                let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                if failed.as_ref().is_none_or(|(earlier, _)| number < *earlier) {
                    *failed = Some((number, error));
                }
            }
        }
    };
    std::thread::scope(|scope| {
        (1..threads).for_each(|_| {
            scope.spawn(run);
        });
        run();
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}
