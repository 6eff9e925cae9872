//! The energy that each rank captures, computed from the singular values: what a lower rank would have given.

use crate::commands::extract::output::manifest::Spectrum;
use crate::report::figures::thinned;
use crate::report::plot::axis::Axis;
use crate::report::plot::figure::{Figure, Legend, Mark, Plot, Swatch, Table};
use crate::report::plot::palette;
use crate::report::tables::{Adapter, Tables};
use crate::report::words::{percent, shorten};

/// Shares of the energy for which the table gives ranks.
const SHARES: [f64; 5] = [0.5, 0.8, 0.9, 0.95, 0.99];

/// The energy that the leading directions of several modules capture together, if all have the same rank.
pub struct Curve {
    /// The share of all energy at rank `index + 1`.
    pub shares: Vec<f64>,
    /// Shares are exact up to this rank; beyond it, values have not converged or are unknown, and shares are lower
    /// bounds.
    pub exact: usize,
}

impl Curve {
    /// The curve of these modules; `None` if nothing changed.
    pub fn of<'a>(spectra: impl Iterator<Item = &'a Spectrum>) -> Option<Curve> {
        let (mut sums, mut norm2, mut exact) = (Vec::new(), 0.0, usize::MAX);
        for spectrum in spectra.filter(|spectrum| spectrum.delta_norm > 0.0) {
            let values = &spectrum.singular_values;
            norm2 += spectrum.delta_norm.powi(2);
            sums.resize(values.len().max(sums.len()), 0.0);
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value * value);
            let known = spectrum.converged.min(values.len());
            // There are no singular values beyond the shorter side.
            let [rows, columns] = spectrum.shape;
            exact = exact.min(if known >= rows.min(columns) { usize::MAX } else { known });
        }
        let mut held = 0.0;
        let mut share = |sum: &f64| {
            held += sum / norm2;
            held.min(1.0)
        };
        let shares: Vec<f64> = sums.iter().map(&mut share).collect();
        let sound = !shares.is_empty() && shares.iter().all(|share| share.is_finite());
        sound.then(|| Curve { exact: exact.min(shares.len()), shares })
    }

    /// The share at a rank; `None` for rank 0.
    pub fn at(&self, rank: usize) -> Option<f64> {
        self.shares.get(rank.min(self.shares.len()).checked_sub(1)?).copied()
    }

    /// The smallest rank that captures `share`.
    pub fn rank_for(&self, share: f64) -> Option<usize> {
        let at = self.shares.iter().position(|held| *held >= share)?;
        Some(at + 1)
    }

    fn lines(&self, colour: palette::Colour) -> Vec<Mark> {
        let points: Vec<(f64, f64)> =
            thinned(self.shares.len()).iter().map(|at| ((at + 1) as f64, self.shares[*at])).collect();
        let exact = points.iter().filter(|(rank, _)| *rank <= self.exact as f64).count();
        let mut marks = vec![Mark::Line { points: points[..exact].to_vec(), colour, dashed: false }];
        if exact < points.len() {
            marks.push(Mark::Line {
                points: points[exact.saturating_sub(1)..].to_vec(),
                colour,
                dashed: true,
            });
        }
        marks
    }
}

/// Captured energy against rank: one plot with all adapters, then one per adapter by kind of module.
pub fn figure(tables: &Tables) -> Option<Figure> {
    let adapters: Vec<(&Adapter, Curve)> = tables
        .adapters
        .iter()
        .filter_map(|adapter| Some((adapter, Curve::of(adapter.spectra.iter())?)))
        .collect();
    let most = adapters.iter().map(|(_, curve)| curve.shares.len()).max()?;
    let mut plots = vec![together(&adapters, most)];
    plots.extend(adapters.iter().enumerate().map(|(at, (adapter, _))| by_kind(adapter, at, most)));
    let mut tables = vec![by_rank(&adapters)];
    tables.extend(adapters.iter().map(|(adapter, _)| ranks_needed(adapter)));
    Some(Figure {
        id: "energy".into(),
        title: "Captured energy against rank".into(),
        see: "How much of the change each rank would have captured: where a curve flattens, more rank brings little; where \
              it still climbs at the mark, the adapter would profit from more."
            .into(),
        plots,
        notes: vec![
            "Solid lines are exact; dashed lines, beyond the converged values, are lower bounds. The ring is the adapter \
             as stored."
                .into(),
        ],
        tables,
    })
}

fn axes(most: usize) -> (Axis, Axis) {
    (Axis::ranks("rank of every module", most), Axis::percent("captured energy, %", 0.0, 1.0))
}

/// The mark of the adapter as stored.
fn stored(adapter: &Adapter, colour: palette::Colour) -> Option<Mark> {
    let manifest = adapter.manifest.as_ref()?;
    let captured = manifest.total.outputs.map_or(manifest.total.captured_energy, |o| o.captured_energy);
    let points = vec![(manifest.rank.max(1) as f64, captured)];
    Some(Mark::Dots { points, colour, hollow: true })
}

fn together(adapters: &[(&Adapter, Curve)], most: usize) -> Plot {
    let (x, y) = axes(most);
    let (mut marks, mut keys) = (Vec::new(), Vec::new());
    for (at, (adapter, curve)) in adapters.iter().enumerate() {
        let colour = palette::line(at);
        marks.extend(curve.lines(colour));
        marks.extend(stored(adapter, colour));
        keys.push((Swatch::Line, colour, shorten(&adapter.label, 40)));
    }
    let title = "All modules".into();
    Plot { id: "energy-all".into(), title, height: 280, x, y, legend: Legend::Keys(keys), marks }
}

fn by_kind(adapter: &Adapter, at: usize, most: usize) -> Plot {
    let (x, y) = axes(most);
    let (mut marks, mut keys) = (Vec::new(), Vec::new());
    if let Some(manifest) = &adapter.manifest {
        marks.push(Mark::Upright { x: manifest.rank.max(1) as f64, colour: palette::MUTED });
        keys.push((Swatch::Dashed, palette::MUTED, "rank".into()));
    }
    for (at, (kind, curve)) in largest(adapter).into_iter().enumerate() {
        marks.extend(curve.lines(palette::line(at)));
        keys.push((Swatch::Line, palette::line(at), shorten(&kind, 24)));
    }
    let (id, title) = (format!("energy-{}", at + 1), shorten(&adapter.label, 44));
    Plot { id, title, height: 310, x, y, legend: Legend::Keys(keys), marks }
}

/// The kinds with the largest change, as many as colours can distinguish.
fn largest(adapter: &Adapter) -> Vec<(String, Curve)> {
    let norm2 =
        |spectra: &[&Spectrum]| spectra.iter().map(|spectrum| spectrum.delta_norm.powi(2)).sum::<f64>();
    let mut kinds: Vec<_> = adapter
        .spectra_by_kind()
        .into_iter()
        .map(|(kind, spectra)| (norm2(&spectra), kind, spectra))
        .collect();
    kinds.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    kinds.truncate(palette::COUNT);
    kinds.sort_by(|a, b| a.1.cmp(&b.1));
    kinds.into_iter().filter_map(|(_, kind, spectra)| Some((kind, Curve::of(spectra.into_iter())?))).collect()
}

fn by_rank(adapters: &[(&Adapter, Curve)]) -> Table {
    let most = adapters.iter().map(|(_, curve)| curve.shares.len()).max().unwrap_or(1);
    let mut ranks: Vec<usize> =
        (0..usize::BITS - 1).map(|power| 1 << power).take_while(|rank| *rank <= most).collect();
    ranks.extend(adapters.iter().filter_map(|(a, _)| Some(a.manifest.as_ref()?.rank)).filter(|r| *r <= most));
    ranks.sort_unstable();
    ranks.dedup();
    let cell = |curve: &Curve, rank: usize| match curve.at(rank) {
        Some(share) if rank > curve.exact => format!("≥ {}", percent(share)),
        Some(share) => percent(share),
        None => "-".into(),
    };
    let row = |rank: &usize| {
        let cells = adapters.iter().map(|(_, curve)| cell(curve, *rank));
        [rank.to_string()].into_iter().chain(cells).collect()
    };
    Table {
        caption: "The largest share of all modules' energy that a rank can capture".into(),
        words: 1,
        headings: ["rank".to_owned()]
            .into_iter()
            .chain(adapters.iter().map(|(a, _)| a.label.clone()))
            .collect(),
        rows: ranks.iter().map(row).collect(),
    }
}

fn ranks_needed(adapter: &Adapter) -> Table {
    let needed = |curve: &Curve| {
        SHARES.map(|share| match curve.rank_for(share) {
            Some(rank) if rank <= curve.exact => rank.to_string(),
            // Unconverged values are too small, so the true rank may be lower.
            Some(rank) => format!("≤ {rank}"),
            None => format!("> {}", curve.exact),
        })
    };
    let row = |(kind, spectra): (String, Vec<&Spectrum>)| {
        let curve = Curve::of(spectra.into_iter())?;
        Some([kind].into_iter().chain(needed(&curve)).collect())
    };
    let shares = SHARES.map(|share| format!("{:.0} %", 100.0 * share));
    Table {
        caption: format!("{}: the rank that each kind needs to capture a share of its energy", adapter.label),
        words: 1,
        headings: ["kind".to_owned()].into_iter().chain(shares).collect(),
        rows: adapter.spectra_by_kind().into_iter().filter_map(row).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spectrum(values: &[f64], norm: f64, converged: usize, shape: [usize; 2]) -> Spectrum {
        Spectrum {
            module: "m".into(),
            shape,
            of: None,
            delta_norm: norm,
            converged,
            singular_values: values.into(),
        }
    }

    #[test]
    fn curves_pool_modules_and_say_how_far_they_are_exact() {
        let (whole, part) =
            (spectrum(&[4.0, 3.0], 5.0, 2, [2, 9]), spectrum(&[3.0, 2.0, 1.0], 5.0, 2, [9, 9]));
        let curve = Curve::of([&whole, &part].into_iter()).unwrap();
        assert_eq!(curve.shares, [25.0 / 50.0, 0.5 + 13.0 / 50.0, 0.5 + 13.0 / 50.0 + 1.0 / 50.0]);
        assert_eq!((curve.exact, curve.at(0), curve.at(9)), (2, None, Some(curve.shares[2])));
        assert_eq!(
            (curve.rank_for(0.5), curve.rank_for(0.6), curve.rank_for(0.99)),
            (Some(1), Some(2), None)
        );
        let curve = Curve::of([&whole].into_iter()).unwrap();
        assert_eq!((curve.exact, curve.shares[1]), (2, 1.0));
        assert!(Curve::of([spectrum(&[0.0], 0.0, 1, [1, 1])].iter()).is_none());
        assert!(Curve::of([spectrum(&[], 1.0, 0, [1, 1])].iter()).is_none());
    }
}
