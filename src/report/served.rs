//! The measured distance of the served weights from the tuned ones. A Method B extraction measures it as its own error,
//! a Method A extraction if it was given `--served`, and `fidelity` for any adapter.

use std::collections::BTreeMap;

use crate::checkpoint::identity::Identity;
use crate::commands::fidelity::record::{Fidelity, FidelityAdapter, FidelityModule};
use crate::delta::record::Side;
use crate::report::tables::{Adapter, Labelled, Tables};
use crate::report::words::clean;

/// Squared distances, summed over modules.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sum {
    /// `||T - dequant(Q)||^2`.
    pub without2: f64,
    /// `||T - (dequant(Q) + B·A)||^2`.
    pub with2: f64,
}

impl Sum {
    /// The squared distances of one module.
    pub fn of(without: f64, with: f64) -> Sum {
        Sum { without2: without.powi(2), with2: with.powi(2) }
    }

    /// Adds the squared distances of another module.
    pub fn add(&mut self, other: &Sum) {
        self.without2 += other.without2;
        self.with2 += other.with2;
    }

    /// The remaining share of the distance; `None` if there was none.
    pub fn ratio(&self) -> Option<f64> {
        (self.without2 > 0.0).then(|| (self.with2 / self.without2).sqrt()).filter(|ratio| ratio.is_finite())
    }
}

/// One adapter on one served checkpoint.
#[derive(Clone, Debug)]
pub struct Column {
    /// Its label in the report.
    pub label: String,
    /// Distances by module.
    pub modules: BTreeMap<String, Sum>,
}

impl Column {
    /// The sum over all modules.
    pub fn total(&self) -> Sum {
        self.modules.values().fold(Sum::default(), |mut total, sum| {
            total.add(sum);
            total
        })
    }
}

/// One served checkpoint, one tuned checkpoint, and every adapter that was measured with them.
#[derive(Clone, Debug)]
pub struct Served {
    /// Name of the served checkpoint.
    pub on: String,
    /// Name of the tuned checkpoint.
    pub tuned: String,
    /// The adapters, in the order of the folders.
    pub columns: Vec<Column>,
    /// The files of both, if known.
    pub inputs: [Option<Identity>; 2],
}

impl Served {
    /// All measurements in the tables, grouped by the files of both checkpoints.
    pub fn all(tables: &Tables) -> Vec<Served> {
        let mut groups: Vec<Served> = Vec::new();
        let extractions = tables.adapters.iter().filter_map(Served::of_extraction);
        for served in extractions.chain(tables.fidelities.iter().filter_map(Served::of_fidelity)) {
            match groups.iter_mut().find(|other| other.inputs == served.inputs) {
                Some(other) => other.join(served),
                None => groups.push(served),
            }
        }
        groups
    }

    /// Adds the adapters of `other`; one that was measured again over the same weights with the same
    /// result is kept once.
    fn join(&mut self, other: Served) {
        for mut column in other.columns {
            let (total, same) =
                (column.total(), |a: f64, b: f64| (a - b).abs() <= 1e-6 * (a.abs() + b.abs()));
            let known = self.columns.iter().find(|known| known.label == column.label).map(Column::total);
            match known {
                Some(sum) if same(sum.with2, total.with2) && same(sum.without2, total.without2) => continue,
                Some(_) => column.label += " (fidelity)",
                None => {}
            }
            self.columns.push(column);
        }
    }

    fn of_extraction(adapter: &Adapter) -> Option<Served> {
        let manifest = adapter.manifest.as_ref()?;
        let (on, side) = match &manifest.served {
            Some(served) => (served, Side::Served),
            None if manifest.base.is_quantized() => (&manifest.base, Side::Base),
            None => return None,
        };
        let sum = |module: &crate::delta::module_record::ModuleRecord| {
            let quality = &module.quality;
            match (side, quality.served) {
                (Side::Served, served) => served.map(|e| Sum::of(e.without_adapter, e.with_adapter)),
                _ => Some(Sum::of(quality.delta_norm, quality.relative_error * quality.delta_norm)),
            }
        };
        let modules: BTreeMap<String, Sum> =
            adapter.modules().filter_map(|module| Some((module.name.clone(), sum(module)?))).collect();
        (!modules.is_empty()).then(|| Served {
            on: clean(&on.name),
            tuned: clean(&manifest.tuned.name),
            columns: vec![Column { label: adapter.label.clone(), modules }],
            inputs: [side, Side::Tuned].map(|side| manifest.inputs.get(&side).map(Identity::timeless)),
        })
    }

    fn of_fidelity(fidelity: &Labelled<Fidelity>) -> Option<Served> {
        let table = &fidelity.table;
        let column = |(at, adapter): (usize, &FidelityAdapter)| {
            let sum = |module: &FidelityModule| {
                let with = module.distances.with.get(at)?;
                Some((module.name.clone(), Sum::of(module.distances.without, *with)))
            };
            Column { label: clean(&adapter.name), modules: table.modules.iter().filter_map(sum).collect() }
        };
        let identity = |side: Side| table.inputs.get(&side).map(Identity::timeless);
        (!table.modules.is_empty() && !table.adapters.is_empty()).then(|| Served {
            on: clean(&table.served.name),
            tuned: clean(&table.tuned.name),
            columns: table.adapters.iter().enumerate().map(column).collect(),
            inputs: [Side::Served, Side::Tuned].map(identity),
        })
    }
}
