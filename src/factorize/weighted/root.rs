//! A root of the second moments of a layer's inputs: `R` with `R^T·R = C`, by its products with thin blocks.

use faer::linalg::matmul::matmul;
use faer::prelude::*;
use faer::{Accum, Par};
use half::bf16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use crate::factorize::kernel::tiling::{pieces, split_rows};
use crate::{Error, Result};

/// Rows of a sketch that are widened at a time.
const ROWS: usize = 32;

/// Columns of a sketch that one task multiplies, where the result has a row for each of them.
const COLUMNS: usize = 256;

/// Bytes of the rows that a thread widens.
pub(crate) fn widened_bytes(n: usize) -> usize {
    4 * (ROWS * n).max(COLUMNS * COLUMNS)
}

/// `R` `[rows, n]` with `R^T·R = C`, the mean of `x·x^T` over the inputs `x` of a layer.
#[derive(Clone, Debug)]
pub struct Root {
    kind: Kind,
    /// For each input the factor of its column; of a diagonal its only entry.
    scale: Vec<f32>,
}

#[derive(Clone, Debug)]
enum Kind {
    /// The columns' factors are all that there is: the diagonal alone.
    Diagonal,
    /// `[rows, n]` row-major, each column still to be multiplied by its factor.
    Sketch(usize, Vec<bf16>),
}

impl Root {
    /// The root of a diagonal: `diagonal` `[n]` holds the sums of squares of `count` inputs.
    ///
    /// # Errors
    /// [`Kind::Input`](crate::Kind::Input) for a count of zero, and for sums that are negative or not finite.
    pub fn of_diagonal(diagonal: &[f32], count: f64) -> Result<Root> {
        check(diagonal, count)?;
        let scale = diagonal.iter().map(|sum| (f64::from(*sum) / count).sqrt() as f32).collect();
        Ok(Root { kind: Kind::Diagonal, scale })
    }

    /// The root that a sketch `[rows, n]` (row-major) is, with its columns scaled so that the diagonal of `R^T·R` is
    /// the exact one.
    ///
    /// # Errors
    /// As [`of_diagonal`](Self::of_diagonal); [`Kind::Unexpected`](crate::Kind::Unexpected) where the lengths do not
    /// match.
    pub fn of_sketch(sketch: Vec<bf16>, diagonal: &[f32], count: f64) -> Result<Root> {
        check(diagonal, count)?;
        let n = diagonal.len();
        let rows = sketch.len().checked_div(n).unwrap_or(0);
        if rows * n != sketch.len() {
            return Err(Error::unexpected(format!("{} values are no sketch of {n} inputs", sketch.len())));
        }
        let found = column_squares(&sketch, n);
        let factor = |(exact, found): (&f32, f64)| {
            if found > 0.0 { (f64::from(*exact) / found / count).sqrt() as f32 } else { 0.0 }
        };
        let scale: Vec<f32> = diagonal.iter().zip(found).map(factor).collect();
        if scale.iter().any(|factor| !factor.is_finite()) {
            return Err(Error::input("the sketch does not belong to its diagonal"));
        }
        Ok(Root { kind: Kind::Sketch(rows, sketch), scale })
    }

    /// Bytes that the root of a sketch of so many rows takes, or with no rows that of a diagonal.
    pub fn bytes(rows: usize, n: usize) -> usize {
        rows * n * size_of::<bf16>() + n * size_of::<f32>()
    }

    /// Rows of `R`.
    pub fn rows(&self) -> usize {
        match &self.kind {
            Kind::Diagonal => self.scale.len(),
            Kind::Sketch(rows, _) => *rows,
        }
    }

    /// `n`.
    pub fn cols(&self) -> usize {
        self.scale.len()
    }

    /// The diagonal of `R`, where there is nothing else.
    pub(crate) fn diagonal(&self) -> Option<&[f32]> {
        matches!(self.kind, Kind::Diagonal).then_some(self.scale.as_slice())
    }

    /// Root mean square of an input: the square root of the mean of `C`'s diagonal.
    pub(crate) fn rms(&self) -> f64 {
        let mean = |squares: f64| (squares / self.scale.len().max(1) as f64).sqrt();
        match &self.kind {
            Kind::Diagonal => mean(self.scale.iter().map(|s| f64::from(*s).powi(2)).sum()),
            Kind::Sketch(_, values) => {
                let squares = column_squares(values, self.scale.len());
                mean(squares.iter().zip(&self.scale).map(|(sum, s)| sum * f64::from(*s).powi(2)).sum())
            }
        }
    }

    /// `R·z` `[rows, b]` for `z` `[n, b]`.
    pub(crate) fn times(&self, z: MatRef<'_, f32>) -> Mat<f32> {
        let scaled = self.scaled(z);
        let Kind::Sketch(rows, values) = &self.kind else { return scaled };
        let mut out = Mat::zeros(*rows, z.ncols());
        let parts: Vec<_> = pieces(0..*rows, ROWS).collect();
        let tasks: Vec<_> = parts.iter().cloned().zip(split_rows(out.as_mut(), &parts)).collect();
        let n = self.cols();
        tasks.into_par_iter().for_each_init(
            || vec![0f32; ROWS * n],
            |wide, (rows, out)| {
                let wide = &mut wide[..rows.len() * n];
                values[rows.start * n..rows.end * n].convert_to_f32_slice(wide);
                let panel = MatRef::from_row_major_slice(wide, rows.len(), n);
                matmul(out, Accum::Replace, panel, scaled.as_ref(), 1.0, Par::Seq);
            },
        );
        out
    }

    /// `R^T·v` `[n, b]` for `v` `[rows, b]`.
    pub(crate) fn transpose_times(&self, v: MatRef<'_, f32>) -> Mat<f32> {
        let Kind::Sketch(rows, values) = &self.kind else { return self.scaled(v) };
        let n = self.cols();
        let mut out = Mat::zeros(n, v.ncols());
        let parts: Vec<_> = pieces(0..n, COLUMNS).collect();
        let tasks: Vec<_> = parts.iter().cloned().zip(split_rows(out.as_mut(), &parts)).collect();
        tasks.into_par_iter().for_each_init(
            || vec![0f32; COLUMNS * COLUMNS],
            |wide, (cols, mut out)| {
                for rows in pieces(0..*rows, COLUMNS) {
                    let wide = &mut wide[..rows.len() * cols.len()];
                    for (to, row) in wide.chunks_exact_mut(cols.len()).zip(rows.clone()) {
                        values[row * n + cols.start..row * n + cols.end].convert_to_f32_slice(to);
                    }
                    let panel = MatRef::from_row_major_slice(wide, rows.len(), cols.len());
                    let v = v.subrows(rows.start, rows.len());
                    matmul(out.rb_mut(), Accum::Add, panel.transpose(), v, 1.0, Par::Seq);
                }
                for j in 0..out.ncols() {
                    let column = out.rb_mut().col_mut(j).iter_mut();
                    column.zip(&self.scale[cols.clone()]).for_each(|(x, scale)| *x *= scale);
                }
            },
        );
        out
    }

    /// `R^T` whole, `[n, rows]`, column-major: a sketch in f32.
    pub(crate) fn transposed(&self) -> Mat<f32> {
        let n = self.cols();
        let Kind::Sketch(rows, values) = &self.kind else {
            return Mat::from_fn(n, n, |i, j| if i == j { self.scale[i] } else { 0.0 });
        };
        let mut out = Mat::zeros(n, *rows);
        out.as_mut().par_col_iter_mut().zip(values.par_chunks_exact(n.max(1))).for_each(|(to, row)| {
            to.iter_mut()
                .zip(row)
                .zip(&self.scale)
                .for_each(|((to, value), scale)| *to = value.to_f32() * scale);
        });
        out
    }

    /// The rows of `z` `[n, b]`, each times its factor.
    fn scaled(&self, z: MatRef<'_, f32>) -> Mat<f32> {
        let mut out = z.to_owned();
        for column in out.col_iter_mut() {
            column.iter_mut().zip(&self.scale).for_each(|(x, scale)| *x *= scale);
        }
        out
    }
}

fn check(diagonal: &[f32], count: f64) -> Result<()> {
    if !(count.is_finite() && count > 0.0) {
        return Err(Error::input("second moments of no inputs at all"));
    }
    if diagonal.iter().any(|sum| !(sum.is_finite() && *sum >= 0.0)) {
        return Err(Error::input("a sum of squares is negative or not finite"));
    }
    Ok(())
}

/// The sum of squares of each of `n` columns, in f64.
fn column_squares(values: &[bf16], n: usize) -> Vec<f64> {
    let mut sums = vec![0f64; n];
    let width = COLUMNS.min(n.max(1));
    sums.par_chunks_mut(width).enumerate().for_each(|(at, sums)| {
        for row in values.chunks_exact(n) {
            let row = &row[at * width..at * width + sums.len()];
            sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value.to_f64().powi(2));
        }
    });
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::factorize::kernel::rng::Stream;

    fn sketch(rows: usize, n: usize) -> (Vec<bf16>, Vec<f32>) {
        let values = Stream::new(1, "sketch").gaussian(n, rows);
        let sketch: Vec<bf16> = values
            .col_iter()
            .flat_map(|row| row.iter().map(|v| bf16::from_f32(*v)).collect::<Vec<_>>())
            .collect();
        (sketch, (0..n).map(|j| 1.0 + j as f32).collect())
    }

    #[test]
    fn products_are_those_of_the_definition_and_the_diagonal_is_exact() {
        for (rows, n) in [(5, 300), (300, 40), (33, 257), (1, 1)] {
            let (values, diagonal) = sketch(rows, n);
            let root = Root::of_sketch(values, &diagonal, 10.0).unwrap();
            let dense = root.transposed();
            let moments = &dense * dense.transpose();
            for (j, sum) in diagonal.iter().enumerate() {
                assert!((moments[(j, j)] - sum / 10.0).abs() < 1e-4 * sum, "{rows} x {n}: {j}");
            }
            let mut fresh = Stream::new(2, "block");
            let (z, v) = (fresh.gaussian(n, 7), fresh.gaussian(rows, 7));
            let off = (root.times(z.as_ref()) - dense.transpose() * &z).norm_max();
            let other = (root.transpose_times(v.as_ref()) - &dense * &v).norm_max();
            let size = dense.norm_l2();
            assert!(off < 1e-5 * size && other < 1e-5 * size, "{rows} x {n}: {off} {other}");
            let squares = moments.diagonal().column_vector().iter().map(|v| f64::from(*v)).sum::<f64>();
            assert!((root.rms() - (squares / n as f64).sqrt()).abs() < 1e-5 * root.rms());
        }
    }

    #[test]
    fn what_cannot_be_moments_is_refused() {
        assert!(Root::of_diagonal(&[1.0], 0.0).is_err());
        assert!(Root::of_diagonal(&[-1.0], 1.0).is_err());
        assert!(Root::of_diagonal(&[f32::NAN], 1.0).is_err());
        assert!(Root::of_sketch(vec![bf16::ONE; 3], &[1.0, 1.0], 1.0).is_err());
    }
}
