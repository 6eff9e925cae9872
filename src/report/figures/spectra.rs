//! The singular values of the change, by kind of module.

use std::collections::BTreeMap;

use crate::commands::extract::output::manifest::Spectrum;
use crate::report::figures::{MOST_KINDS, kinds_left_out, thinned};
use crate::report::plot::axis::Axis;
use crate::report::plot::figure::{Figure, Legend, Mark, Plot, Swatch, Table};
use crate::report::plot::palette;
use crate::report::tables::{Adapter, Tables};
use crate::report::words::{median, number, shorten};

/// Values below this share of the largest are rounding errors.
const FLOOR: f64 = 1e-7;

type Kinds<'a> = BTreeMap<String, Vec<&'a Spectrum>>;

/// One plot per kind, with all adapters.
pub fn figure(tables: &Tables) -> Option<Figure> {
    let adapters: Vec<&Adapter> = tables.adapters.iter().filter(|a| !a.spectra.is_empty()).collect();
    let by_kind: Vec<Kinds> = adapters.iter().map(|adapter| adapter.spectra_by_kind()).collect();
    let values = || adapters.iter().flat_map(|a| &a.spectra).flat_map(|s| &s.singular_values).copied();
    let most = values().fold(0.0, f64::max);
    let floor = FLOOR * most;
    let least = values().filter(|value| *value > floor).fold(most, f64::min);
    if most <= 0.0 {
        return None;
    }
    let y = Axis::log10("singular value", 0.8 * least, 1.25 * most);
    let kinds = kinds(&by_kind);
    let plots = kinds.iter().take(MOST_KINDS).enumerate().map(|(at, kind)| {
        let spectra = adapters.iter().zip(&by_kind).enumerate();
        let spectra =
            spectra.filter_map(|(index, (adapter, kinds))| Some((index, *adapter, kinds.get(kind)?)));
        plot(at, kind, &spectra.collect::<Vec<_>>(), y.clone(), floor)
    });
    Some(Figure {
        id: "spectra".into(),
        title: "Singular values of the change, by kind of module".into(),
        see: "A steep fall means that few directions hold the change; a long flat tail is noise, for example from \
              quantization, which no rank of this size captures."
            .into(),
        plots: plots.collect(),
        notes: [
            Some(
                "The line is the median over the modules of a kind, and the area is their range; the line is dashed where values \
                 have not converged in every module and are lower bounds. The scale is the same in every plot."
                    .to_owned(),
            ),
            kinds_left_out(kinds.len()),
        ]
        .into_iter()
        .flatten()
        .collect(),
        tables: adapters.iter().zip(&by_kind).map(|(adapter, kinds)| table(adapter, kinds)).collect(),
    })
}

/// All kinds; those with the largest change first if not all can be drawn.
fn kinds(by_kind: &[Kinds]) -> Vec<String> {
    let mut energy: BTreeMap<&String, f64> = BTreeMap::new();
    for (kind, spectra) in by_kind.iter().flatten() {
        *energy.entry(kind).or_default() += spectra.iter().map(|s| s.delta_norm.powi(2)).sum::<f64>();
    }
    let mut kinds: Vec<(&String, f64)> = energy.into_iter().collect();
    if kinds.len() > MOST_KINDS {
        kinds.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(b.0)));
    }
    kinds.into_iter().map(|(kind, _)| kind.clone()).collect()
}

fn plot(at: usize, kind: &str, drawn: &[(usize, &Adapter, &Vec<&Spectrum>)], y: Axis, floor: f64) -> Plot {
    let longest =
        drawn.iter().flat_map(|(_, _, spectra)| spectra.iter()).map(|s| s.singular_values.len()).max();
    let longest = longest.unwrap_or(1).max(2);
    let (mut marks, mut keys) = (Vec::new(), Vec::new());
    for (index, adapter, spectra) in drawn {
        let colour = palette::line(*index);
        marks.extend(lines(spectra, colour, floor));
        if let Some(rank) = rank_of(adapter, kind) {
            marks.push(Mark::Upright { x: rank as f64, colour });
        }
        keys.push((Swatch::Line, colour, shorten(&adapter.label, 28)));
    }
    keys.push((Swatch::Dashed, palette::MUTED, "vertical: rank".into()));
    Plot {
        id: format!("spectra-{}", at + 1),
        title: shorten(kind, 44),
        height: 250,
        x: Axis::linear("index of the singular value", 1.0, longest as f64),
        y,
        legend: Legend::Keys(keys),
        marks,
    }
}

/// The rank before padding; the largest if modules differ.
fn rank_of(adapter: &Adapter, kind: &str) -> Option<usize> {
    adapter.modules_by_kind().get(kind)?.iter().map(|module| module.rank).max()
}

fn lines(spectra: &[&Spectrum], colour: palette::Colour, floor: f64) -> Vec<Mark> {
    let longest = spectra.iter().map(|s| s.singular_values.len()).max().unwrap_or(0);
    let converged = spectra.iter().map(|s| s.converged).min().unwrap_or(0);
    let (mut band, mut middle) = (Vec::new(), Vec::new());
    for at in thinned(longest) {
        let values = spectra.iter().filter_map(|s| s.singular_values.get(at)).copied();
        let mut values: Vec<f64> = values.filter(|value| *value > floor).collect();
        let Some(value) = median(&mut values) else { continue };
        let x = (at + 1) as f64;
        if at < converged {
            band.push((x, values[0], values[values.len() - 1]));
        }
        middle.push((x, value));
    }
    let mut marks = Vec::new();
    if spectra.len() > 1 {
        marks.push(Mark::Band { points: band, colour });
    }
    let solid = middle.iter().filter(|(x, _)| *x <= converged as f64).count();
    marks.push(Mark::Line { points: middle[..solid].to_vec(), colour, dashed: false });
    if solid < middle.len() {
        marks.push(Mark::Line { points: middle[solid.saturating_sub(1)..].to_vec(), colour, dashed: true });
    }
    marks
}

fn table(adapter: &Adapter, kinds: &Kinds) -> Table {
    let middle = |spectra: &[&Spectrum], value: &dyn Fn(&Spectrum) -> Option<f64>| {
        let mut values: Vec<f64> = spectra.iter().filter_map(|s| value(s)).collect();
        median(&mut values).map_or("-".into(), number)
    };
    let row = |(kind, spectra): (&String, &Vec<&Spectrum>)| {
        let rank = rank_of(adapter, kind);
        let values = spectra.iter().map(|s| s.singular_values.len()).max().unwrap_or(0);
        vec![
            kind.clone(),
            spectra.len().to_string(),
            rank.map_or("-".into(), |rank| rank.to_string()),
            middle(spectra, &|s| Some(s.delta_norm)),
            middle(spectra, &|s| s.singular_values.first().copied()),
            middle(spectra, &|s| s.singular_values.get(rank?.checked_sub(1)?).copied()),
            values.to_string(),
            spectra.iter().map(|s| s.converged).min().unwrap_or(0).to_string(),
        ]
    };
    let headings = [
        "kind",
        "modules",
        "rank",
        "‖delta‖, median",
        "largest value, median",
        "value at rank, median",
        "values kept",
        "converged in all",
    ];
    Table {
        caption: format!("{}: singular values by kind of module", adapter.label),
        words: 1,
        headings: headings.map(Into::into).into(),
        rows: kinds.iter().map(row).collect(),
    }
}
