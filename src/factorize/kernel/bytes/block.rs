//! A thin block as bytes: each column in runs of rows, every run with a scale of its own.

use faer::prelude::*;
use rayon::prelude::*;

use crate::factorize::kernel::bytes::codes::{OFFSET, ROUNDING, RUN, scale_of, scales_of};
use crate::factorize::kernel::bytes::dot::{STRIP, STRIPS};
use crate::factorize::kernel::tiling::pieces;
use crate::simd::{Loop, widest};

/// The largest code of a block, and minus the smallest: twice 255 times this fits in 16 bits.
pub(crate) const BLOCK_MOST: f32 = 64.0;

/// A block `[rows, columns]` in runs of rows and strips of columns.
#[derive(Debug, Default)]
pub(crate) struct Block {
    /// Four rows of a strip are 16 columns of 4 codes.
    codes: Vec<[i8; 64]>,
    /// `[runs, columns]`, padded to whole strips.
    scales: Vec<f32>,
    /// What the offset of the matrix's codes adds to each sum: `[runs, columns]`, padded.
    offsets: Vec<i32>,
    columns: usize,
    /// Rows of a run, in fours; the last run may have fewer.
    run: usize,
    /// Rows, in fours.
    quads: usize,
}

/// One run of rows of a block.
#[derive(Clone, Copy)]
pub(crate) struct Run<'a> {
    codes: &'a [[i8; 64]],
    quads: usize,
    /// Of each column.
    pub(crate) scales: &'a [[f32; STRIP]],
    /// Of each column.
    pub(crate) offsets: &'a [[i32; STRIP]],
}

impl<'a> Run<'a> {
    /// Up to [`STRIPS`] strips, from `first` on, and how many.
    #[inline(always)]
    pub(crate) fn strips(&self, first: usize) -> ([&'a [[i8; 64]]; STRIPS], usize) {
        let count = (self.scales.len() - first).min(STRIPS);
        let strip = |s: usize| &self.codes[(first + s.min(count - 1)) * self.quads..][..self.quads];
        (std::array::from_fn(strip), count)
    }

    /// The number of strips.
    pub(crate) fn count(&self) -> usize {
        self.scales.len()
    }
}

impl Block {
    /// Columns.
    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// Columns, padded to whole strips.
    pub(crate) fn width(&self) -> usize {
        self.columns.next_multiple_of(STRIP)
    }

    /// One run of rows.
    pub(crate) fn run(&self, index: usize) -> Run<'_> {
        let (width, first) = (self.width(), index * self.run);
        let quads = self.run.min(self.quads - first);
        let strips = width / STRIP;
        Run {
            codes: &self.codes[first * strips..][..quads * strips],
            quads,
            scales: self.scales[index * width..][..width].as_chunks().0,
            offsets: self.offsets[index * width..][..width].as_chunks().0,
        }
    }

    fn reset(&mut self, columns: usize, quads: usize, run: usize) {
        (self.columns, self.quads, self.run) = (columns, quads, run.max(1));
        let (width, runs) = (self.width(), quads.div_ceil(self.run));
        self.codes.resize(quads * width / STRIP, [0; 64]);
        self.scales.resize(runs * width, 0.0);
        self.offsets.resize(runs * width, 0);
    }

    /// Makes it `block`, in runs of as many rows as a matrix has columns to a scale. Returns the squared norm of the
    /// error.
    pub(crate) fn pack(&mut self, block: MatRef<'_, f32>) -> f64 {
        // Rows are padded as the matrix's columns are.
        self.reset(block.ncols(), block.nrows().next_multiple_of(STRIP) / 4, RUN / 4);
        let (width, run) = (self.width(), self.run);
        let codes = self.codes.par_chunks_mut((run * width / STRIP).max(1));
        let scales = self.scales.par_chunks_mut(width.max(1)).zip(self.offsets.par_chunks_mut(width.max(1)));
        let missed = codes.zip(scales).enumerate().map(|(index, (codes, (scales, offsets)))| {
            codes.fill([0; 64]);
            let quads = codes.len() / (width / STRIP);
            let first = index * RUN;
            let rows = RUN.min(block.nrows() - first);
            let mut missed = 0.0;
            for (j, column) in block.subrows(first, rows).col_iter().enumerate() {
                let mut values = [0f32; RUN];
                values.iter_mut().zip(column.iter()).for_each(|(to, from)| *to = *from);
                let strip = &mut codes[j / STRIP * quads..][..quads];
                let packed = widest(PackColumn { values: &values, strip, lane: j % STRIP });
                (scales[j], offsets[j]) = (packed.scale, packed.offset);
                missed += packed.missed;
            }
            missed
        });
        missed.collect::<Vec<f64>>().into_iter().sum()
    }

    /// Makes it `values` `[rows, width]`, row-major, each row times its factor, in a single run. `rows` is a multiple
    /// of 4, and `width` is that of whole strips.
    #[inline(always)]
    pub(crate) fn pack_rows(
        &mut self,
        values: &[f32],
        width: usize,
        factors: impl Iterator<Item = f32> + Clone,
    ) {
        let rows = values.len().checked_div(width).unwrap_or(0);
        self.reset(width, rows / 4, rows / 4);
        for s in 0..width / STRIP {
            let row = |row: &[f32], factor: f32| -> [f32; STRIP] {
                std::array::from_fn(|j| row[s * STRIP..][..STRIP][j] * factor)
            };
            let mut largest = [0f32; STRIP];
            for (values, factor) in values.chunks_exact(width).zip(factors.clone()) {
                for (largest, value) in largest.iter_mut().zip(row(values, factor)) {
                    let size = value.abs();
                    *largest = if size > *largest { size } else { *largest };
                }
            }
            let both: [(f32, f32); STRIP] = largest.map(|largest| scale_of(largest, BLOCK_MOST));
            let inverse = both.map(|(_, inverse)| inverse);
            let strip = &mut self.codes[s * self.quads..][..self.quads];
            let mut sums = [0i32; STRIP];
            let mut factors = factors.clone();
            for (codes, values) in strip.iter_mut().zip(values.chunks_exact(4 * width)) {
                let mut words = [0u32; STRIP];
                for (i, values) in values.chunks_exact(width).enumerate() {
                    let values = row(values, factors.next().unwrap_or(0.0));
                    for (((word, sum), value), inverse) in
                        words.iter_mut().zip(&mut sums).zip(values).zip(inverse)
                    {
                        let rounded = (value * inverse + ROUNDING).to_bits();
                        *word |= (rounded & 0xff) << (8 * i);
                        *sum += rounded.wrapping_sub(ROUNDING.to_bits()) as i32;
                    }
                }
                *codes = bytemuck::cast(words.map(u32::to_le));
            }
            self.scales[s * STRIP..][..STRIP].copy_from_slice(&both.map(|(scale, _)| scale));
            self.offsets[s * STRIP..][..STRIP].copy_from_slice(&sums.map(|sum| sum * OFFSET));
        }
    }
}

/// What a packed block has more than `block`, column by column: the error of rounding to bytes, `[rows, columns]`.
pub(crate) fn rounding_error(block: MatRef<'_, f32>) -> Mat<f32> {
    let mut errors = Mat::zeros(block.nrows(), block.ncols());
    errors.as_mut().par_col_iter_mut().zip(block.par_col_iter()).for_each(|(mut errors, column)| {
        for part in pieces(0..column.nrows(), RUN) {
            let column = column.subrows(part.start, part.len());
            let mut values = [0f32; RUN];
            values.iter_mut().zip(column.iter()).for_each(|(to, from)| *to = *from);
            widest(RoundColumn(&mut values));
            let errors = errors.rb_mut().subrows_mut(part.start, part.len());
            errors.iter_mut().zip(values).for_each(|(to, error)| *to = error);
        }
    });
    errors
}

/// Replaces one column of a run by its rounding errors.
struct RoundColumn<'a>(&'a mut [f32; RUN]);

impl Loop for RoundColumn<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let RoundColumn(values) = self;
        let (scale, inverse) = scales_of(values, BLOCK_MOST);
        values
            .iter_mut()
            .for_each(|value| *value = (*value * inverse + ROUNDING - ROUNDING) * scale - *value);
    }
}

/// Packs one column of a run.
struct PackColumn<'a> {
    values: &'a [f32; RUN],
    strip: &'a mut [[i8; 64]],
    lane: usize,
}

struct Packed {
    scale: f32,
    offset: i32,
    missed: f64,
}

impl Loop for PackColumn<'_> {
    type Output = Packed;

    #[inline(always)]
    fn run(self) -> Packed {
        let PackColumn { values, strip, lane } = self;
        let (scale, inverse) = scales_of(values, BLOCK_MOST);
        let (mut codes, mut sum, mut missed) = ([0i8; RUN], 0i32, [0f32; STRIP]);
        for (codes, values) in codes.as_chunks_mut::<STRIP>().0.iter_mut().zip(values.as_chunks::<STRIP>().0)
        {
            for ((code, value), missed) in codes.iter_mut().zip(values).zip(&mut missed) {
                let exact = value * inverse;
                let rounded = exact + ROUNDING;
                let whole = rounded.to_bits().wrapping_sub(ROUNDING.to_bits()) as i32;
                *code = whole as i8;
                sum += whole;
                let off = exact - (rounded - ROUNDING);
                *missed += off * off;
            }
        }
        for (four, codes) in strip.iter_mut().zip(codes.as_chunks::<4>().0) {
            four[4 * lane..][..4].copy_from_slice(codes);
        }
        let missed: f64 = missed.into_iter().map(f64::from).sum();
        Packed { scale, offset: sum * OFFSET, missed: missed * f64::from(scale) * f64::from(scale) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::factorize::kernel::rng::Stream;
    use crate::simd::{SimdLevel, testing::at_level};

    #[test]
    fn rounding_errors_are_those_of_the_packed_block() {
        for (rows, columns) in [(1, 1), (300, 7), (700, 33)] {
            let block = Stream::new(5, "block").gaussian(rows, columns);
            let missed2 = Block::default().pack(block.as_ref());
            let by = |level| at_level(level, || rounding_error(block.as_ref()));
            let errors = by(SimdLevel::Widest);
            assert!(errors.norm_max() <= 0.5001 * block.norm_max() / BLOCK_MOST, "{rows} x {columns}");
            let squares = f64::from(errors.squared_norm_l2());
            let size = f64::from(block.squared_norm_l2());
            assert!((squares - missed2).abs() <= 1e-3 * missed2 + 1e-12 * size, "{squares} and {missed2}");
            // What was rounded once is rounded to itself.
            let again = rounding_error((&block + &errors).as_ref());
            assert!(again.norm_max() <= 1e-6 * block.norm_max(), "{rows} x {columns}: {}", again.norm_max());
            assert!(by(SimdLevel::Portable) == errors && by(SimdLevel::Avx2) == errors, "{rows} x {columns}");
        }
    }
}
