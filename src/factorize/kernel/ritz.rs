//! Rayleigh-Ritz on a Krylov basis: the best factors within it, and what they capture.
//!
//! With the orthonormal basis `V` `[n, d]`, `W = delta·V` and `G = W^T·W` there are two ways to project:
//!
//! - *right*: `delta·V·V^T`. The eigenvectors `Q` of `G` give the factors `W·Q` and `V·Q`. Always robust.
//! - *left*: `U·U^T·delta` with `U = W·R^{-1}` orthonormal, `G = R^T·R`. It is half a Krylov step ahead at no cost:
//!   `delta^T·W = V·G + N·S`, where `N` is the next block of the basis and only the last block of columns has an `S`,
//!   so `delta^T·U = V·R^T + N·S·R^{-1}`, and `delta` need not be visited. This is block Golub-Kahan bidiagonalization,
//!   written with Gram matrices. It divides by the small singular values of `W`, so it is only for spectra without
//!   them.
//!
//! Where products are in bytes, a block is rounded first: `W = delta·(V + F)`. The errors `F` are known, and within the
//! span of the basis they are `V·C` with `C = V^T·F`; beyond it they meet only what the basis misses of the delta. So
//! `W·(I + C)^{-1}` is `delta·V` without the large directions that every column's error meets: [`Unrounding`].

use faer::prelude::*;

use crate::Result;
use crate::factorize::kernel::arithmetic::Arithmetic;
use crate::factorize::kernel::block_ops::widen;
use crate::factorize::kernel::tiling::pieces;

/// The left projection is used if no direction of `W` is below this share of the largest.
const FLATNESS: f64 = 1e-2;

/// Columns whose rounding errors are looked at together.
const COLUMNS: usize = 64;

/// Terms of the series for an inverse, after the first.
const TERMS: usize = 4;

/// The left projection's square `M = (delta^T·U)^T·(delta^T·U)` `[d, d]`, and what maps its eigenvectors back.
pub(crate) struct Left {
    /// `R^T`, lower triangular, `[d, d]`.
    lower: Mat<f64>,
    /// `S·R^{-1}` of the last block, `[next, last]`.
    link: Mat<f64>,
    /// `M`.
    pub(crate) square: Mat<f64>,
}

/// Coefficients of the factors: `left = W·on_w`, `right^T = V·on_v + N·on_next`, unbalanced.
pub(crate) struct Coefficients {
    /// Squares of the singular values.
    pub(crate) squares: Vec<f64>,
    /// `[d, k]`.
    pub(crate) on_w: Mat<f64>,
    /// `[d, k]`.
    pub(crate) on_v: Mat<f64>,
    /// `[next, k]`, for the left projection.
    pub(crate) on_next: Option<Mat<f64>>,
}

impl Left {
    /// The left projection for `gram` = `G` `[d, d]` and `link` = `S` `[next, last]`, or `None` if it is not safe.
    pub(crate) fn of(by: Arithmetic, gram: MatRef<'_, f64>, link: MatRef<'_, f64>) -> Option<Left> {
        let (d, last) = (gram.nrows(), link.ncols());
        let lower = by.cholesky(gram)?;
        let corner = lower.as_ref().submatrix(d - last, d - last, last, last);
        let mut turned = link.transpose().to_owned();
        by.solve_lower(corner, turned.as_mut());
        let mut square = by.product(lower.transpose(), lower.as_ref());
        let mut end = square.as_mut().submatrix_mut(d - last, d - last, last, last);
        end += by.product(turned.as_ref(), turned.transpose());
        Some(Left { lower, link: turned.transpose().to_owned(), square })
    }

    /// The `k` leading factors: `U·Y` and `delta^T·U·Y`, with `Y` the eigenvectors of the square.
    pub(crate) fn coefficients(&self, by: Arithmetic, k: usize) -> Result<Coefficients> {
        let (squares, y) = by.eigen(self.square.as_ref(), k)?;
        let (d, last) = (y.nrows(), self.link.ncols());
        let y = y.as_ref().subcols(0, k);
        let mut on_w = y.to_owned();
        by.solve_upper(self.lower.as_ref(), on_w.as_mut());
        let on_v = by.product(self.lower.as_ref(), y);
        let on_next = by.product(self.link.as_ref(), y.subrows(d - last, last));
        Ok(balanced(Coefficients { squares, on_w, on_v, on_next: Some(on_next) }, 1.0))
    }
}

/// `(I + C)^{-1}`, which takes the rounding of a basis out of its products.
pub(crate) struct Unrounding(Mat<f64>);

impl Unrounding {
    /// For the basis `v` `[n, d]`, of which `error` gives the rounding errors of some columns; `None` if it has none.
    pub(crate) fn of(
        by: Arithmetic,
        v: MatRef<'_, f32>,
        error: impl Fn(MatRef<'_, f32>) -> Option<Mat<f32>>,
    ) -> Option<Unrounding> {
        let d = v.ncols();
        let mut c = Mat::zeros(d, d);
        for columns in pieces(0..d, COLUMNS) {
            let error = error(v.subcols(columns.start, columns.len()))?;
            let within = by.cross(v, error.as_ref());
            c.as_mut().subcols_mut(columns.start, columns.len()).copy_from(&widen(within.as_ref()));
        }
        // Neumann's series, by Horner's rule: C is small.
        let mut inverse = Mat::<f64>::identity(d, d);
        for _ in 0..TERMS {
            inverse = Mat::<f64>::identity(d, d) - by.product(c.as_ref(), inverse.as_ref());
        }
        Some(Unrounding(inverse))
    }

    /// The Gram matrix of `W·(I + C)^{-1}`, for that of `W`.
    pub(crate) fn gram(&self, by: Arithmetic, gram: MatRef<'_, f64>) -> Mat<f64> {
        let half = by.product(gram, self.0.as_ref());
        by.product(self.0.transpose(), half.as_ref())
    }

    /// The same factors, by the products as they are.
    pub(crate) fn apply(&self, by: Arithmetic, c: Coefficients) -> Coefficients {
        Coefficients { on_w: by.product(self.0.as_ref(), c.on_w.as_ref()), ..c }
    }

    /// Bytes that it takes to make and to apply, for a basis of `d` columns `[n]`.
    pub(crate) fn bytes(n: usize, d: usize) -> usize {
        4 * n * COLUMNS.min(d) + 3 * 8 * d * d
    }
}

/// Whether the spectrum of `W`, given by the eigenvalues of its Gram matrix, allows the left projection.
pub(crate) fn flat_enough(eigenvalues: &[f64]) -> bool {
    match (eigenvalues.first(), eigenvalues.last()) {
        (Some(first), Some(last)) => *last > first * FLATNESS * FLATNESS,
        _ => false,
    }
}

/// The `k` leading factors of the right projection: `W·Q` and `V·Q`.
pub(crate) fn right(by: Arithmetic, gram: MatRef<'_, f64>, k: usize) -> Result<Coefficients> {
    let (squares, q) = by.eigen(gram, k)?;
    let q = q.as_ref().subcols(0, k);
    Ok(balanced(Coefficients { squares, on_w: q.to_owned(), on_v: q.to_owned(), on_next: None }, -1.0))
}

/// Shares the singular values `s` equally. `side` says which factor holds them: +1 the right one, -1 the left one.
fn balanced(mut c: Coefficients, side: f64) -> Coefficients {
    for j in 0..c.on_w.ncols() {
        let root = c.squares[j].max(0.0).powf(0.25 * side);
        let (to_left, to_right) =
            if root > 0.0 && root.is_finite() { (root, 1.0 / root) } else { (0.0, 0.0) };
        c.on_w.col_mut(j).iter_mut().for_each(|x| *x *= to_left);
        c.on_v.col_mut(j).iter_mut().for_each(|x| *x *= to_right);
        if let Some(next) = &mut c.on_next {
            next.col_mut(j).iter_mut().for_each(|x| *x *= to_right);
        }
    }
    c
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::factorize::kernel::orthonormalize::orthonormalize;
    use crate::factorize::kernel::rng::Stream;

    #[test]
    fn known_rounding_of_a_basis_is_taken_out_of_its_products() {
        let mut fresh = Stream::new(7, "ritz");
        let mut v = fresh.gaussian(300, 80);
        orthonormalize(Mat::zeros(300, 0).as_ref(), 0, &mut v, &mut fresh).unwrap();
        // Large within the basis, small beyond it.
        let delta = fresh.gaussian(120, 80) * v.transpose() + fresh.gaussian(120, 300) * faer::Scale(1e-3f32);
        let errors = fresh.gaussian(300, 80) * faer::Scale(5e-4f32);
        let (delta, exact) = (widen(delta.as_ref()), widen(v.as_ref()));
        let w = &delta * (&exact + widen(errors.as_ref()));
        let error = |part: MatRef<'_, f32>| {
            let first = (0..80).find(|j| v.col(*j) == part.col(0)).unwrap();
            Some(errors.subcols(first, part.ncols()).to_owned())
        };
        let unrounding = Unrounding::of(Arithmetic::Fixed, v.as_ref(), error).unwrap();
        let right = &delta * &exact;
        let off = |w: &Mat<f64>| (w - &right).norm_l2() / right.norm_l2();
        let mended = &w * &unrounding.0;
        assert!(off(&w) > 3e-3 && off(&mended) < 1e-4, "{} and {}", off(&w), off(&mended));
        let gram = unrounding.gram(Arithmetic::Fixed, (w.transpose() * &w).as_ref());
        assert!((gram - mended.transpose() * &mended).norm_max() < 1e-9 * right.norm_max().powi(2));
        assert!(Unrounding::of(Arithmetic::Native, v.as_ref(), |_| None).is_none());
    }
}
