//! Is the noise of the quantized base the same as that of the quantized tuned model?

use std::collections::BTreeMap;

use crate::commands::analyze::record::{Analysis, ModuleAnalysis};
use crate::report::figures::heat::{Heat, columns};
use crate::report::plot::figure::{Figure, Plot, Table};
use crate::report::plot::place::Spot;
use crate::report::tables::{Labelled, Tables};
use crate::report::words::{clean, number, shorten};

/// Two maps per analysis: the correlation of magnitudes, and the cosine.
pub fn figure(tables: &Tables) -> Option<Figure> {
    let analyses: Vec<_> = tables.analyses.iter().filter(|a| !a.table.modules.is_empty()).collect();
    if analyses.is_empty() {
        return None;
    }
    let plots = analyses.iter().enumerate().flat_map(|(at, analysis)| maps(at, analysis));
    Some(Figure {
        id: "noise".into(),
        title: "Noise patterns of the quantized base and the quantized tuned model".into(),
        see: "A cosine near 1 means the same noise in both, which cancels if the tuned model is quantized too; a \
              correlation of |N| without a cosine means noise of the same size at the same places, but with other signs."
            .into(),
        plots: plots.collect(),
        notes: analyses
            .iter()
            .map(|a| format!("{}: the tuned model's noise comes from {}.", a.label, clean(&a.table.tuned_noise)))
            .collect(),
        tables: analyses.iter().map(|analysis| table(analysis)).collect(),
    })
}

fn maps(at: usize, analysis: &Labelled<Analysis>) -> Vec<Plot> {
    type Value = fn(&ModuleAnalysis) -> Option<f64>;
    let quantities: [(&str, &str, Value); 2] = [
        ("pattern", "correlation of |N_b| and |N_t|", |module| module.magnitude_correlation),
        ("sign", "cos(N_b, N_t)", |module| Some(module.noise_and_noise.value)),
    ];
    let map = |(name, quantity, value): (&str, &str, Value)| {
        let modules = &analysis.table.modules;
        let cells = means(modules.iter().filter_map(|module| Some((&*module.name, value(module)?))));
        let least = cells.values().copied().fold(0.0, f64::min);
        let heat = Heat {
            id: format!("noise-{name}-{}", at + 1),
            title: shorten(&analysis.label, 44),
            quantity,
            cells: &cells,
            kinds: &columns(&cells),
            ends: (least.max(-1.0), 1.0),
            // Avoids -0.00.
            show: &|value| format!("{:.2}", (100.0 * value).round() / 100.0 + 0.0),
        };
        (!cells.is_empty()).then(|| heat.plot())
    };
    quantities.into_iter().filter_map(map).collect()
}

/// The mean of the values at each place.
fn means<'a>(values: impl Iterator<Item = (&'a str, f64)>) -> BTreeMap<Spot, f64> {
    let mut sums: BTreeMap<Spot, (f64, usize)> = BTreeMap::new();
    for (name, value) in values {
        let (sum, count) = sums.entry(Spot::of(name)).or_default();
        (*sum, *count) = (*sum + value, *count + 1);
    }
    sums.into_iter().map(|(spot, (sum, count))| (spot, sum / count as f64)).collect()
}

fn table(analysis: &Labelled<Analysis>) -> Table {
    let total = ("all", &analysis.table.total);
    let groups = analysis.table.kinds.iter().map(|group| (&*group.name, &group.pooled)).chain([total]);
    let row = |(name, pooled): (&str, &crate::commands::analyze::record::Pooled)| {
        let cosine = &pooled.noise_and_noise;
        vec![
            clean(name),
            pooled.modules.to_string(),
            number(pooled.norms.base_noise),
            number(pooled.norms.tuned_noise),
            pooled.magnitude_correlation.map_or("-".into(), number),
            number(cosine.value),
            number(cosine.standard_error),
            pooled.noise_and_noise_significant.to_string(),
        ]
    };
    let headings = [
        "kind",
        "modules",
        "‖N_b‖",
        "‖N_t‖",
        "correlation of magnitudes",
        "cos(N_b, N_t)",
        "standard error by chance",
        "significant modules",
    ];
    Table {
        caption: format!("{}: noise of the base and of the tuned model by kind of module", analysis.label),
        words: 1,
        headings: headings.map(Into::into).into(),
        rows: groups.map(row).collect(),
    }
}
