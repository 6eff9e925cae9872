//! Fidelity: the distance of the served weights from the tuned ones, with each adapter and with none.

use std::collections::BTreeMap;

use crate::report::figures::{MOST_KINDS, kinds_left_out};
use crate::report::plot::axis::Axis;
use crate::report::plot::figure::{Figure, Legend, Mark, Plot, Swatch, Table};
use crate::report::plot::palette;
use crate::report::plot::place::Spot;
use crate::report::served::{Served, Sum};
use crate::report::tables::Tables;
use crate::report::words::{number, percent, shorten};

/// One plot per served checkpoint.
pub fn figure(tables: &Tables) -> Option<Figure> {
    let served = Served::all(tables);
    if served.is_empty() {
        return None;
    }
    let notes = served.iter().flat_map(notes).collect();
    Some(Figure {
        id: "served".into(),
        title: "Fidelity: the served weights with each adapter and with none".into(),
        see: "0 is the tuned model itself, the line at 100 % is the served base without any adapter. This is a distance of \
              weights, not a loss: where the base's noise is larger than the change, most of it is noise, and an adapter that \
              holds the change can serve better although more remains."
            .into(),
        plots: served.iter().enumerate().map(|(at, served)| plot("served", at, served)).collect(),
        notes,
        tables: served.iter().map(table).collect(),
    })
}

fn notes(served: &Served) -> Vec<String> {
    let kinds = served.columns.iter().map(|column| by_kind(&column.modules).len()).max().unwrap_or(0);
    let mut notes: Vec<String> = kinds_left_out(kinds).into_iter().collect();
    let without = || served.columns.iter().map(|column| column.total().without2);
    let (least, most) = (without().fold(f64::INFINITY, f64::min), without().fold(0.0, f64::max));
    if most > 1.001 * least {
        notes.push(format!(
            "On {}, the adapters contain different modules: each is measured over its own.",
            served.on
        ));
    }
    notes
}

fn by_kind(modules: &BTreeMap<String, Sum>) -> BTreeMap<String, Sum> {
    let mut kinds: BTreeMap<String, Sum> = BTreeMap::new();
    for (name, sum) in modules {
        kinds.entry(Spot::of(name).kind).or_default().add(sum);
    }
    kinds
}

/// The remaining distance with each adapter, by kind of module.
pub fn plot(id: &str, at: usize, served: &Served) -> Plot {
    let columns: Vec<BTreeMap<String, Sum>> =
        served.columns.iter().map(|column| by_kind(&column.modules)).collect();
    let mut rows: Vec<String> = vec!["all".into()];
    let mut kinds: Vec<String> = columns.iter().flat_map(BTreeMap::keys).cloned().collect();
    kinds.sort();
    kinds.dedup();
    rows.extend(kinds.into_iter().take(MOST_KINDS));
    let (mut marks, mut keys, mut most) = (Vec::new(), Vec::new(), 1.0f64);
    for (index, (column, kinds)) in served.columns.iter().zip(&columns).enumerate() {
        let colour = palette::line(index);
        let mut points = Vec::new();
        for (row, kind) in rows.iter().enumerate() {
            let sum = if row == 0 { Some(column.total()) } else { kinds.get(kind).copied() };
            let Some(ratio) = sum.and_then(|sum| sum.ratio()) else { continue };
            most = most.max(ratio);
            points.push((ratio, row as f64 + 0.5));
        }
        let hollow = index % 2 == 1;
        marks.push(Mark::Dots { points, colour, hollow });
        let swatch = if hollow { Swatch::Ring } else { Swatch::Dot };
        keys.push((swatch, colour, shorten(&column.label, 40)));
    }
    marks.insert(0, Mark::Upright { x: 1.0, colour: palette::MUTED });
    keys.push((Swatch::Dashed, palette::MUTED, "no adapter".into()));
    let y = Axis { grid: true, ..Axis::places("", &rows).backwards() };
    let name = "distance from the tuned weights, % of that without";
    Plot {
        id: format!("{id}-{}", at + 1),
        title: shorten(&format!("Served on {}", served.on), 44),
        height: 110 + 16 * keys.len() as u32 + 20 * rows.len() as u32,
        x: Axis::percent(name, 0.0, 1.05 * most.min(10.0)),
        y,
        legend: Legend::Keys(keys),
        marks,
    }
}

/// The same as a table.
pub fn table(served: &Served) -> Table {
    let columns: Vec<BTreeMap<String, Sum>> =
        served.columns.iter().map(|column| by_kind(&column.modules)).collect();
    let mut kinds: Vec<&String> = columns.iter().flat_map(BTreeMap::keys).collect();
    kinds.sort();
    kinds.dedup();
    let ratio = |sum: Option<&Sum>| sum.and_then(Sum::ratio).map_or("-".into(), percent);
    let without = |sum: Option<&Sum>| sum.map_or("-".into(), |sum| number(sum.without2.sqrt()));
    let totals: Vec<Sum> = served.columns.iter().map(crate::report::served::Column::total).collect();
    let mut rows: Vec<Vec<String>> = kinds
        .iter()
        .map(|kind| {
            let first = columns.iter().find_map(|column| column.get(*kind));
            let ratios = columns.iter().map(|column| ratio(column.get(*kind)));
            [(*kind).clone(), without(first)].into_iter().chain(ratios).collect()
        })
        .collect();
    let ratios = totals.iter().map(|sum| ratio(Some(sum)));
    rows.push(["all".to_owned(), without(totals.first())].into_iter().chain(ratios).collect());
    let headings = ["kind".to_owned(), "without, ‖T − Q‖".to_owned()].into_iter();
    Table {
        caption: format!(
            "Distance from {} when {} is served: the remaining share with each adapter",
            served.tuned, served.on
        ),
        words: 1,
        headings: headings.chain(served.columns.iter().map(|column| column.label.clone())).collect(),
        rows,
    }
}
