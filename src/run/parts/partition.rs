//! How a run is split into parts: from the costs of its units alone, so that every node comes to the same split by itself,
//! whatever its threads and its memory.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

use crate::run::parts::part_id::Part;
use crate::run::unit::{PlannedUnit, UnitId};

/// Which part does which unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    of: usize,
    owners: HashMap<UnitId, usize>,
    loads: Vec<u64>,
}

impl Partition {
    /// Splits `units` into `of` parts: the dearest unit first, each to the part that has the least so far (Graham 1969,
    /// longest processing time first: at most 4/3 of the best there is).
    pub fn of(units: &[PlannedUnit], of: usize) -> Partition {
        // Comparisons after modules, then by name: equal costs are told apart without regard to the plan's order.
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

/// Some of a run's units: those that one attempt is to finish.
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
