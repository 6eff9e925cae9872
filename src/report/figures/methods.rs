//! The distance of weights that Method A and Method B would leave at the analysis's rank, before any adapter is made.

use std::collections::BTreeMap;

use crate::commands::analyze::record::{Analysis, Remaining};
use crate::report::figures::served::{plot, table};
use crate::report::plot::figure::Figure;
use crate::report::served::{Column, Served, Sum};
use crate::report::tables::{Labelled, Tables};
use crate::report::words::clean;

/// One plot per analysis.
pub fn figure(tables: &Tables) -> Option<Figure> {
    let methods: Vec<Served> = tables.analyses.iter().filter_map(methods).collect();
    if methods.is_empty() {
        return None;
    }
    Some(Figure {
        id: "methods".into(),
        title: "Method A and Method B at the same rank, before storage".into(),
        see: "How far the served weights would be from the tuned ones. With the whole change, at any rank, the noise remains. \
              Which method serves better does not follow from this distance: see how much of what Method B keeps is noise, and \
              measure the loss."
            .into(),
        plots: methods.iter().enumerate().map(|(at, served)| plot("methods", at, served)).collect(),
        notes: Vec::new(),
        tables: methods.iter().map(table).collect(),
    })
}

fn methods(analysis: &Labelled<Analysis>) -> Option<Served> {
    let rank =
        analysis.table.options.get("rank").map(|rank| format!(" of rank {}", clean(&rank.to_string())));
    let rank = rank.unwrap_or_default();
    let column = |label: String, left: fn(&Remaining) -> f64| {
        let sum = |module: &crate::commands::analyze::record::ModuleAnalysis| {
            let without = module.norms.corrective;
            (module.name.clone(), Sum::of(without, left(&module.remaining) * without))
        };
        let modules: BTreeMap<String, Sum> = analysis.table.modules.iter().map(sum).collect();
        Column { label, modules }
    };
    (!analysis.table.modules.is_empty()).then(|| Served {
        on: clean(&analysis.table.base_quantized.name),
        tuned: clean(&analysis.table.tuned.name),
        columns: vec![
            column(format!("Method A{rank}"), |left| left.method_a),
            column(format!("Method B{rank}"), |left| left.method_b),
            column("all of the change, any rank".into(), |left| left.noise),
        ],
        inputs: [None, None],
    })
}
