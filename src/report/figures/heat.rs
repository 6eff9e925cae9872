//! A heat map of the model: a row per layer, a column per kind of module, a colour for the quantity.

use std::collections::{BTreeMap, BTreeSet};

use crate::report::figures::MOST_KINDS;
use crate::report::plot::axis::Axis;
use crate::report::plot::figure::{Legend, Mark, Plot, WIDTH};
use crate::report::plot::palette;
use crate::report::plot::pen::LETTER_WIDTH;
use crate::report::plot::place::Spot;

/// The content of a heat map.
pub struct Heat<'a> {
    /// Id of the plot.
    pub id: String,
    /// Title of the plot.
    pub title: String,
    /// Name of the quantity, and its unit.
    pub quantity: &'a str,
    /// The quantity at each place.
    pub cells: &'a BTreeMap<Spot, f64>,
    /// The columns.
    pub kinds: &'a [String],
    /// Values at the ends of the colour ramp.
    pub ends: (f64, f64),
    /// Formats the quantity in few characters.
    pub show: &'a dyn Fn(f64) -> String,
}

impl Heat<'_> {
    /// The map as a plot.
    pub fn plot(&self) -> Plot {
        let rows: BTreeSet<Option<usize>> = self.cells.keys().map(|spot| spot.layer).collect();
        let rows: Vec<Option<usize>> = rows.into_iter().collect();
        let high = (520 / rows.len().max(1)).clamp(5, 24);
        let (low, most) = self.ends;
        // Cells extend a little beneath their neighbours, so that no line of background shows between them.
        let seam = (0.4 * self.kinds.len() as f64 / f64::from(WIDTH), 0.4 / high as f64);
        let small = rows.len() <= 20 && self.kinds.len() <= 8;
        let mut marks = Vec::new();
        for (row, layer) in rows.iter().enumerate() {
            for (column, kind) in self.kinds.iter().enumerate() {
                let spot = Spot { layer: *layer, kind: kind.clone() };
                let Some(value) = self.cells.get(&spot) else { continue };
                let share = if most > low { (value - low) / (most - low) } else { 0.0 };
                let (x, y, colour) = (column as f64, row as f64, palette::ramp(share));
                marks.push(Mark::Cell { corners: [(x, y), (x + 1.0 + seam.0, y + 1.0 + seam.1)], colour });
                if small {
                    let (at, text) = ((x + 0.5, y + 0.5), (self.show)(*value));
                    marks.push(Mark::Text { at, text, colour: palette::text_on(colour) });
                }
            }
        }
        let longest = self.kinds.iter().map(|kind| kind.chars().count()).max().unwrap_or(0);
        let labels: Vec<String> =
            rows.iter().map(|layer| layer.map_or("none".into(), |l| l.to_string())).collect();
        let mut y = Axis::places("layer", &labels).backwards();
        let every = 13usize.div_ceil(high);
        y.ticks = y.ticks.into_iter().enumerate().filter(|(at, _)| at % every == 0).map(|(_, t)| t).collect();
        Plot {
            id: self.id.clone(),
            title: self.title.clone(),
            height: (96 + LETTER_WIDTH as usize * longest.min(22) + high * rows.len()) as u32,
            x: Axis::places("", self.kinds),
            y,
            legend: Legend::Ramp(self.quantity.to_owned(), [(self.show)(low), (self.show)(most)]),
            marks,
        }
    }
}

/// The kinds in `cells`, at most as many as can be drawn.
pub fn columns(cells: &BTreeMap<Spot, f64>) -> Vec<String> {
    let kinds: BTreeSet<&String> = cells.keys().map(|spot| &spot.kind).collect();
    kinds.into_iter().take(MOST_KINDS).cloned().collect()
}
