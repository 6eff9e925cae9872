//! Triangular squares in f64: Cholesky's factor, and solving with it.

use faer::prelude::*;
use rayon::prelude::*;

use crate::simd::{Loop, widest};

/// Partial sums of an inner product.
const LANES: usize = 8;

/// `R^T`, lower triangular with zeros above, for `gram = R^T·R` of which the lower triangle is read. `None` where it
/// is not positive definite.
pub(crate) fn cholesky(gram: MatRef<'_, f64>) -> Option<Mat<f64>> {
    let d = gram.nrows();
    let mut rows: Vec<f64> = (0..d).flat_map(|i| (0..d).map(move |j| gram[(i, j)])).collect();
    let factored = widest(Cholesky { rows: &mut rows, d });
    factored.then(|| Mat::from_fn(d, d, |i, j| if j <= i { rows[i * d + j] } else { 0.0 }))
}

struct Cholesky<'a> {
    rows: &'a mut [f64],
    d: usize,
}

impl Loop for Cholesky<'_> {
    type Output = bool;

    #[inline(always)]
    fn run(self) -> bool {
        let Cholesky { rows, d } = self;
        for i in 0..d {
            let (above, row) = rows.split_at_mut(i * d);
            for j in 0..i {
                let other = &above[j * d..][..=j];
                row[j] = (row[j] - dot(&row[..j], &other[..j])) / other[j];
            }
            let square = row[i] - dot(&row[..i], &row[..i]);
            if square.is_nan() || square <= 0.0 {
                return false;
            }
            row[i] = square.sqrt();
        }
        true
    }
}

#[inline(always)]
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}

/// Solves `lower·x = right` for each column of `right`, in place.
pub(crate) fn solve_lower(lower: MatRef<'_, f64>, mut right: MatMut<'_, f64>) {
    let d = lower.nrows();
    right.rb_mut().par_col_iter_mut().for_each(|mut x| {
        for j in 0..d {
            x[j] /= lower[(j, j)];
            for i in j + 1..d {
                x[i] -= lower[(i, j)] * x[j];
            }
        }
    });
}

/// Solves `lower^T·x = right` for each column of `right`, in place.
pub(crate) fn solve_upper(lower: MatRef<'_, f64>, mut right: MatMut<'_, f64>) {
    let d = lower.nrows();
    let rows: Vec<f64> = (0..d).flat_map(|i| (0..d).map(move |j| lower[(i, j)])).collect();
    right.rb_mut().par_col_iter_mut().for_each(|x| {
        if let Some(x) = x.try_as_col_major_mut() {
            widest(BackSubstitute { rows: &rows, x: x.as_slice_mut() });
        }
    });
}

struct BackSubstitute<'a> {
    rows: &'a [f64],
    x: &'a mut [f64],
}

impl Loop for BackSubstitute<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let BackSubstitute { rows, x } = self;
        let d = x.len();
        for j in (0..d).rev() {
            let row = &rows[j * d..][..=j];
            let (before, rest) = x.split_at_mut(j);
            rest[0] /= row[j];
            let factor = rest[0];
            before.iter_mut().zip(row).for_each(|(x, l)| *x -= l * factor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::factorize::kernel::block_ops::widen;
    use crate::factorize::kernel::rng::Stream;

    #[test]
    fn factors_and_solutions_satisfy_their_equations() {
        let x = widen(Stream::new(1, "square").gaussian(90, 40).as_ref());
        let gram = x.transpose() * &x;
        let lower = cholesky(gram.as_ref()).unwrap();
        assert!((&lower * lower.transpose() - &gram).norm_max() < 1e-11);
        let right = x.as_ref().subrows(0, 40);
        let (mut a, mut b) = (right.to_owned(), right.to_owned());
        solve_lower(lower.as_ref(), a.as_mut());
        solve_upper(lower.as_ref(), b.as_mut());
        assert!((&lower * &a - right).norm_max() < 1e-11);
        assert!((lower.transpose() * &b - right).norm_max() < 1e-11);
        assert!(cholesky((gram * faer::Scale(-1.0)).as_ref()).is_none());
    }
}
