//! The leading singular values of the change, the noise and the matrix that Method B factorizes, in one plot.

use std::collections::BTreeMap;

use crate::commands::analyze::record::{Analysis, ModuleAnalysis, SpectrumAboveNoise};
use crate::report::figures::{MOST_KINDS, kinds_left_out};
use crate::report::plot::axis::Axis;
use crate::report::plot::figure::{Figure, Legend, Mark, Plot, Point, Swatch, Table};
use crate::report::plot::palette;
use crate::report::plot::place::Spot;
use crate::report::tables::{Labelled, Tables};
use crate::report::words::{median, number, shorten};

type Values = fn(&SpectrumAboveNoise) -> &[f64];

/// The three spectra, from the back to the front.
const SPECTRA: [(&str, Values); 3] = [
    ("noise N", |spectrum| &spectrum.noise_leading),
    ("change D", |spectrum| &spectrum.change_leading),
    ("both, D − N", |spectrum| &spectrum.leading),
];

/// One plot per kind of module of each analysis.
pub fn figure(tables: &Tables) -> Option<Figure> {
    let with_values = |analysis: &&Labelled<Analysis>| {
        let values = |module: &ModuleAnalysis| {
            SPECTRA.iter().any(|(_, values_of)| values_of(&module.spectrum).iter().any(|v| *v > 0.0))
        };
        analysis.table.modules.iter().any(values)
    };
    let analyses: Vec<_> = tables.analyses.iter().filter(with_values).collect();
    let kinds: Vec<_> = analyses.iter().map(|analysis| by_kind(&analysis.table)).collect();
    let most = kinds.iter().map(BTreeMap::len).max()?;
    let plots = analyses.iter().zip(&kinds).enumerate().flat_map(|(at, (analysis, kinds))| {
        let y = axis(&analysis.table);
        let title = |kind: &str| match analyses.len() {
            1 => shorten(kind, 44),
            _ => shorten(&format!("{}: {kind}", shorten(&analysis.label, 20)), 44),
        };
        let plot = move |(index, (kind, modules)): (usize, (&String, &Vec<&ModuleAnalysis>))| {
            plot(format!("beside-{}-{}", at + 1, index + 1), title(kind), modules, y.clone())
        };
        kinds.iter().take(MOST_KINDS).enumerate().map(plot)
    });
    Some(Figure {
        id: "beside".into(),
        title: "Singular values of change and noise, compared".into(),
        see: "Directions above the dashed threshold stand out from the noise and are worth their rank; where the change is \
              below it, an adapter for the quantized base carries noise."
            .into(),
        plots: plots.collect(),
        notes: ["Each line is the median, over the modules of a kind, of the converged values.".to_owned()]
            .into_iter()
            .chain(kinds_left_out(most))
            .collect(),
        tables: analyses.iter().zip(&kinds).map(|(analysis, kinds)| table(&analysis.label, kinds)).collect(),
    })
}

fn by_kind(analysis: &Analysis) -> BTreeMap<String, Vec<&ModuleAnalysis>> {
    let mut kinds: BTreeMap<String, Vec<&ModuleAnalysis>> = BTreeMap::new();
    for module in &analysis.modules {
        kinds.entry(Spot::of(&module.name).kind).or_default().push(module);
    }
    kinds
}

/// One scale for all plots of an analysis; values below a millionth of the largest are rounding errors.
fn axis(analysis: &Analysis) -> Axis {
    let modules = analysis.modules.iter();
    let values = || {
        modules
            .clone()
            .flat_map(|module| SPECTRA.iter().flat_map(|(_, values_of)| values_of(&module.spectrum)))
            .copied()
    };
    let most = values().fold(0.0, f64::max);
    let least = values().filter(|value| *value > 1e-6 * most).fold(most, f64::min);
    Axis::log10("singular value", 0.8 * least, 1.25 * most)
}

fn middle(modules: &[&ModuleAnalysis], value: impl Fn(&SpectrumAboveNoise) -> Option<f64>) -> Option<f64> {
    let mut values: Vec<f64> =
        modules.iter().filter_map(|module| value(&module.spectrum)).filter(|v| *v > 0.0).collect();
    median(&mut values)
}

fn plot(id: String, title: String, modules: &[&ModuleAnalysis], y: Axis) -> Plot {
    let (mut marks, mut keys, mut longest) = (Vec::new(), Vec::new(), 2);
    for (at, (name, values)) in SPECTRA.iter().enumerate() {
        let count = modules.iter().map(|module| values(&module.spectrum).len()).max().unwrap_or(0);
        longest = longest.max(count);
        let point =
            |index: usize| Some(((index + 1) as f64, middle(modules, |s| values(s).get(index).copied())?));
        let points: Vec<Point> =
            crate::report::figures::thinned(count).into_iter().filter_map(point).collect();
        marks.push(Mark::Line { points, colour: palette::line(at), dashed: false });
        keys.push((Swatch::Line, palette::line(at), (*name).into()));
    }
    if let Some(threshold) = middle(modules, |spectrum| Some(spectrum.threshold)) {
        let points = vec![(1.0, threshold), (longest as f64, threshold)];
        marks.push(Mark::Line { points, colour: palette::MUTED, dashed: true });
        keys.push((Swatch::Dashed, palette::MUTED, "threshold".into()));
    }
    let x = Axis::whole("index of the singular value", 1.0, longest as f64);
    Plot { id, title, height: 250, x, y, legend: Legend::Keys(keys), marks }
}

fn table(label: &str, kinds: &BTreeMap<String, Vec<&ModuleAnalysis>>) -> Table {
    let row = |(kind, modules): (&String, &Vec<&ModuleAnalysis>)| {
        let cell =
            |value: fn(&SpectrumAboveNoise) -> Option<f64>| middle(modules, value).map_or("-".into(), number);
        let first: [fn(&SpectrumAboveNoise) -> Option<f64>; 6] = [
            |spectrum| spectrum.change_leading.first().copied(),
            |spectrum| spectrum.noise_leading.first().copied(),
            |spectrum| spectrum.leading.first().copied(),
            |spectrum| Some(spectrum.sigma),
            |spectrum| Some(spectrum.edge),
            |spectrum| Some(spectrum.threshold),
        ];
        [kind.clone(), modules.len().to_string()].into_iter().chain(first.map(cell)).collect()
    };
    let headings =
        ["kind", "modules", "largest of D", "largest of N", "largest of D − N", "sigma", "edge", "threshold"];
    Table {
        caption: format!("{label}: leading singular values, medians by kind of module"),
        words: 1,
        headings: headings.map(Into::into).into(),
        rows: kinds.iter().map(row).collect(),
    }
}
