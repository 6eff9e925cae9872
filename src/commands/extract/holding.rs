//! What is held of a delta in memory.

use serde::Serialize;

use crate::factorize::precision::Precision;

/// What is held of a delta, and what that takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Holding {
    /// Whether it is held in memory, or recomputed at every pass.
    pub held: bool,
    /// Whether it is held in f32 although it is multiplied in bytes, which are then made anew at every visit.
    #[serde(skip)]
    pub as_values: bool,
    /// Whether the module is done in f32 at once where bytes turn out to be too coarse. What comes from a server is
    /// then not fetched again for that.
    #[serde(skip)]
    pub at_once: bool,
    /// How many threads may hold a panel of it at once, if it is recomputed.
    pub visitors: usize,
    /// Bytes of memory that the module takes while in progress.
    pub memory: u64,
}

impl Holding {
    /// Within `budget`: everything, if that takes `held` bytes, or what so many visitors of a delta that is
    /// `recomputed` take.
    fn within(budget: u64, held: u64, recomputed: impl Fn(usize) -> u64, threads: usize) -> Holding {
        let visitors = (1..=threads).rev().find(|&visitors| recomputed(visitors) <= budget).unwrap_or(1);
        let fits = held <= budget;
        let memory = if fits { held } else { recomputed(visitors) };
        Holding { held: fits, as_values: false, at_once: false, visitors, memory }
    }

    /// Whether the two sides of the delta are read again after the first time: for its passes, or to measure what its
    /// bytes leave.
    pub fn reads_again(&self, in_bytes: bool) -> bool {
        !self.held || in_bytes && !self.as_values
    }
}

/// What a module may take, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// The delta in f32.
    pub delta: u64,
    /// The same in bytes.
    pub codes: u64,
    /// One panel.
    pub panel: u64,
    /// The larger of the factorization's workspace and the finished factors.
    pub work: u64,
    /// The same where the delta is in bytes.
    pub code_work: u64,
    /// Stored bytes that stay mapped while the delta is read, for formats packed along columns.
    pub kept: u64,
    /// Whether the error on the served checkpoint is measured after the factorization.
    pub served: bool,
}

impl Memory {
    /// The delta, and the larger of what its factorization and its reading take: its two sides are then not read
    /// again, except to measure the served checkpoint.
    fn held(&self, delta: u64, work: u64) -> u64 {
        delta + if self.served { work + self.kept } else { work.max(self.kept) }
    }

    fn recomputed(&self, visitors: usize, work: u64) -> u64 {
        (self.panel * visitors as u64).min(self.delta) + work + self.kept
    }

    /// The codes of a panel for every thread.
    fn records(&self, threads: usize) -> u64 {
        self.panel / 3 * threads as u64
    }

    fn codes_recomputed(&self, visitors: usize, threads: usize) -> u64 {
        self.recomputed(visitors, self.code_work) + self.records(threads)
    }

    /// The least that does.
    pub fn least(&self, precision: Precision, threads: usize) -> u64 {
        let in_f32 = self.recomputed(1, self.work);
        if precision == Precision::F32 { in_f32 } else { in_f32.max(self.codes_recomputed(1, threads)) }
    }

    /// What is held of a delta in f32.
    pub fn in_f32(&self, budget: u64, threads: usize) -> Holding {
        let held = self.held(self.delta, self.work);
        Holding::within(budget, held, |visitors| self.recomputed(visitors, self.work), threads)
    }

    /// What is held of a delta in bytes.
    pub fn in_bytes(&self, budget: u64, threads: usize) -> Holding {
        // A small error is measured on the delta itself, which is recomputed for that.
        let panels = (self.panel * threads as u64).min(self.delta);
        let held = self.held(self.codes + panels, self.code_work);
        Holding::within(budget, held, |visitors| self.codes_recomputed(visitors, threads), threads)
    }

    /// The delta in f32 for passes in bytes, if it fits.
    pub fn as_values(&self, budget: u64, threads: usize) -> Option<Holding> {
        let memory = self.held(self.delta + self.records(threads), self.work.max(self.code_work));
        let held = Holding { held: true, as_values: true, at_once: true, visitors: threads, memory };
        (memory <= budget).then_some(held)
    }

    /// What is held of a delta in bytes, with room for computing it anew in f32 if bytes are too coarse.
    pub fn in_bytes_or_f32(&self, budget: u64, threads: usize) -> Holding {
        let holding = self.in_bytes(budget, threads);
        let in_f32 = |visitors| self.recomputed(visitors, self.work);
        let recomputed = Holding::within(budget, u64::MAX, in_f32, holding.visitors);
        let memory = holding.memory.max(recomputed.memory);
        Holding { at_once: true, visitors: recomputed.visitors, memory, ..holding }
    }
}
