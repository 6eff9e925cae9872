//! The split of a run into parts. It depends on the costs of the units alone, so every node computes the same split by
//! itself, whatever its number of threads and its memory.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

use crate::run::parts::part_id::Part;
use crate::run::unit::{PlannedUnit, UnitId};

/// The assignment of units to parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    of: usize,
    owners: HashMap<UnitId, usize>,
    loads: Vec<u64>,
}

impl Partition {
    /// Splits `units` into `of` parts: the most expensive unit first, each to the part with the least load so far
    /// (Graham 1969, longest processing time first: at most 4/3 of the optimum).
    pub fn of(units: &[PlannedUnit], of: usize) -> Partition {
        // Equal costs: comparisons after modules, then by name, so the plan's order does not matter.
        let mut units: Vec<_> = units.iter().map(|unit| (Reverse(unit.cost), unit.id.clone())).collect();
        units.sort_unstable();
        let mut least: BinaryHeap<Reverse<(u64, usize)>> = (0..of).map(|part| Reverse((0, part))).collect();
        let mut partition = Partition { of, owners: HashMap::new(), loads: vec![0; of] };
        for (Reverse(cost), id) in units {
            let Some(Reverse((load, part))) = least.pop() else { break };
            partition.owners.insert(id, part + 1);
            partition.loads[part] = load + cost;
            least.push(Reverse((load + cost, part)));
        }
        partition
    }

    /// The part, from 1, that does a unit.
    pub fn part_of(&self, id: &UnitId) -> Option<usize> {
        self.owners.get(id).copied()
    }

    /// The cost of each part, in the order of the parts.
    pub fn loads(&self) -> &[u64] {
        &self.loads
    }

    /// The largest cost of a part divided by the mean; 1 is perfect balance.
    pub fn imbalance(&self) -> f64 {
        let total: u64 = self.loads.iter().sum();
        let most = self.loads.iter().max().copied().unwrap_or(0);
        if total == 0 { 1.0 } else { most as f64 * self.of as f64 / total as f64 }
    }
}

/// The share of a run's units that one attempt has to finish.
#[derive(Clone, Debug)]
pub struct Share(HashSet<UnitId>);

impl Share {
    /// All of `units`.
    pub fn whole(units: &[PlannedUnit]) -> Share {
        Share(units.iter().map(|unit| unit.id.clone()).collect())
    }

    /// The share of `part`.
    pub fn of_part(units: &[PlannedUnit], part: Part) -> Share {
        let owners = Partition::of(units, part.of()).owners;
        Share(owners.into_iter().filter(|(_, owner)| *owner == part.index()).map(|(id, _)| id).collect())
    }

    /// Whether a unit is in it.
    pub fn contains(&self, id: &UnitId) -> bool {
        self.0.contains(id)
    }
}
