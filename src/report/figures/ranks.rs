//! The rank that the noise leaves room for.

use std::collections::BTreeMap;

use crate::commands::analyze::record::Analysis;
use crate::report::figures::heat::{Heat, columns};
use crate::report::plot::figure::{Figure, Plot, Table};
use crate::report::plot::place::Spot;
use crate::report::tables::{Labelled, Tables};
use crate::report::words::{clean, shorten};

/// One map of suggested ranks per analysis.
pub fn figure(tables: &Tables) -> Option<Figure> {
    let analyses: Vec<_> = tables.analyses.iter().filter(|a| !a.table.modules.is_empty()).collect();
    if analyses.is_empty() {
        return None;
    }
    Some(Figure {
        id: "ranks".into(),
        title: "Suggested ranks: directions that stand out of the noise".into(),
        see: "Light places need more rank than dark ones. The suggested rank is the number of singular values of Method \
              B's matrix above Gavish and Donoho's threshold for noise of this size."
            .into(),
        plots: analyses.iter().enumerate().map(|(at, analysis)| plot(at, analysis)).collect(),
        notes: vec![
            "Where all known values stand out, the count is a lower bound; of several modules at one place, the largest is \
             drawn."
                .into(),
        ],
        tables: analyses.iter().map(|analysis| table(analysis)).collect(),
    })
}

fn plot(at: usize, analysis: &Labelled<Analysis>) -> Plot {
    let mut cells: BTreeMap<Spot, f64> = BTreeMap::new();
    for module in &analysis.table.modules {
        let cell = cells.entry(Spot::of(&module.name)).or_default();
        *cell = cell.max(module.spectrum.suggested_rank as f64);
    }
    let most = cells.values().copied().fold(1.0, f64::max);
    let heat = Heat {
        id: format!("ranks-{}", at + 1),
        title: shorten(&analysis.label, 44),
        quantity: "suggested rank, singular values",
        cells: &cells,
        kinds: &columns(&cells),
        ends: (0.0, most),
        show: &|value| format!("{value:.0}"),
    };
    heat.plot()
}

fn table(analysis: &Labelled<Analysis>) -> Table {
    let total = ("all", &analysis.table.total);
    let groups = analysis.table.kinds.iter().map(|group| (&*group.name, &group.pooled)).chain([total]);
    let row = |(name, pooled): (&str, &crate::commands::analyze::record::Pooled)| {
        let ranks = pooled.suggested_rank.map(|rank| rank.to_string());
        let counts = [pooled.modules.to_string()].into_iter().chain(ranks);
        [clean(name)].into_iter().chain(counts).chain([pooled.suggested_is_at_least.to_string()]).collect()
    };
    let headings = ["kind", "modules", "smallest", "median", "largest", "modules with a lower bound only"];
    Table {
        caption: format!("{}: suggested ranks by kind of module", analysis.label),
        words: 1,
        headings: headings.map(Into::into).into(),
        rows: groups.map(row).collect(),
    }
}
