//! One figure a file: what it needs of the tables, its plots, its numbers.

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

/// The most kinds of modules that one figure draws; tables have them all.
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

/// The numbers from 0 below `count` that a line is drawn through: the first ones, then few enough to be drawn.
fn thinned(count: usize) -> Vec<usize> {
    const DENSE: usize = 24;
    const FURTHER: usize = 60;
    if count <= DENSE + FURTHER {
        return (0..count).collect();
    }
    let (rest, last) = ((count - 1 - DENSE) as f64, FURTHER as f64);
    (0..DENSE).chain((0..=FURTHER).map(|k| DENSE + (rest * k as f64 / last).round() as usize)).collect()
}

/// What follows a figure that leaves kinds of modules out.
fn kinds_left_out(kinds: usize) -> Option<String> {
    let more = kinds.checked_sub(MOST_KINDS).filter(|more| *more > 0)?;
    Some(format!(
        "Drawn are the {MOST_KINDS} kinds of the largest change; {more} more are in the table only."
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
