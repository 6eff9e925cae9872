//! The byte budget: whoever is about to hold memory first takes a permit for it.

use std::sync::{Condvar, Mutex, PoisonError};

/// A number of bytes that may be held at once.
#[derive(Debug)]
pub struct Budget {
    total: u64,
    free: Mutex<u64>,
    returned: Condvar,
}

/// Bytes taken from a [`Budget`]; they go back when it is dropped.
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

    /// Waits until `bytes` are free and takes them. A request above the total is cut to it, so that it cannot wait
    /// for ever; the plan has refused what does not fit.
    pub fn take(&self, bytes: u64) -> Permit<'_> {
        let bytes = bytes.min(self.total);
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free =
            self.returned.wait_while(free, |free| *free < bytes).unwrap_or_else(PoisonError::into_inner);
        *free -= bytes;
        Permit { budget: self, bytes }
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
        std::thread::scope(|scope| {
            for size in [60, 50, 40, 30, 100, 7, 250] {
                let (budget, out) = (&budget, &out);
                scope.spawn(move || {
                    for _ in 0..200 {
                        let permit = budget.take(size);
                        let now = out.fetch_add(permit.bytes, Ordering::SeqCst) + permit.bytes;
                        assert!(now <= 100, "{now} bytes are out");
                        out.fetch_sub(permit.bytes, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(*budget.free.lock().unwrap(), 100);
    }
}
