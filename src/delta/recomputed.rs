//! A difference that is not held in memory. It gives the bits of one that is.

use std::ops::Range;
use std::sync::{Condvar, Mutex, PoisonError};

use faer::MatRef;

use crate::Result;
use crate::delta::difference::Difference;
use crate::factorize::types::Panels;

/// A difference that is recomputed at every visit, by at most `visitors` threads at once.
pub struct Recomputed<'a> {
    difference: Difference<'a>,
    idle: Mutex<Vec<Vec<f32>>>,
    returned: Condvar,
}

impl<'a> Recomputed<'a> {
    /// Creates buffers for `visitors` concurrent visits; they grow to the size of the requested panels.
    pub fn new(difference: Difference<'a>, visitors: usize) -> Recomputed<'a> {
        let idle = vec![Vec::new(); visitors.max(1)];
        Recomputed { difference, idle: Mutex::new(idle), returned: Condvar::new() }
    }
}

impl Panels for Recomputed<'_> {
    fn rows(&self) -> usize {
        self.difference.rows()
    }

    fn cols(&self) -> usize {
        self.difference.cols()
    }

    fn visit(&self, rows: Range<usize>, look: &mut dyn FnMut(MatRef<'_, f32>) -> Result<()>) -> Result<()> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let mut idle =
            self.returned.wait_while(idle, |idle| idle.is_empty()).unwrap_or_else(PoisonError::into_inner);
        let mut panel = idle.pop().unwrap_or_default();
        drop(idle);
        let (height, cols) = (rows.len(), self.cols());
        panel.resize(height * cols, 0.0);
        let looked = self
            .difference
            .fill(rows, &mut panel)
            .and_then(|()| look(MatRef::from_row_major_slice(&panel, height, cols)));
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(panel);
        self.returned.notify_one();
        looked
    }
}
