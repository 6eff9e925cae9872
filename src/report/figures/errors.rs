//! Where in the model the adapter is close to the change, and where it is not.

use std::collections::BTreeMap;

use crate::delta::module_record::Quality;
use crate::report::figures::heat::Heat;
use crate::report::figures::{MOST_KINDS, kinds_left_out};
use crate::report::plot::figure::{Figure, Table};
use crate::report::plot::place::Spot;
use crate::report::tables::{Adapter, Tables};
use crate::report::words::{clean, number, percent, shorten};

const MOST_MODULES: usize = 25;

/// One map of relative errors per adapter.
pub fn figure(tables: &Tables) -> Option<Figure> {
    let adapters: Vec<&Adapter> =
        tables.adapters.iter().filter(|adapter| adapter.modules().next().is_some()).collect();
    let cells: Vec<BTreeMap<Spot, f64>> = adapters.iter().map(|adapter| pooled(adapter)).collect();
    let values = || cells.iter().flat_map(BTreeMap::values).copied();
    let ends = (values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max));
    let plots = adapters.iter().zip(&cells).enumerate().map(|(at, (adapter, cells))| {
        let heat = Heat {
            id: format!("errors-{}", at + 1),
            title: shorten(&adapter.label, 44),
            quantity: "relative error, ‖delta − B·A‖ / ‖delta‖",
            cells,
            kinds: &largest_kinds(adapter),
            ends,
            show: &|value| format!("{value:.2}"),
        };
        heat.plot()
    });
    let plots: Vec<_> = plots.collect();
    let kinds = adapters.iter().map(|adapter| adapter.modules_by_kind().len()).max()?;
    Some(Figure {
        id: "errors".into(),
        title: "Relative error by layer and kind of module".into(),
        see: "Dark is close to the change, light is far from it: a light column is a kind of module, and a light row a \
              layer, that would profit from more rank."
            .into(),
        plots,
        notes: kinds_left_out(kinds).into_iter().collect(),
        tables: adapters.iter().flat_map(|adapter| [by_kind(adapter), worst(adapter)]).collect(),
    })
}

/// The pooled error of all modules at one place, for example all experts of a layer.
fn pooled(adapter: &Adapter) -> BTreeMap<Spot, f64> {
    let mut sums: BTreeMap<Spot, (f64, f64)> = BTreeMap::new();
    for module in adapter.modules() {
        let sum = sums.entry(Spot::of(&module.name)).or_default();
        *sum = (sum.0 + module.quality.delta_norm.powi(2), sum.1 + module.quality.error2());
    }
    sums.into_iter()
        .map(|(spot, (norm2, error2))| (spot, Quality::of(norm2, error2).relative_error))
        .collect()
}

/// The kinds in order of their names, without those of the smallest change if there are too many.
fn largest_kinds(adapter: &Adapter) -> Vec<String> {
    let energy = |modules: &[&crate::delta::module_record::ModuleRecord]| -> f64 {
        modules.iter().map(|module| module.quality.delta_norm.powi(2)).sum()
    };
    let kinds = adapter.modules_by_kind();
    let mut kinds: Vec<(f64, String)> =
        kinds.into_iter().map(|(kind, modules)| (energy(&modules), kind)).collect();
    kinds.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    let mut kinds: Vec<String> = kinds.into_iter().take(MOST_KINDS).map(|(_, kind)| kind).collect();
    kinds.sort();
    kinds
}

fn by_kind(adapter: &Adapter) -> Table {
    let row = |(kind, modules): (String, Vec<&crate::delta::module_record::ModuleRecord>)| {
        let errors = modules.iter().map(|module| module.quality.relative_error);
        let mean = errors.clone().sum::<f64>() / modules.len() as f64;
        let (norm2, error2) = modules.iter().fold((0.0, 0.0), |(norm2, error2), module| {
            (norm2 + module.quality.delta_norm.powi(2), error2 + module.quality.error2())
        });
        let ranks = modules.iter().map(|module| module.rank);
        let ranks = (ranks.clone().min().unwrap_or(0), ranks.max().unwrap_or(0));
        let ranks = if ranks.0 == ranks.1 { ranks.0.to_string() } else { format!("{}-{}", ranks.0, ranks.1) };
        vec![
            kind,
            modules.len().to_string(),
            ranks,
            number(mean),
            number(errors.fold(0.0, f64::max)),
            percent(Quality::of(norm2, error2).captured_energy),
        ]
    };
    Table {
        caption: format!("{}: error by kind of module", adapter.label),
        words: 1,
        headings: ["kind", "modules", "rank", "mean error", "worst error", "captured energy"]
            .map(Into::into)
            .into(),
        rows: adapter.modules_by_kind().into_iter().map(row).collect(),
    }
}

fn worst(adapter: &Adapter) -> Table {
    let mut modules: Vec<_> = adapter.modules().collect();
    modules.sort_by(|a, b| {
        b.quality.relative_error.total_cmp(&a.quality.relative_error).then_with(|| a.name.cmp(&b.name))
    });
    let total = modules.len();
    let row = |module: &&crate::delta::module_record::ModuleRecord| {
        let [rows, columns] = module.shape;
        vec![
            clean(&module.name),
            format!("{rows} × {columns}"),
            module.rank.to_string(),
            number(module.quality.delta_norm),
            number(module.quality.relative_error),
            percent(module.quality.captured_energy),
        ]
    };
    let rows: Vec<_> = modules.iter().take(MOST_MODULES).map(row).collect();
    let which = if total > rows.len() {
        format!("the {} of {total} modules with the largest errors (all are in extraction.json)", rows.len())
    } else {
        "every module, the largest error first".into()
    };
    Table {
        caption: format!("{}: {which}", adapter.label),
        words: 1,
        headings: ["module", "out × in", "rank", "‖delta‖", "error", "captured energy"]
            .map(Into::into)
            .into(),
        rows,
    }
}
