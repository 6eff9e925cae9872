//! What is held of a delta in memory.

use serde::Serialize;

/// What is held of a delta, and what that takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Holding {
    /// Whether it is held in memory, or recomputed at every pass.
    pub held: bool,
    /// How many threads may hold a panel of it at once, if it is recomputed.
    pub visitors: usize,
    /// Bytes of memory that the module takes while in progress.
    pub memory: u64,
}

impl Holding {
    /// Within `budget`: everything, if that takes `held` bytes, or what so many visitors of a delta that is `recomputed`
    /// take.
    pub fn within(budget: u64, held: u64, recomputed: impl Fn(usize) -> u64, threads: usize) -> Holding {
        let visitors = (1..=threads).rev().find(|&visitors| recomputed(visitors) <= budget).unwrap_or(1);
        let fits = held <= budget;
        Holding { held: fits, visitors, memory: if fits { held } else { recomputed(visitors) } }
    }
}
