//! A matrix as bytes: each row in runs of [`RUN`] columns, every run with a scale of its own.
//!
//! A *record* holds four rows: their codes in tiles of 4 x 4, which serve products with the matrix and, after a shuffle
//! within the tile, with its transpose; then their scales, `[runs, 4]`. It is a slice of f32 words, so that it lives in
//! the same memory as a delta in f32 does.

use crate::factorize::kernel::bytes::dot::ROWS;
use crate::simd::{Loop, widest};

/// Columns that share a scale.
pub(crate) const RUN: usize = 256;
/// The largest code, and minus the smallest.
const MOST: f32 = 127.0;
/// Codes are stored with this offset, so that they are unsigned.
pub(crate) const OFFSET: i32 = 128;
/// Rows are padded with zeros to a multiple of this.
const GRAIN: usize = 16;
/// Adding this to a number of at most 2^22 rounds it to an integer, ties to even, which the low bits then hold.
pub(crate) const ROUNDING: f32 = 12_582_912.0;

/// The number of f32 words of a record of rows with this many columns.
pub fn record_words(cols: usize) -> usize {
    cols.next_multiple_of(GRAIN) + ROWS * cols.div_ceil(RUN)
}

/// The number of f32 words that a matrix `[rows, cols]` takes.
pub fn words(rows: usize, cols: usize) -> usize {
    rows.div_ceil(ROWS) * record_words(cols)
}

/// Four rows of codes.
#[derive(Clone, Copy)]
pub(crate) struct Record<'a> {
    /// `[cols / 4]` tiles of 4 x 4, row-major.
    pub(crate) tiles: &'a [[u8; 16]],
    /// `[runs]`, of each row.
    pub(crate) scales: &'a [[f32; ROWS]],
}

impl<'a> Record<'a> {
    pub(crate) fn of(words: &'a [f32], cols: usize) -> Record<'a> {
        let (codes, scales) = words.split_at(cols.next_multiple_of(GRAIN));
        Record { tiles: bytemuck::cast_slice(codes), scales: scales.as_chunks().0 }
    }

    /// The tiles of one run of columns.
    pub(crate) fn run(&self, run: usize) -> &'a [[u8; 16]] {
        let from = run * RUN / 4;
        &self.tiles[from..(from + RUN / 4).min(self.tiles.len())]
    }
}

/// Quantizes up to four rows, `values` `[rows, cols]` row-major, to a record; missing rows are zeros. Returns the
/// squared norm of the error.
///
/// # Panics
/// If the lengths do not match.
pub fn quantize(values: &[f32], cols: usize, record: &mut [f32]) -> f64 {
    assert!(values.len() <= ROWS * cols && record.len() == record_words(cols), "a record of another width");
    widest(Quantize { values, cols, record })
}

/// The same for any number of rows, four to a record.
pub fn quantize_rows(values: &[f32], cols: usize, records: &mut [f32]) -> f64 {
    let records = records.chunks_exact_mut(record_words(cols).max(1));
    values.chunks((ROWS * cols).max(1)).zip(records).map(|(rows, record)| quantize(rows, cols, record)).sum()
}

struct Quantize<'a> {
    values: &'a [f32],
    cols: usize,
    record: &'a mut [f32],
}

impl Loop for Quantize<'_> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        let Quantize { values, cols, record } = self;
        let (codes, scales) = record.split_at_mut(cols.next_multiple_of(GRAIN));
        let codes: &mut [[u32; ROWS]] = bytemuck::cast_slice_mut(codes);
        let mut error2 = 0.0;
        for i in 0..ROWS {
            let row = values.get(i * cols..(i + 1) * cols).unwrap_or_default();
            for (run, (codes, scales)) in
                codes.chunks_mut(RUN / 4).zip(scales.chunks_exact_mut(ROWS)).enumerate()
            {
                let mut buffer = [0f32; RUN];
                let part = row.get(run * RUN..).unwrap_or_default();
                let part = &part[..part.len().min(RUN)];
                buffer[..part.len()].copy_from_slice(part);
                let (scale, inverse) = scales_of(&buffer, MOST);
                let mut bytes = [0u8; RUN];
                let rounded = round(&buffer, inverse, &mut bytes);
                error2 += rounded.missed * f64::from(scale) * f64::from(scale);
                scales[i] = (f64::from(scale) * rounded.fit) as f32;
                let words: &[[u8; 4]] = bytes.as_chunks().0;
                codes.iter_mut().zip(words).for_each(|(tile, word)| tile[i] = u32::from_ne_bytes(*word));
            }
        }
        error2
    }
}

/// The scale for which the largest code is `most`, and its inverse; zeros if the values are too small to have one.
#[inline(always)]
pub(crate) fn scales_of(values: &[f32], most: f32) -> (f32, f32) {
    let mut largest = [0f32; GRAIN];
    for values in values.as_chunks::<GRAIN>().0 {
        for (largest, value) in largest.iter_mut().zip(values) {
            let size = value.abs();
            *largest = if size > *largest { size } else { *largest };
        }
    }
    scale_of(largest.into_iter().fold(0.0, |a, b| if b > a { b } else { a }), most)
}

/// The same for values of at most `largest`.
#[inline(always)]
pub(crate) fn scale_of(largest: f32, most: f32) -> (f32, f32) {
    /// Below, the inverse would overflow.
    const LEAST: f32 = 1e-36;
    if largest > LEAST { (largest / most, most / largest) } else { (0.0, 0.0) }
}

/// What rounding a run gives besides its codes.
struct Rounded {
    /// The factor by which the scale keeps the values' size: the errors are then orthogonal to the values.
    fit: f64,
    /// The sum of the squared errors with that scale, in units of the scale before.
    missed: f64,
}

/// The codes of `values`, with their offset.
///
/// The difference of two checkpoints in bf16 takes few values, which all round the same way: the scale that maps the
/// largest to the largest code makes a whole run, and in the mean the whole delta, too large or too small. With errors
/// that are orthogonal to the values, it is neither.
#[inline(always)]
fn round(values: &[f32; RUN], inverse: f32, codes: &mut [u8; RUN]) -> Rounded {
    let (mut squares, mut along, mut size) = ([0f32; GRAIN], [0f32; GRAIN], [0f32; GRAIN]);
    for (values, codes) in values.as_chunks::<GRAIN>().0.iter().zip(codes.as_chunks_mut::<GRAIN>().0) {
        for i in 0..GRAIN {
            let exact = values[i] * inverse;
            let rounded = exact + ROUNDING;
            codes[i] = rounded.to_bits() as u8 ^ OFFSET as u8;
            let code = rounded - ROUNDING;
            let missed = exact - code;
            squares[i] += missed * missed;
            along[i] += missed * code;
            size[i] += code * code;
        }
    }
    let [squares, along, size] =
        [squares, along, size].map(|sums| sums.into_iter().map(f64::from).sum::<f64>());
    if size == 0.0 {
        return Rounded { fit: 1.0, missed: squares };
    }
    // With values c + e in units of the scale: |c + e|^2 / <c, c + e>, and what that leaves of the values.
    let (along, squares) = (along / size, squares / size);
    let values = 1.0 + 2.0 * along + squares;
    let fit = values / (1.0 + along);
    Rounded { fit, missed: size * values * (squares - along * along).max(0.0) / (1.0 + along).powi(2) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::factorize::kernel::rng::Stream;
    use crate::simd::{SimdLevel, testing::at_level};

    #[test]
    fn codes_are_the_nearest_and_their_error_is_known() {
        for (rows, cols) in [(4, 256), (3, 300), (1, 1), (4, 517), (2, 16)] {
            let mut values = Stream::new(4, "codes").gaussian(cols, rows);
            values.as_mut().col_mut(0).iter_mut().for_each(|x| *x *= 1e-25);
            let values: Vec<f32> =
                values.col_iter().flat_map(|row| row.iter().copied().collect::<Vec<_>>()).collect();
            let mut words = vec![7.0; record_words(cols)];
            let error2 = quantize(&values, cols, &mut words);
            let record = Record::of(&words, cols);
            let decoded = |i: usize, j: usize| {
                let code = i32::from(record.tiles[j / 4][4 * i + j % 4]) - OFFSET;
                f64::from(code) * f64::from(record.scales[j / RUN][i])
            };
            let (mut sum, mut size) = (0.0, 0.0);
            for i in 0..4 {
                for j in 0..cols.next_multiple_of(GRAIN) {
                    let value = if i < rows && j < cols { f64::from(values[i * cols + j]) } else { 0.0 };
                    let off = value - decoded(i, j);
                    assert!(off.abs() <= 0.75 * f64::from(record.scales[j / RUN][i]), "{rows} x {cols}");
                    sum += off * off;
                    size += value * value;
                }
            }
            assert!((sum - error2).abs() <= 1e-4 * sum + 1e-12 * size, "{rows} x {cols}: {error2} for {sum}");
        }
    }

    #[test]
    fn values_on_a_grid_keep_their_size() {
        // As differences of bf16 weights: a few multiples of one step, of which the largest is 3, 4 or 5.
        for largest in [3, 4, 5] {
            let values: Vec<f32> =
                (0..4 * RUN).map(|i| (i * 7 % (2 * largest + 1)) as f32 - largest as f32).collect();
            let mut words = vec![0.0; record_words(RUN)];
            quantize(&values, RUN, &mut words);
            let record = Record::of(&words, RUN);
            let code = |i: usize, j: usize| i32::from(record.tiles[j / 4][4 * i + j % 4]) - OFFSET;
            let decoded = |i, j| f64::from(code(i, j)) * f64::from(record.scales[0][i]);
            for i in 0..4 {
                let value = |j: usize| f64::from(values[i * RUN + j]);
                let along: f64 = (0..RUN).map(|j| (value(j) - decoded(i, j)) * value(j)).sum();
                let size: f64 = (0..RUN).map(|j| value(j).powi(2)).sum();
                assert!(along.abs() < 1e-6 * size, "{largest}: {along} of {size}");
            }
        }
    }

    #[test]
    fn the_level_changes_no_bit() {
        let values: Vec<f32> = Stream::new(6, "level").gaussian(4 * 700, 1).col_as_slice(0).to_vec();
        let made = |level| {
            at_level(level, || {
                let mut words = vec![0.0; record_words(700)];
                let error2 = quantize(&values, 700, &mut words);
                (error2.to_bits(), words.iter().map(|word| word.to_bits()).collect::<Vec<_>>())
            })
        };
        assert_eq!(made(SimdLevel::Portable), made(SimdLevel::Widest));
        assert_eq!(made(SimdLevel::Avx2), made(SimdLevel::Widest));
    }
}
