//! Goes through whole checkpoints in panels, on several threads and within a memory budget, with results that depend on
//! neither.
//!
//! How a weight is cut into panels follows from its shape and format alone. [`in_order`] lets threads work on a few of
//! them at once and returns the results one by one, in the order of the panels, so that sums are always added in the
//! same order.

use std::collections::BTreeMap;
use std::ops::Range;

use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::checkpoint::module::Module;
use crate::{Error, Result};

/// The approximate number of elements in a panel, which is what one thread maps at a time.
const PANEL: usize = 1 << 21;

/// The same for formats where every panel maps the whole weight, for example those packed along columns: there, mapping
/// is the main cost.
const WHOLE: usize = 1 << 24;

/// Panels are cut between bands of this many rows, so blocks of up to this many rows and columns are never split.
pub const BAND: usize = 64;

/// The rows of each panel of a module, determined by its shape and format alone; each panel but the last begins and
/// ends at a multiple of [`BAND`] rows.
pub fn panels(module: &Module) -> impl Iterator<Item = Range<usize>> + use<> {
    let [rows, columns] = module.shape();
    let elements = if module.is_whole() { WHOLE } else { PANEL };
    let height = (elements / columns.max(1) / BAND * BAND).max(BAND);
    (0..rows).step_by(height).map(move |start| start..(start + height).min(rows))
}

/// The number of rows decoded at a time within a band: a power of two, with about as many values as stay in the cache.
pub fn piece_rows(columns: usize) -> usize {
    const PIECE: usize = 1 << 16;
    let most = (PIECE / columns.max(1)).clamp(1, BAND);
    if most.is_power_of_two() { most } else { most.next_power_of_two() / 2 }
}

/// The most bytes that a panel of a module maps.
pub fn panel_bytes(module: &Module) -> u64 {
    panels(module).map(|rows| module.packed_size(rows)).max().unwrap_or(0) as u64
}

/// How many of `threads` can work at once within `memory` bytes, if the process takes `fixed` of them and each thread
/// `each`.
///
/// # Errors
/// There is not enough memory for a single thread; the error says how much is needed.
pub fn threads_within(threads: usize, memory: u64, fixed: u64, each: u64) -> Result<usize> {
    let free = memory.saturating_sub(fixed) / each.max(1);
    match usize::try_from(free).unwrap_or(usize::MAX).min(threads) {
        0 => {
            let least = (fixed + each).next_multiple_of(1 << 20) >> 20;
            Err(Error::decide(format!("not enough memory: {} MiB given, {least} MiB needed", memory >> 20))
                .hint(format!("give --memory {least}MiB")))
        }
        possible => Ok(possible),
    }
}

/// Runs `work` for every number below `count` on `threads` threads, and passes the results to `fold`, on this thread,
/// in the order of the numbers. At most twice as many results as threads wait at any time.
///
/// # Errors
/// The first error in that order, from `work` or `fold`; later numbers are not started.
pub fn in_order<T: Send>(
    count: usize,
    threads: usize,
    work: impl Fn(usize) -> Result<T> + Sync,
    mut fold: impl FnMut(usize, T) -> Result<()>,
) -> Result<()> {
    let threads = threads.clamp(1, count.max(1));
    std::thread::scope(|scope| {
        let (give, numbers) = unbounded();
        let (done, results) = unbounded();
        for _ in 0..threads {
            let (numbers, done, work) = (numbers.clone(), done.clone(), &work);
            scope.spawn(move || worker(&numbers, &done, work));
        }
        drop((numbers, done));
        let mut pending = 0..count;
        // Sending fails only if every thread has ended, and then a result says why.
        let mut give_more = |more: usize| {
            for number in pending.by_ref().take(more) {
                let _ = give.send(number);
            }
        };
        give_more(2 * threads);
        let mut early = BTreeMap::new();
        for expected in 0..count {
            while !early.contains_key(&expected) {
                let (number, result) = results.recv().map_err(|_| ended())?;
                early.insert(number, result);
            }
            let result = early.remove(&expected).unwrap_or_else(|| Err(ended()))?;
            give_more(1);
            fold(expected, result)?;
        }
        Ok(())
    })
}

fn worker<T>(
    numbers: &Receiver<usize>,
    done: &Sender<(usize, Result<T>)>,
    work: &impl Fn(usize) -> Result<T>,
) {
    for number in numbers {
        let unfinished = Unfinished { number, done };
        let result = work(number);
        std::mem::forget(unfinished);
        if done.send((number, result)).is_err() {
            return;
        }
    }
}

/// Reports a number whose work panicked: otherwise the receiver would wait forever.
struct Unfinished<'a, T> {
    number: usize,
    done: &'a Sender<(usize, Result<T>)>,
}

impl<T> Drop for Unfinished<'_, T> {
    fn drop(&mut self) {
        let _ = self.done.send((self.number, Err(ended())));
    }
}

fn ended() -> Error {
    Error::unexpected("a thread ended before its work was done")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn results_come_in_order_and_few_wait() {
        let (begun, mut seen) = (AtomicUsize::new(0), Vec::new());
        let work = |number| {
            begun.fetch_add(1, Ordering::SeqCst);
            // The first of every ten is the slowest.
            std::thread::sleep(std::time::Duration::from_micros(if number % 10 == 0 { 2000 } else { 20 }));
            Ok(number * number)
        };
        in_order(100, 3, work, |number, square| {
            assert!(begun.load(Ordering::SeqCst) <= number + 1 + 6 + 1, "too many are started at {number}");
            seen.push((number, square));
            Ok(())
        })
        .unwrap();
        assert_eq!(seen, (0..100).map(|n| (n, n * n)).collect::<Vec<_>>());
    }

    #[test]
    fn the_first_error_in_order_is_told_and_ends_the_work() {
        let begun = AtomicUsize::new(0);
        let work = |number| {
            begun.fetch_add(1, Ordering::SeqCst);
            if number >= 10 { Err(Error::input(format!("number {number}"))) } else { Ok(()) }
        };
        let error = in_order(1000, 4, work, |_, ()| Ok(())).unwrap_err();
        assert_eq!(error.to_string(), "number 10");
        assert!(begun.load(Ordering::SeqCst) < 30);
        let error = in_order(9, 2, |_| Ok(()), |_, ()| Err(Error::found("enough"))).unwrap_err();
        assert_eq!(error.to_string(), "enough");
        in_order(0, 4, |_| Ok(()), |_, ()| Ok(())).unwrap();
    }

    #[test]
    fn a_budget_sets_the_threads() {
        assert_eq!(threads_within(4, 100 << 20, 40 << 20, 10 << 20).unwrap(), 4);
        assert_eq!(threads_within(4, 60 << 20, 40 << 20, 10 << 20).unwrap(), 2);
        let error = threads_within(4, 45 << 20, 40 << 20, 10 << 20).unwrap_err();
        assert_eq!(error.to_string(), "not enough memory: 45 MiB given, 50 MiB needed");
        assert_eq!(error.cure(), Some("give --memory 50MiB"));
    }
}
