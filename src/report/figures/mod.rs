//! One file per figure: what it needs from the tables, its plots and its numbers.

pub(crate) mod beside;
pub(crate) mod energy;
pub(crate) mod errors;
pub(crate) mod heat;
pub(crate) mod methods;
pub(crate) mod noise;
pub(crate) mod orthogonality;
pub(crate) mod ranks;
pub(crate) mod served;
pub(crate) mod spectra;
pub(crate) mod weights;

use crate::report::plot::figure::Figure;
use crate::report::tables::Tables;

/// Maximum number of module kinds that one figure draws; the tables have all of them.
const MOST_KINDS: usize = 24;

/// Every figure that the tables have the numbers for, in the order of the page.
pub fn all(tables: &Tables) -> Vec<Figure> {
    let figures = [
        errors::figure(tables),
        energy::figure(tables),
        served::figure(tables),
        methods::figure(tables),
        spectra::figure(tables),
        orthogonality::figure(tables),
        noise::figure(tables),
        ranks::figure(tables),
        beside::figure(tables),
        weights::figure(tables),
    ];
    figures.into_iter().flatten().collect()
}

/// The indices below `count` through which a line is drawn: all of the first ones, then a thinned selection.
fn thinned(count: usize) -> Vec<usize> {
    const DENSE: usize = 24;
    const FURTHER: usize = 60;
    if count <= DENSE + FURTHER {
        return (0..count).collect();
    }
    let (rest, last) = ((count - 1 - DENSE) as f64, FURTHER as f64);
    (0..DENSE).chain((0..=FURTHER).map(|k| DENSE + (rest * k as f64 / last).round() as usize)).collect()
}

/// The note for a figure that leaves out kinds of modules.
fn kinds_left_out(kinds: usize) -> Option<String> {
    let more = kinds.checked_sub(MOST_KINDS).filter(|more| *more > 0)?;
    Some(format!(
        "The plots show the {MOST_KINDS} kinds with the largest change; {more} more are only in the table."
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_drawn_through_few_points_and_to_their_end() {
        for count in [0, 1, 24, 84, 85, 640, 5120] {
            let points = thinned(count);
            assert!(points.len() <= 85 && points.is_sorted_by(|a, b| a < b), "{count}: {points:?}");
            assert_eq!(points.last().copied(), count.checked_sub(1));
        }
    }
}
