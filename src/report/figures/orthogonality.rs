//! Is the noise orthogonal to the change? Cosines, compared with chance.

use std::collections::BTreeMap;

use crate::commands::analyze::record::{Analysis, Cosine, Group, ModuleAnalysis};
use crate::report::figures::{MOST_KINDS, kinds_left_out};
use crate::report::plot::axis::Axis;
use crate::report::plot::figure::{Figure, Legend, Mark, Plot, Swatch, Table};
use crate::report::plot::palette;
use crate::report::plot::place::Spot;
use crate::report::tables::{Labelled, Tables};
use crate::report::words::{clean, number, percent, shorten};

/// Number of standard errors on each side of zero that contain 95 % of the cosines by chance.
const BAND: f64 = 1.96;

/// One plot per kind of module of each analysis.
pub fn figure(tables: &Tables) -> Option<Figure> {
    let analyses: Vec<_> = tables.analyses.iter().filter(|a| !a.table.modules.is_empty()).collect();
    let modules = || analyses.iter().flat_map(|analysis| &analysis.table.modules);
    let most = modules().map(|m| extent(&m.change_and_noise)).filter(|v| v.is_finite()).fold(0.0, f64::max);
    modules().next()?;
    let kinds = analyses.iter().map(|analysis| by_kind(&analysis.table).len()).max().unwrap_or(0);
    let plots = analyses
        .iter()
        .enumerate()
        .flat_map(|(at, analysis)| plots(at, analysis, 1.1 * most, analyses.len()));
    let mut notes = vec![
        "The area contains 95 % of the cosines if the signs of the products are fair coins, given both magnitudes; \
         a dot is significant after Benjamini and Hochberg's procedure over all modules, a ring is not. Of several modules of \
         one kind in a layer, for example experts, the one farthest from chance is drawn."
            .into(),
    ];
    notes.extend(kinds_left_out(kinds));
    Some(Figure {
        id: "orthogonality".into(),
        title: "Orthogonality: the cosine of change and noise".into(),
        see: "Rings inside the area: the quantization noise is unrelated to the change, and Method B has to spend rank to \
              correct it. Dots outside: the noise points with or against the change."
            .into(),
        plots: plots.collect(),
        notes,
        tables: analyses.iter().flat_map(|analysis| [cosines(analysis), subspaces(analysis)]).collect(),
    })
}

fn extent(cosine: &Cosine) -> f64 {
    cosine.value.abs().max(BAND * cosine.standard_error)
}

/// The module farthest from chance at each place.
fn by_kind(analysis: &Analysis) -> BTreeMap<String, BTreeMap<usize, &ModuleAnalysis>> {
    let mut kinds: BTreeMap<String, BTreeMap<usize, &ModuleAnalysis>> = BTreeMap::new();
    for module in &analysis.modules {
        let spot = Spot::of(&module.name);
        let layers = kinds.entry(spot.kind).or_default();
        let place = layers.entry(spot.layer.unwrap_or(0)).or_insert(module);
        if module.change_and_noise.z.abs() > place.change_and_noise.z.abs() {
            *place = module;
        }
    }
    kinds
}

fn plots(at: usize, analysis: &Labelled<Analysis>, most: f64, analyses: usize) -> Vec<Plot> {
    let kinds = by_kind(&analysis.table);
    let last = kinds.values().filter_map(|layers| layers.keys().last()).max().copied().unwrap_or(0);
    let plot = |(index, (kind, layers)): (usize, (String, BTreeMap<usize, &ModuleAnalysis>))| {
        let title = if analyses > 1 { format!("{}: {kind}", shorten(&analysis.label, 20)) } else { kind };
        Plot {
            id: format!("orthogonality-{}-{}", at + 1, index + 1),
            title: shorten(&title, 44),
            height: 240,
            x: Axis::whole("layer", -0.5, last as f64 + 0.5),
            y: Axis::linear("cos(D, N)", -most, most),
            legend: Legend::Keys(vec![
                (Swatch::Area, palette::line(0), "chance".into()),
                (Swatch::Ring, palette::line(0), "not significant".into()),
                (Swatch::Dot, palette::line(1), "significant".into()),
            ]),
            marks: marks(&layers),
        }
    };
    kinds.into_iter().take(MOST_KINDS).enumerate().map(plot).collect()
}

fn marks(layers: &BTreeMap<usize, &ModuleAnalysis>) -> Vec<Mark> {
    let cosines = || layers.iter().map(|(layer, module)| (*layer as f64, &module.change_and_noise));
    let band = cosines().flat_map(|(x, cosine)| {
        let error = BAND * cosine.standard_error;
        [(x - 0.5, -error, error), (x + 0.5, -error, error)]
    });
    let points = |significant: bool| {
        cosines().filter(|(_, c)| c.significant == significant).map(|(x, c)| (x, c.value)).collect::<Vec<_>>()
    };
    vec![
        Mark::Band { points: band.collect(), colour: palette::line(0) },
        Mark::Dots { points: points(false), colour: palette::line(0), hollow: true },
        Mark::Dots { points: points(true), colour: palette::line(1), hollow: false },
    ]
}

/// The groups by kind, and one for all modules.
fn groups(analysis: &Analysis) -> impl Iterator<Item = Group> + '_ {
    let total = Group { name: "all".into(), pooled: analysis.total.clone() };
    analysis.kinds.iter().cloned().chain([total])
}

fn cosines(analysis: &Labelled<Analysis>) -> Table {
    let row = |group: Group| {
        let pooled = &group.pooled;
        let cosine = &pooled.change_and_noise;
        vec![
            clean(&group.name),
            pooled.modules.to_string(),
            pooled.norms.signal_to_noise.map_or("-".into(), number),
            number(cosine.value),
            number(cosine.standard_error),
            number(cosine.p_value),
            pooled.change_and_noise_significant.to_string(),
        ]
    };
    let headings = [
        "kind",
        "modules",
        "‖D‖ / ‖N‖",
        "cos(D, N)",
        "standard error by chance",
        "p, two-sided",
        "significant modules",
    ];
    Table {
        caption: format!("{}: change and base noise by kind of module", analysis.label),
        words: 1,
        headings: headings.map(Into::into).into(),
        rows: groups(&analysis.table).map(row).collect(),
    }
}

/// Subspaces of leading directions: means over modules, by kind and k.
fn subspaces(analysis: &Labelled<Analysis>) -> Table {
    let mut sums: BTreeMap<(String, usize), (usize, [f64; 6])> = BTreeMap::new();
    for module in &analysis.table.modules {
        for subspace in &module.subspaces {
            let (count, sum) = sums.entry((clean(&module.kind), subspace.k)).or_default();
            let (left, right) = (&subspace.left, &subspace.right);
            let values = [
                left.mean_squared_cosine,
                left.expected,
                right.mean_squared_cosine,
                right.expected,
                left.noise_in_change,
                left.change_in_noise,
            ];
            *count += 1;
            sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        }
    }
    let row = |((kind, k), (count, sums)): ((String, usize), (usize, [f64; 6]))| {
        let means = sums.map(|sum| sum / count as f64);
        let cells = [number(means[0]), number(means[1]), number(means[2]), number(means[3])];
        let energies = [percent(means[4]), percent(means[5])];
        [kind, k.to_string()].into_iter().chain(cells).chain(energies).collect()
    };
    let headings = [
        "kind",
        "k",
        "mean cos², left",
        "by chance",
        "mean cos², right",
        "by chance",
        "noise in change's span",
        "change in noise's span",
    ];
    Table {
        caption: format!("{}: spans of the k leading directions of change and noise", analysis.label),
        words: 1,
        headings: headings.map(Into::into).into(),
        rows: sums.into_iter().map(row).collect(),
    }
}
