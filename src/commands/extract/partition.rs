//! How a plan is split into parts: from the plan's costs alone, so that every node comes to the same split by itself,
//! whatever its threads and its memory.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use crate::commands::extract::plan::{Plan, PlannedLeftover, PlannedModule};
use crate::run::part_id::Part;

/// What reading, decoding and hashing a byte costs, in floating-point operations of a large product: 4 GB/s beside some
/// 160 GFLOP/s.
const BYTE: f64 = 40.0;

/// The unit of [`cost`]: whole numbers add up to the same in any order.
const UNIT: f64 = 1e6;

/// What one unit of work costs, in millions of floating-point operations.
fn cost(flops: f64, read_bytes: u64) -> u64 {
    ((flops + BYTE * read_bytes as f64) / UNIT).round().max(1.0) as u64
}

impl PlannedModule {
    /// Its cost for the split: factorization and reading, in millions of floating-point operations.
    pub fn cost(&self) -> u64 {
        cost(self.flops, self.read_bytes)
    }
}

impl PlannedLeftover {
    /// The cost of its comparison, as [`PlannedModule::cost`].
    pub fn cost(&self) -> u64 {
        cost(0.0, self.read_bytes)
    }
}

/// Who does what, of so many parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    of: usize,
    modules: HashMap<String, usize>,
    compared: HashMap<String, usize>,
    loads: Vec<u64>,
}

impl Split {
    /// Splits `plan` into `of` parts: the dearest unit first, each to the part that has the least so far (Graham 1969,
    /// longest processing time first: at most 4/3 of the best there is).
    pub fn of(plan: &Plan, of: usize) -> Split {
        // Modules before comparisons, then by name: equal costs are told apart without regard to the plan's order.
        let modules = plan.modules.iter().map(|m| (Reverse(m.cost()), 0, m.name.clone()));
        let compared = plan.not_represented.iter().map(|l| (Reverse(l.cost()), 1, l.key()));
        let mut units: Vec<_> = modules.chain(compared).collect();
        units.sort_unstable();
        let mut least: BinaryHeap<Reverse<(u64, usize)>> = (0..of).map(|part| Reverse((0, part))).collect();
        let mut split = Split { of, modules: HashMap::new(), compared: HashMap::new(), loads: vec![0; of] };
        for (Reverse(cost), kind, name) in units {
            let Some(Reverse((load, part))) = least.pop() else { break };
            let owners = if kind == 0 { &mut split.modules } else { &mut split.compared };
            owners.insert(name, part + 1);
            split.loads[part] = load + cost;
            least.push(Reverse((load + cost, part)));
        }
        split
    }

    /// The part, from 1, that does a module.
    pub fn part_of_module(&self, name: &str) -> Option<usize> {
        self.modules.get(name).copied()
    }

    /// The part, from 1, that does the comparison with this [key](PlannedLeftover::key).
    pub fn part_of_comparison(&self, key: &str) -> Option<usize> {
        self.compared.get(key).copied()
    }

    /// The cost of each part, the first one's first.
    pub fn loads(&self) -> &[u64] {
        &self.loads
    }

    /// The dearest part over the mean of all; 1 is a perfect balance.
    pub fn imbalance(&self) -> f64 {
        let total: u64 = self.loads.iter().sum();
        let most = self.loads.iter().max().copied().unwrap_or(0);
        if total == 0 { 1.0 } else { most as f64 * self.of as f64 / total as f64 }
    }
}

impl Plan {
    /// What each unit of work costs, by the name that progress reports it under.
    pub(crate) fn costs(&self) -> std::collections::HashMap<String, u64> {
        let modules = self.modules.iter().map(|module| (module.name.clone(), module.cost()));
        let compared = self.not_represented.iter().map(|left| (left.key(), left.cost()));
        modules.chain(compared).collect()
    }

    /// The plan of one part alone: its share of the modules and of the comparisons.
    #[must_use]
    pub fn share(&self, part: Part) -> Plan {
        let split = Split::of(self, part.of());
        let mine = |owner: Option<usize>| owner == Some(part.index());
        let mut share = self.clone();
        share.modules.retain(|module| mine(split.part_of_module(&module.name)));
        share.not_represented.retain(|left| mine(split.part_of_comparison(&left.key())));
        let modules = share.modules.iter().map(|module| module.read_bytes);
        share.read_bytes = modules.chain(share.not_represented.iter().map(|left| left.read_bytes)).sum();
        share.seconds *= share.cost() as f64 / self.cost().max(1) as f64;
        share
    }

    /// The cost of all its work, as [`PlannedModule::cost`].
    pub fn cost(&self) -> u64 {
        let modules = self.modules.iter().map(PlannedModule::cost);
        modules.chain(self.not_represented.iter().map(PlannedLeftover::cost)).sum()
    }
}
