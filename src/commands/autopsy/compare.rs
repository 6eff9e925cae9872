//! Compares a tensor with its partner, band by band.

use std::ops::Range;

use crate::Result;
use crate::checkpoint::module::{Module, PackedRows};
use crate::commands::autopsy::record::Comparison;
use crate::pipeline::ordered_panels::BAND;

/// Number of parallel partial sums.
const LANES: usize = 8;

/// Sums over a panel `A` and its partner `B`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sums {
    /// `||A||^2`, `||B||^2`, `<A, B>`, `||A - B||^2`.
    squares: [f64; 4],
    /// The sum, over blocks of 64 x 64, of the products of both norms. It equals `||A|| ||B||` if the blocks' norms are
    /// proportional.
    overlap: f64,
    largest: f64,
}

impl Sums {
    /// Adds the sums of the next panel.
    pub fn add(&mut self, other: &Sums) {
        self.squares.iter_mut().zip(other.squares).for_each(|(sum, more)| *sum += more);
        self.overlap += other.overlap;
        self.largest = self.largest.max(other.largest);
    }

    /// The comparison that the sums give. `blocks` says whether block drift is defined for the tensor.
    pub fn finish(&self, name: Option<String>, blocks: bool) -> Comparison {
        let [a, b, product, difference] = self.squares;
        let both = (a * b).sqrt();
        let relative_error = match b {
            0.0 if a == 0.0 => Some(0.0),
            0.0 => None,
            b => Some((difference / b).sqrt()),
        };
        // The square equals the weighted mean square of the ratios' deviations; rounding may take it below zero.
        let drift = (2.0 - 2.0 * self.overlap / both).max(0.0).sqrt();
        Comparison {
            name,
            relative_error,
            cosine: (both > 0.0).then(|| (product / both).clamp(-1.0, 1.0)),
            norm_ratio: (b > 0.0).then(|| (a / b).sqrt()),
            largest_difference: self.largest,
            block_drift: (blocks && both > 0.0).then_some(drift),
        }
    }
}

/// Compares the same rows of two weights of the same shape. The first row is a multiple of [`BAND`].
///
/// # Errors
/// A value that cannot be decoded.
pub fn compare(ours: &PackedRows, theirs: &PackedRows, modules: [&Module; 2]) -> Result<Sums> {
    let columns = modules[0].shape()[1];
    if modules.iter().any(|module| module.weight().is_wide()) {
        let decode = |packed: &PackedRows, rows, out: &mut [f64]| packed.decode_some_f64(rows, out);
        return bands(ours, theirs, columns, decode);
    }
    bands(ours, theirs, columns, |packed: &PackedRows, rows, out: &mut [f32]| packed.decode_some(rows, out))
}

fn bands<T: Copy + Default + Into<f64>>(
    ours: &PackedRows,
    theirs: &PackedRows,
    columns: usize,
    decode: impl Fn(&PackedRows, Range<usize>, &mut [T]) -> Result<()>,
) -> Result<Sums> {
    let rows = ours.rows();
    let height = crate::pipeline::ordered_panels::piece_rows(columns);
    let (mut a, mut b) = (vec![T::default(); height * columns], vec![T::default(); height * columns]);
    let mut total = Sums::default();
    for band in rows.clone().step_by(BAND) {
        let band = band..(band + BAND).min(rows.end);
        let mut blocks = vec![[0f64; 2]; columns.div_ceil(BAND)];
        for start in band.clone().step_by(height) {
            let piece = start..(start + height).min(band.end);
            let length = piece.len() * columns;
            decode(ours, piece.clone(), &mut a[..length])?;
            decode(theirs, piece, &mut b[..length])?;
            zero_non_finite(&mut a[..length], &mut b[..length]);
            let lines = a[..length].chunks_exact(columns).zip(b[..length].chunks_exact(columns));
            for (a, b) in lines {
                for ((a, b), block) in a.chunks(BAND).zip(b.chunks(BAND)).zip(&mut blocks) {
                    let sums = chunk(a, b);
                    block[0] += sums.squares[0];
                    block[1] += sums.squares[1];
                    total.add(&sums);
                }
            }
        }
        total.overlap += blocks.iter().map(|[a, b]| (a * b).sqrt()).sum::<f64>();
    }
    Ok(total)
}

/// Sets both values to zero where either is not finite.
fn zero_non_finite<T: Copy + Default + Into<f64>>(a: &mut [T], b: &mut [T]) {
    let finite = |values: &[T]| values.iter().all(|value| (*value).into().is_finite());
    if finite(a) && finite(b) {
        return;
    }
    for (a, b) in a.iter_mut().zip(b) {
        if !((*a).into() + (*b).into()).is_finite() {
            (*a, *b) = (T::default(), T::default());
        }
    }
}

fn chunk<T: Copy + Into<f64>>(a: &[T], b: &[T]) -> Sums {
    let mut squares = [[0f64; LANES]; 4];
    let mut largest = [0f64; LANES];
    let (whole_a, rest_a) = a.as_chunks::<LANES>();
    let (whole_b, rest_b) = b.as_chunks::<LANES>();
    let mut add = |lane: usize, a: f64, b: f64| {
        let difference = a - b;
        squares[0][lane] += a * a;
        squares[1][lane] += b * b;
        squares[2][lane] += a * b;
        squares[3][lane] += difference * difference;
        let size = difference.abs();
        largest[lane] = if size > largest[lane] { size } else { largest[lane] };
    };
    for (a, b) in whole_a.iter().zip(whole_b) {
        (0..LANES).for_each(|lane| add(lane, a[lane].into(), b[lane].into()));
    }
    rest_a.iter().zip(rest_b).enumerate().for_each(|(lane, (a, b))| add(lane, (*a).into(), (*b).into()));
    Sums {
        squares: squares.map(|lanes| lanes.iter().sum()),
        overlap: 0.0,
        largest: largest.into_iter().fold(0.0, f64::max),
    }
}
