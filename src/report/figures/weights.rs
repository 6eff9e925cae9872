//! The magnitudes of the weights, from the histograms of an autopsy.

use std::collections::BTreeMap;

use crate::commands::autopsy::findings::{Finding, findings};
use crate::commands::autopsy::record::{Autopsy, Role, TensorAutopsy};
use crate::commands::autopsy::statistics::{Histogram, Statistics};
use crate::report::figures::{MOST_KINDS, kinds_left_out};
use crate::report::plot::axis::Axis;
use crate::report::plot::figure::{Figure, Legend, Mark, Plot, Point, Swatch, Table};
use crate::report::plot::palette;
use crate::report::plot::place::Spot;
use crate::report::tables::{Labelled, Tables};
use crate::report::words::{clean, number, percent, shorten};

const MOST_TENSORS: usize = 40;

/// The weights of one kind in one checkpoint.
#[derive(Default)]
struct Kind<'a> {
    tensors: Vec<&'a TensorAutopsy>,
    /// Counts by histogram step, over all tensors.
    steps: BTreeMap<i32, u64>,
}

type Kinds<'a> = BTreeMap<String, Kind<'a>>;

/// One plot per kind, with all checkpoints.
pub fn figure(tables: &Tables) -> Option<Figure> {
    let autopsies = &tables.autopsies;
    let by_kind: Vec<Kinds> = autopsies.iter().map(|autopsy| kinds(&autopsy.table)).collect();
    let mut counts: BTreeMap<&String, u64> = BTreeMap::new();
    for (kind, weights) in by_kind.iter().flatten() {
        *counts.entry(kind).or_default() +=
            weights.tensors.iter().map(|t| t.statistics.count).fold(0, u64::saturating_add);
    }
    let mut names: Vec<(&String, u64)> = counts.into_iter().collect();
    if names.len() > MOST_KINDS {
        names.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0)));
    }
    let left_out = kinds_left_out(names.len());
    let ends = ends(&by_kind)?;
    let plots = names
        .iter()
        .take(MOST_KINDS)
        .enumerate()
        .map(|(at, (name, _))| plot(at, name, autopsies, &by_kind, ends));
    let mut numbers: Vec<Table> =
        autopsies.iter().zip(&by_kind).map(|(autopsy, kinds)| table(autopsy, kinds)).collect();
    numbers.extend(autopsies.iter().filter_map(faults));
    Some(Figure {
        id: "weights".into(),
        title: "Magnitudes of the weights, by kind of module".into(),
        see: "Healthy weights form one smooth hill; a spike means a grid of few values, a distant island outliers, and a \
              shifted hill a misplaced scale."
            .into(),
        plots: plots.collect(),
        notes: ["All linear weights of a kind together, after dequantization; the hill does not include zeros.".to_owned()]
            .into_iter()
            .chain(left_out)
            .collect(),
        tables: numbers,
    })
}

fn kinds(autopsy: &Autopsy) -> Kinds<'_> {
    let mut kinds: Kinds = BTreeMap::new();
    for tensor in autopsy.tensors.iter().filter(|tensor| matches!(tensor.role, Role::Linear | Role::Table)) {
        let kind = kinds.entry(Spot::of(&tensor.name).kind).or_default();
        let histogram = &tensor.statistics.histogram;
        for (at, count) in histogram.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let step = i32::try_from(at).ok().and_then(|at| histogram.first.checked_add(at));
            // f64 magnitudes have fewer steps than this.
            if let Some(step) = step.filter(|step| step.unsigned_abs() < 4400) {
                let sum = kind.steps.entry(step).or_default();
                *sum = sum.saturating_add(*count);
            }
        }
        kind.tensors.push(tensor);
    }
    kinds
}

/// The lower and the upper edge of a step.
fn edges(step: i32) -> (f64, f64) {
    let edge = |first| Histogram { first, counts: Vec::new() }.edge(0);
    (edge(step), edge(step + 1))
}

/// The ends of all hills, without the long tail of the smallest 0.2 % of the weights.
fn ends(by_kind: &[Kinds]) -> Option<(f64, f64)> {
    let mut steps: BTreeMap<i32, u64> = BTreeMap::new();
    for (step, count) in by_kind.iter().flat_map(BTreeMap::values).flat_map(|kind| &kind.steps) {
        let sum = steps.entry(*step).or_default();
        *sum = sum.saturating_add(*count);
    }
    let total: f64 = steps.values().map(|count| *count as f64).sum();
    let (mut below, mut low) = (0.0, None);
    for (step, count) in &steps {
        below += *count as f64;
        if below > 2e-3 * total {
            low = Some(edges(*step).0);
            break;
        }
    }
    Some((low?, edges(*steps.keys().last()?).1))
}

fn plot(at: usize, kind: &str, autopsies: &[Labelled<Autopsy>], by_kind: &[Kinds], ends: (f64, f64)) -> Plot {
    let (mut marks, mut keys, mut most) = (Vec::new(), Vec::new(), 0.0f64);
    for (index, (autopsy, kinds)) in autopsies.iter().zip(by_kind).enumerate() {
        let Some(points) = kinds.get(kind).map(|kind| hill(&kind.steps, ends.0)) else { continue };
        most = points.iter().map(|(_, y)| *y).fold(most, f64::max);
        marks.push(Mark::Line { points, colour: palette::line(index), dashed: index % 2 == 1 });
        let swatch = if index % 2 == 1 { Swatch::Dashed } else { Swatch::Line };
        keys.push((swatch, palette::line(index), shorten(&autopsy.label, 28)));
    }
    Plot {
        id: format!("weights-{}", at + 1),
        title: shorten(kind, 44),
        height: 240,
        x: Axis::log10("magnitude of a weight, |w|", ends.0, ends.1),
        y: Axis::percent("weights per octave, %", 0.0, 1.05 * most),
        legend: Legend::Keys(keys),
        marks,
    }
}

/// The share of weights per octave, as a step line.
fn hill(steps: &BTreeMap<i32, u64>, low: f64) -> Vec<Point> {
    let total: f64 = steps.values().map(|count| *count as f64).sum();
    let (Some(first), Some(last)) = (steps.keys().next(), steps.keys().last()) else { return Vec::new() };
    let stair = |step: i32| {
        let (left, right) = edges(step);
        let share = steps.get(&step).map_or(0.0, |count| *count as f64) / total / (right / left).log2();
        (right > low).then_some([(left.max(low), share), (right, share)])
    };
    let stairs = (*first..=*last).filter_map(stair).flatten();
    [(edges(*first).0.max(low), 0.0)].into_iter().chain(stairs).chain([(edges(*last).1, 0.0)]).collect()
}

fn table(autopsy: &Labelled<Autopsy>, kinds: &Kinds) -> Table {
    let row = |(name, kind): (&String, &Kind)| {
        let statistics = || kind.tensors.iter().map(|tensor| &tensor.statistics);
        let count = statistics().map(|s| s.count as f64).sum::<f64>().max(1.0);
        let mean = |value: &dyn Fn(&Statistics) -> f64| {
            statistics().map(|s| value(s) * s.count as f64).sum::<f64>() / count
        };
        let largest = statistics().flat_map(|s| [s.min, s.max]).flatten().map(f64::abs).fold(0.0, f64::max);
        let stds = || statistics().map(|s| s.std);
        vec![
            name.clone(),
            kind.tensors.len().to_string(),
            number(mean(&|s| s.mean)),
            number(stds().fold(f64::INFINITY, f64::min)),
            number(stds().fold(0.0, f64::max)),
            number(largest),
            percent(mean(&|s| s.zero_share)),
            statistics().map(|s| s.nan.saturating_add(s.infinite)).fold(0, u64::saturating_add).to_string(),
        ]
    };
    let headings =
        ["kind", "tensors", "mean", "smallest std", "largest std", "largest |w|", "zeros", "not finite"];
    Table {
        caption: format!("{}: weights by kind of module", autopsy.label),
        words: 1,
        headings: headings.map(Into::into).into(),
        rows: kinds.iter().map(row).collect(),
    }
}

/// The findings of the autopsy, each fault of a kind in one row.
fn faults(autopsy: &Labelled<Autopsy>) -> Option<Table> {
    let found = findings(&autopsy.table);
    let row = |finding: &Finding| {
        let gravity = format!("{:?}", finding.gravity).to_lowercase();
        vec![clean(&finding.place), gravity, finding.fault.words().into(), clean(&finding.why)]
    };
    let rows: Vec<_> = found.iter().take(MOST_TENSORS).map(row).collect();
    (!rows.is_empty()).then(|| Table {
        caption: match found.len() > rows.len() {
            true => format!(
                "{}: the first {} of {} findings (all are in autopsy.json)",
                autopsy.label,
                rows.len(),
                found.len()
            ),
            false => format!("{}: findings", autopsy.label),
        },
        words: 4,
        headings: ["tensors", "severity", "finding", "details"].map(Into::into).into(),
        rows,
    })
}
