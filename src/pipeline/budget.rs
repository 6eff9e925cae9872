//! The byte budget: memory is only held under a permit.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};

/// The number of bytes that may be held at once.
#[derive(Debug)]
pub struct Budget {
    total: u64,
    free: Mutex<u64>,
    returned: Condvar,
}

/// Bytes taken from a [`Budget`]; they are returned when it is dropped.
#[derive(Debug)]
pub struct Permit<'a> {
    budget: &'a Budget,
    bytes: u64,
}

impl Budget {
    /// A budget of `total` bytes.
    pub fn new(total: u64) -> Budget {
        Budget { total, free: Mutex::new(total), returned: Condvar::new() }
    }

    /// The bytes that are not covered by any permit.
    pub fn free(&self) -> u64 {
        *self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `bytes` are free and takes them; a request above the total is reduced to it.
    pub fn take(&self, bytes: u64) -> Permit<'_> {
        let bytes = bytes.min(self.total);
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free =
            self.returned.wait_while(free, |free| *free < bytes).unwrap_or_else(PoisonError::into_inner);
        *free -= bytes;
        Permit { budget: self, bytes }
    }

    /// Takes the first task of `queue` that there is room for, with a permit for the bytes that `size` returns for it,
    /// and waits if there is room for none, or if the queue is empty but `more` may come: whoever adds a task, or ends
    /// the wait for one, must [`wake`](Self::wake) those who wait. Returns `None` if the queue is empty for good.
    ///
    /// So a small task goes ahead when the next large one must wait, and fills the memory beside the one in flight. A
    /// size above the total is reduced to it: the plan has already refused what does not fit.
    pub fn first_that_fits<T>(
        &self,
        queue: &Mutex<VecDeque<T>>,
        size: impl Fn(&T) -> u64,
        more: impl Fn() -> bool,
    ) -> Option<(T, Permit<'_>)> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            // Asked first: what may still come is in the queue before it stops to be counted.
            let more = more();
            let mut tasks = queue.lock().unwrap_or_else(PoisonError::into_inner);
            if tasks.is_empty() && !more {
                return None;
            }
            let size = |task: &T| size(task).min(self.total);
            let fits = tasks.iter().position(|task| size(task) <= *free);
            if let Some(task) = fits.and_then(|index| tasks.remove(index)) {
                let bytes = size(&task);
                *free -= bytes;
                return Some((task, Permit { budget: self, bytes }));
            }
            drop(tasks);
            free = self.returned.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Budget {
    /// Has everyone who waits look again.
    pub fn wake(&self) {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        self.returned.notify_all();
        drop(free);
    }
}

impl Permit<'_> {
    /// Gives back all but `bytes`.
    pub fn shrink(&mut self, bytes: u64) {
        let back = self.bytes.saturating_sub(bytes);
        self.bytes -= back;
        self.budget.give(back);
    }
}

impl Budget {
    fn give(&self, bytes: u64) {
        *self.free.lock().unwrap_or_else(PoisonError::into_inner) += bytes;
        self.returned.notify_all();
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.budget.give(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_more_than_the_total_is_out() {
        use std::sync::atomic::{AtomicU64, Ordering};
        let (budget, out) = (Budget::new(100), AtomicU64::new(0));
        let queue: VecDeque<u64> = [60, 50, 40, 30, 100, 7, 250].into_iter().cycle().take(1400).collect();
        let queue = Mutex::new(queue);
        std::thread::scope(|scope| {
            for _ in 0..7 {
                scope.spawn(|| {
                    while let Some((_, permit)) = budget.first_that_fits(&queue, |size| *size, || false) {
                        let now = out.fetch_add(permit.bytes, Ordering::SeqCst) + permit.bytes;
                        assert!(now <= 100, "{now} bytes are taken");
                        out.fetch_sub(permit.bytes, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(*budget.free.lock().unwrap(), 100);
    }

    #[test]
    fn a_small_task_goes_ahead_of_one_that_must_wait() {
        let budget = Budget::new(100);
        let queue = Mutex::new(VecDeque::from([70, 60, 20, 10]));
        let next = || budget.first_that_fits(&queue, |size| *size, || false).unwrap();
        let (large, permit) = next();
        let (small, _beside) = next();
        assert_eq!((large, small), (70, 20));
        drop(permit);
        assert_eq!(next().0, 60);
    }
}
