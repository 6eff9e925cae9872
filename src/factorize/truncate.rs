//! Truncates a product of two thin factors to a lower rank, without ever forming the product.
//!
//! `L·R` with `L` `[m, r]` and `R` `[r, n]` is `Q1·(T1·T2^T)·Q2^T` for the QR decompositions `L = Q1·T1` and
//! `R^T = Q2·T2`. The singular value decomposition of the core `T1·T2^T`, at most `[r, r]`, therefore gives that of the
//! product, and its leading part is the best approximation of its rank (Eckart and Young 1936; Golub and Van Loan,
//! *Matrix Computations*, 5.4). All arithmetic is in f64, so the error comes from truncation, not from rounding.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::householder::{
    apply_block_householder_sequence_on_the_left_in_place_scratch,
    apply_block_householder_sequence_on_the_left_in_place_with_conj,
};
use faer::linalg::qr::no_pivoting::factor::{qr_in_place, qr_in_place_scratch, recommended_block_size};
use faer::linalg::svd::{ComputeSvdVectors, svd, svd_scratch};
use faer::prelude::*;
use faer::{Conj, Par, Spec};

use crate::factorize::kernel::block_ops::{cross_gram, product, widen};
use crate::{Error, Result};

/// A product truncated to a lower rank.
#[derive(Clone, Debug)]
pub struct Recompressed {
    /// `[m, k]`, row-major; the singular values are shared equally between the two factors.
    pub left: Vec<f32>,
    /// `[k, n]`, row-major.
    pub right: Vec<f32>,
    /// All singular values of the product, in descending order: `min(m, n, r)` of them.
    pub singular_values: Vec<f64>,
}

impl Recompressed {
    /// The squared Frobenius norm of what is cut off after `k` values: no product of that rank is closer.
    pub fn error2(&self, k: usize) -> f64 {
        self.singular_values.iter().skip(k).rev().map(|value| value * value).sum()
    }

    /// The squared Frobenius norm of the whole product.
    pub fn norm2(&self) -> f64 {
        self.error2(0)
    }
}

/// The best product of rank `k` (or lower, if the product has a lower rank) for `scale · left·right`, with `left`
/// `[m, r]` and `right` `[r, n]`, both row-major.
///
/// # Errors
/// [`Kind::Input`](crate::Kind::Input) if a factor holds NaN or infinities.
///
/// # Panics
/// If the factors do not have the lengths that `m`, `r` and `n` require.
pub fn recompress(
    left: &[f32],
    right: &[f32],
    [m, r, n]: [usize; 3],
    scale: f64,
    k: usize,
) -> Result<Recompressed> {
    assert!(left.len() == m * r && right.len() == r * n, "factors of [{m}, {r}] and [{r}, {n}]");
    let (q1, t1) = thin_qr(widen(MatRef::from_row_major_slice(left, m, r)));
    let (q2, t2) = thin_qr(widen(MatRef::from_row_major_slice(right, r, n).transpose()));
    let core = product(t1.as_ref(), t2.transpose()) * faer::Scale(scale);
    let (u, values, v) = decompose(core.as_ref())?;
    let k = k.min(values.len());
    let shared = |vectors: &Mat<f64>| {
        let mut vectors = vectors.subcols(0, k).to_owned();
        for (j, value) in values.iter().take(k).enumerate() {
            let root = value.max(0.0).sqrt();
            vectors.col_mut(j).iter_mut().for_each(|x| *x *= root);
        }
        vectors
    };
    let (tall, wide) = (product(q1.as_ref(), shared(&u).as_ref()), product(q2.as_ref(), shared(&v).as_ref()));
    let left = (0..m).flat_map(|i| (0..k).map(move |j| (i, j))).map(|index| tall[index] as f32).collect();
    let right = (0..k).flat_map(|i| (0..n).map(move |j| (j, i))).map(|index| wide[index] as f32).collect();
    Ok(Recompressed { left, right, singular_values: values })
}

/// The squared Frobenius norm of `left·right`, with `left` `[m, r]` and `right` `[r, n]`, both row-major, by two Gram
/// matrices in f64.
///
/// # Panics
/// If the factors do not have the lengths that `m`, `r` and `n` require.
pub fn product_norm2(left: &[f32], right: &[f32], [m, r, n]: [usize; 3]) -> f64 {
    assert!(left.len() == m * r && right.len() == r * n, "factors of [{m}, {r}] and [{r}, {n}]");
    if m * r * n == 0 {
        return 0.0;
    }
    let left = MatRef::from_row_major_slice(left, m, r);
    let right = MatRef::from_row_major_slice(right, r, n).transpose();
    let (left, right) = (cross_gram(left, left), cross_gram(right, right));
    let sum: f64 = (0..r).map(|j| (0..r).map(|i| left[(i, j)] * right[(i, j)]).sum::<f64>()).sum();
    sum.max(0.0)
}

/// Decomposes `x` `[m, n]` into `Q·T` with `Q` `[m, k]` orthonormal and `T` `[k, n]` upper trapezoidal, `k` the smaller
/// of `m` and `n`, by Householder reflections on one thread.
fn thin_qr(mut x: Mat<f64>) -> (Mat<f64>, Mat<f64>) {
    let (m, n) = x.shape();
    let k = m.min(n);
    if k == 0 {
        return (Mat::zeros(m, 0), Mat::zeros(0, n));
    }
    let block = recommended_block_size::<f64>(m, n);
    let mut coefficients = Mat::<f64>::zeros(block, k);
    let mut memory = MemBuffer::new(qr_in_place_scratch::<f64>(m, n, block, Par::Seq, Spec::default()));
    qr_in_place(x.as_mut(), coefficients.as_mut(), Par::Seq, MemStack::new(&mut memory), Spec::default());
    let t = Mat::from_fn(k, n, |i, j| if i <= j { x[(i, j)] } else { 0.0 });
    let mut q = Mat::<f64>::identity(m, k);
    let scratch = apply_block_householder_sequence_on_the_left_in_place_scratch::<f64>(m, block, k);
    let mut memory = MemBuffer::new(scratch);
    apply_block_householder_sequence_on_the_left_in_place_with_conj(
        x.as_ref().subcols(0, k),
        coefficients.as_ref(),
        Conj::No,
        q.as_mut(),
        Par::Seq,
        MemStack::new(&mut memory),
    );
    (q, t)
}

/// Singular vectors and values of a small `core` `[a, b]`: `U` `[a, k]`, the values in descending order, `V` `[b, k]`.
fn decompose(core: MatRef<'_, f64>) -> Result<(Mat<f64>, Vec<f64>, Mat<f64>)> {
    let (a, b) = core.shape();
    let k = a.min(b);
    let failed = || Error::input("the singular values do not converge: a factor holds infinities or NaN");
    if core.col_iter().any(|column| column.iter().any(|x| !x.is_finite())) {
        return Err(failed());
    }
    let (mut u, mut v, mut values) = (Mat::zeros(a, k), Mat::zeros(b, k), Diag::<f64>::zeros(k));
    let thin = ComputeSvdVectors::Thin;
    let mut memory = MemBuffer::new(svd_scratch::<f64>(a, b, thin, thin, Par::Seq, Spec::default()));
    let stack = MemStack::new(&mut memory);
    let (left, right) = (Some(u.as_mut()), Some(v.as_mut()));
    svd(core, values.as_mut(), left, right, Par::Seq, stack, Spec::default()).map_err(|_| failed())?;
    Ok((u, values.column_vector().iter().copied().collect(), v))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::factorize::kernel::rng::Stream;

    fn row_major(mat: &Mat<f32>) -> Vec<f32> {
        (0..mat.nrows()).flat_map(|i| (0..mat.ncols()).map(move |j| mat[(i, j)])).collect()
    }

    /// The squared norms of `scale · left·right - other.left·other.right` and of its first term, element by element in
    /// f64.
    fn distance2(left: &Mat<f32>, right: &Mat<f32>, scale: f64, other: &Recompressed) -> (f64, f64) {
        let (m, n) = (left.nrows(), right.ncols());
        let k = other.left.len() / m;
        let (mut error2, mut norm2) = (0.0, 0.0);
        for i in 0..m {
            for j in 0..n {
                let whole: f64 = (0..left.ncols())
                    .map(|l| f64::from(left[(i, l)]) * f64::from(right[(l, j)]))
                    .sum::<f64>();
                let part: f64 = (0..k)
                    .map(|l| f64::from(other.left[i * k + l]) * f64::from(other.right[l * n + j]))
                    .sum();
                error2 += (scale * whole - part).powi(2);
                norm2 += (scale * whole).powi(2);
            }
        }
        (error2, norm2)
    }

    #[test]
    fn the_error_is_exactly_what_was_cut_off() {
        // Tall and wide, ranks below, at and above a side.
        for [m, r, n] in [[40, 12, 25], [25, 12, 40], [9, 16, 30], [30, 16, 9], [7, 7, 7], [5, 1, 6]] {
            let mut fresh = Stream::new(3, &format!("{m} {r} {n}"));
            let (left, right) = (fresh.gaussian(m, r), fresh.gaussian(r, n));
            let most = m.min(n).min(r);
            for k in [0, 1, most / 2, most, most + 3] {
                let found = recompress(&row_major(&left), &row_major(&right), [m, r, n], 1.75, k).unwrap();
                assert_eq!(found.singular_values.len(), most);
                assert!(found.singular_values.is_sorted_by(|a, b| a >= b));
                let (error2, norm2) = distance2(&left, &right, 1.75, &found);
                let stated = found.error2(k);
                assert!(
                    (error2 - stated).abs() <= 1e-6 * stated + 1e-12 * norm2,
                    "{m} {r} {n} {k}: {error2} {stated}"
                );
                assert!((found.norm2() / norm2 - 1.0).abs() < 1e-12);
                let direct = product_norm2(&row_major(&left), &row_major(&right), [m, r, n]);
                assert!((1.75f64.powi(2) * direct / norm2 - 1.0).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn it_is_the_best_of_its_rank() {
        // The truncated decomposition is the best approximation of rank k: compared here with the full one.
        let mut fresh = Stream::new(4, "best");
        let (left, right) = (fresh.gaussian(30, 10), fresh.gaussian(10, 20));
        let whole = Mat::from_fn(30, 20, |i, j| {
            (0..10).map(|l| f64::from(left[(i, l)]) * f64::from(right[(l, j)])).sum::<f64>()
        });
        let (_, values, _) = decompose(whole.as_ref()).unwrap();
        let found = recompress(&row_major(&left), &row_major(&right), [30, 10, 20], 1.0, 4).unwrap();
        for (found, value) in found.singular_values.iter().zip(&values) {
            assert!((found - value).abs() < 1e-12 * values[0]);
        }
        assert!(values[10] < 1e-12 * values[0]);
    }

    #[test]
    fn lost_rank_and_zeros_are_no_trouble() {
        let ones = vec![1.0; 8 * 4];
        let found = recompress(&ones, &ones, [8, 4, 8], 1.0, 2).unwrap();
        assert!((found.singular_values[0] - 32.0).abs() < 1e-12 && found.error2(1) < 1e-20);
        let zeros = recompress(&[0.0; 8], &[0.0; 8], [4, 2, 4], 1.0, 1).unwrap();
        assert_eq!((zeros.norm2(), zeros.left, zeros.right), (0.0, vec![0.0; 4], vec![0.0; 4]));
        let none = recompress(&[], &[], [4, 0, 4], 1.0, 3).unwrap();
        assert_eq!((none.norm2(), none.left.len(), product_norm2(&[], &[], [4, 0, 4])), (0.0, 0, 0.0));
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for bad in [f32::NAN, f32::INFINITY] {
            let error = recompress(&[1.0, bad], &[1.0, 1.0], [2, 1, 2], 1.0, 1).unwrap_err();
            assert!(error.to_string().contains("infinities or NaN"), "{error}");
        }
    }
}
