//! Divides a plan into units of work, and restricts a plan to some of them; and how a module is gone about.

use crate::commands::extract::holding::Holding;
use crate::commands::extract::plan::{ExtractionPlan, PlannedModule};
use crate::factorize::precision::Precision;
use crate::run::parts::part_id::Part;
use crate::run::parts::partition::Share;
use crate::run::unit::{PlannedUnit, UnitId, Work};

impl PlannedModule {
    /// This module as a unit of work.
    pub fn unit(&self) -> UnitId {
        UnitId::module(&self.name)
    }
}

impl ExtractionPlan {
    /// All work of the plan, in units.
    pub fn units(&self) -> Vec<PlannedUnit> {
        let modules = self.modules.iter().map(|m| PlannedUnit::new(m.unit(), m.flops, m.read_bytes));
        let compared =
            self.not_represented.iter().map(|l| PlannedUnit::new(l.unit.clone(), 0.0, l.read_bytes));
        modules.chain(compared).collect()
    }

    /// The plan of one part: its share of the modules and of the comparisons.
    #[must_use]
    pub fn share(&self, part: Part) -> ExtractionPlan {
        self.only(&Share::of_part(&self.units(), part))
    }

    /// The plan restricted to `share`.
    #[must_use]
    pub fn only(&self, share: &Share) -> ExtractionPlan {
        let mut plan = self.clone();
        plan.modules.retain(|module| share.contains(&module.unit()));
        plan.not_represented.retain(|left| share.contains(&left.unit));
        plan.read_bytes = Work::of(&plan.units()).bytes;
        let modules = plan.modules.iter().map(|module| module.link_bytes);
        plan.link_bytes = modules.chain(plan.not_represented.iter().map(|left| left.link_bytes)).sum();
        plan.seconds *= plan.cost() as f64 / self.cost().max(1) as f64;
        plan
    }

    /// The cost of all its work, in millions of floating-point operations.
    pub fn cost(&self) -> u64 {
        Work::of(&self.units()).cost
    }
}

/// A module, and how it is gone about.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// The module.
    pub module: &'a PlannedModule,
    /// What is held of its delta.
    pub holding: Holding,
    /// The numbers: with [`Precision::Auto`], bytes that may turn out to be too coarse.
    pub precision: Precision,
    /// What bytes were seen to miss, as a share of the delta's squared norm.
    pub missed_by_bytes: Option<f64>,
}

impl<'a> Attempt<'a> {
    /// The first attempt at a module.
    pub fn first(module: &'a PlannedModule) -> Attempt<'a> {
        let PlannedModule { holding, precision, .. } = *module;
        Attempt { module, holding, precision, missed_by_bytes: None }
    }

    /// The attempt in f32, after one in bytes that missed this share.
    #[must_use]
    pub fn again(self, missed: f64) -> Attempt<'a> {
        let holding = self.module.in_f32;
        Attempt { holding, precision: Precision::F32, missed_by_bytes: Some(missed), ..self }
    }

    /// Whether the delta is rounded to bytes.
    pub fn in_bytes(&self) -> bool {
        self.precision != Precision::F32
    }
}
