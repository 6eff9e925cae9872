//! The Gram matrix of the shorter side, and the top of its spectrum.
//!
//! - Small sides: in f64, with a dense eigendecomposition. Optimal to f32.
//! - Large sides with ranks that are small in comparison: in f32, at twice the speed and half the memory, with block
//!   Krylov on the square. One more pass multiplies the delta with the vectors found, and a Rayleigh-Ritz step in f64
//!   takes singular values and factors from that product, so the rounding of the square enters only to second order.
//!   Singular values below 3e-3 of the largest are too close to that rounding: if such values are requested, block
//!   Krylov on the delta itself is used.

use faer::Accum;
use faer::prelude::*;
use rayon::prelude::*;

use crate::Result;
use crate::factorize::backend::block_lanczos;
use crate::factorize::backend::block_lanczos::{EXCESS, Leading, leading};
use crate::factorize::backend::krylov;
use crate::factorize::backend::krylov_cost::bytes as krylov_bytes;
use crate::factorize::kernel::arithmetic::Arithmetic;
use crate::factorize::kernel::block_ops::{
    cross_gram, eigen, eigen_bytes, eigen_flops, eigenvalues_bytes, multiply, narrow,
};
use crate::factorize::kernel::gram_matrix::{
    batch_bytes, gram_matrix, mirror, triangle, wide_passes, widened_bytes,
};
use crate::factorize::kernel::orthonormalize::orthogonal_bytes;
use crate::factorize::kernel::passes::{times, transpose_times};
use crate::factorize::kernel::ritz;
use crate::factorize::kernel::ritz::Coefficients;
use crate::factorize::kernel::rng::Stream;
use crate::factorize::kernel::tiling::groups;
use crate::factorize::precision::Precision;
use crate::factorize::types::{
    Backend, BasisPlan, Cost, Factors, Method, Panels, Request, iterates, kept_rank, unit_scale,
};

/// Factorizes `delta` `[m, n]` with squared norm `norm2`, which must be neither zero nor infinite.
pub(crate) fn factorize(delta: &dyn Panels, norm2: f64, module: &str, request: &Request) -> Result<Factors> {
    let (m, n) = (delta.rows(), delta.cols());
    if !iterates(m, n, request.rank) {
        return dense(delta, norm2, request);
    }
    if let Some(factors) = iterated(delta, norm2, module, request)? {
        return Ok(factors);
    }
    let request = Request { tolerance: EXCESS, ..*request };
    krylov::factorize(delta, norm2, module, &request, BasisPlan::thorough(m, n, &request))
}

/// The Gram matrix of the shorter side.
pub(crate) struct Gram;

impl Backend for Gram {
    fn method(&self) -> Method {
        Method::Gram
    }

    fn cost(&self, [m, n]: [usize; 2], request: &Request) -> Cost {
        let thread = if iterates(m, n, request.rank) { 0 } else { widened_bytes(m, n) };
        Cost { flops: flops(m, n, request), workspace: bytes(m, n, request), thread }
    }

    fn factorize(&self, delta: &dyn Panels, norm2: f64, module: &str, request: &Request) -> Result<Factors> {
        factorize(delta, norm2, module, request)
    }
}

/// By an f32 Gram matrix and block Krylov on it. `None` if it does not resolve the requested singular values.
fn iterated(delta: &dyn Panels, norm2: f64, module: &str, request: &Request) -> Result<Option<Factors>> {
    let (m, n) = (delta.rows(), delta.cols());
    let scale = unit_scale(norm2);
    let mut gram = triangle::<f32>(delta, scale as f32)?;
    mirror(gram.as_mut());
    let mut fresh = Stream::new(request.seed, module);
    let found = leading(gram.as_ref(), norm2 * scale * scale, request, &mut fresh)?;
    drop(gram);
    let Some(found) = found else { return Ok(None) };
    let products = if n <= m {
        times(delta, found.vectors.as_ref())?
    } else {
        transpose_times(delta, found.vectors.as_ref())?
    };
    refined((m, n), &found, &products, norm2, scale, request).map(Some)
}

/// The factors from the vectors found and their `products` with the delta `[m, n]`, by Rayleigh-Ritz.
fn refined(
    (m, n): (usize, usize),
    found: &Leading,
    products: &Mat<f32>,
    norm2: f64,
    scale: f64,
    request: &Request,
) -> Result<Factors> {
    let mut gram = cross_gram(products.as_ref(), products.as_ref());
    gram *= faer::Scale(scale * scale);
    let p = gram.ncols();
    let Coefficients { squares, on_w, on_v, .. } = ritz::right(Arithmetic::Native, gram.as_ref(), p)?;
    let k = kept_rank(&squares, request.rank, request.energy, norm2 * scale * scale);
    let turned = |block: &Mat<f32>, by: &Mat<f64>, unit: f64| {
        let mut out = Mat::zeros(block.nrows(), k);
        let by = narrow(by.as_ref().subcols(0, k));
        multiply(out.as_mut(), Accum::Replace, block.as_ref(), by.as_ref(), unit as f32);
        out
    };
    let far = turned(products, &on_w, scale.sqrt());
    let near = turned(&found.vectors, &on_v, scale.sqrt().recip());
    let (left, right) = if n <= m { (far, near) } else { (near, far) };
    let (long, short) = (m.max(n), m.min(n));
    let singular_values: Vec<f64> = squares.iter().map(|s| s.max(0.0).sqrt() / scale).collect();
    Ok(Factors {
        left: columns(&left.transpose().to_owned()),
        right: columns(&right),
        rank: k,
        method: Method::Gram,
        precision: Precision::F32,
        converged: k,
        captured: singular_values[..k].iter().map(|s| s * s).sum(),
        singular_values,
        estimated_excess: found.excess,
        basis: found.basis,
        passes: 1 + if n <= m { 1 } else { wide_passes(m) },
        flops: (long * short * short + 2 * m * n * p + 2 * (m + n) * p * k) as u64 + found.flops,
    })
}

/// By an f64 Gram matrix and its dense eigendecomposition.
fn dense(delta: &dyn Panels, norm2: f64, request: &Request) -> Result<Factors> {
    let (m, n) = (delta.rows(), delta.cols());
    let (short, long) = (m.min(n), m.max(n));
    let mut gram = gram_matrix(delta)?;
    // The solver's thresholds are absolute: bring the trace near 1, by a power of two, which costs no accuracy.
    let unit = norm2.log2().round().clamp(-1000.0, 1000.0).exp2();
    gram.as_mut().par_col_iter_mut().for_each(|column| column.iter_mut().for_each(|x| *x /= unit));
    let (mut squares, vectors) = eigen(gram.as_ref())?;
    drop(gram);
    squares.iter_mut().for_each(|s| *s *= unit);
    let k = kept_rank(&squares, request.rank, request.energy, norm2);
    let root = |j: usize| squares[j].powf(0.25);
    let leading = |power: i32| {
        let scaled = Mat::from_fn(short, k, |i, j| vectors[(i, j)] * root(j).powi(power));
        narrow(scaled.as_ref())
    };
    let (near, far) = (leading(1), leading(-1));
    drop(vectors);
    let (left, right) = if n <= m {
        (times(delta, far.as_ref())?, near)
    } else {
        (near, transpose_times(delta, far.as_ref())?)
    };
    let triangle = (long * short * short) as u64;
    Ok(Factors {
        left: columns(&left.transpose().to_owned()),
        right: columns(&right),
        rank: k,
        method: Method::Gram,
        precision: Precision::F32,
        converged: short,
        captured: squares[..k].iter().sum(),
        singular_values: squares.iter().map(|s| s.max(0.0).sqrt()).collect(),
        estimated_excess: 0.0,
        basis: short,
        passes: 1 + if n <= m { 1 } else { wide_passes(m) },
        flops: triangle + 9 * (short as u64).pow(3) + 2 * (m * n * k) as u64,
    })
}

/// The columns of `mat` one after another: its transpose, row-major.
fn columns(mat: &Mat<f32>) -> Vec<f32> {
    (0..mat.ncols()).flat_map(|j| mat.col_as_slice(j)).copied().collect()
}

fn flops(m: usize, n: usize, request: &Request) -> f64 {
    let (long, short) = (m.max(n) as f64, m.min(n) as f64);
    if iterates(m, n, request.rank) {
        let (rank, d) = (request.rank as f64, (5.5 * request.rank as f64).max(200.0));
        // Narrow products with the square and projections; the eigenvectors, and values alone at a few steps before.
        let solver = (3.0 * short * short + 6.0 * short * d) * d + 2.0 * eigen_flops(d);
        return 1.2 * long * short * short + solver + 2.0 * long * short * rank;
    }
    // A triangle is half the product, and f64 less than half the speed.
    2.5 * long * short * short + eigen_flops(short) + 2.0 * long * short * request.rank.min(m.min(n)) as f64
}

fn bytes(m: usize, n: usize, request: &Request) -> usize {
    if iterates(m, n, request.rank) {
        return iterated_bytes(m, n, request.rank).max(krylov_bytes(
            m,
            n,
            BasisPlan::thorough(m, n, request),
        ));
    }
    let (long, short) = (m.max(n), m.min(n));
    let rank = request.rank.min(short);
    let eigen = 8 * short * short + eigen_bytes(short);
    let batch = batch_bytes(m, n);
    let sums = if m < n { groups(n) } else { 1 };
    let factors = 4 * rank * (sums * long + 2 * (m + n));
    (8 * short * short + batch).max(eigen).max(8 * short * short * 2 + factors) + (1 << 20)
}

/// The f32 square, block Krylov on it, and then the product of the delta with what was found.
fn iterated_bytes(m: usize, n: usize, rank: usize) -> usize {
    let (long, short) = (m.max(n), m.min(n));
    let (most, columns) = (block_lanczos::most(short, rank), block_lanczos::columns(rank));
    // Eigenvalues are judged while the basis grows.
    let growing = orthogonal_bytes(short, most, block_lanczos::BLOCK) + eigenvalues_bytes(most);
    let vectors = eigen_bytes(most) + 4 * most * columns + 4 * short * columns;
    // The projected square, and what is judged of it.
    let basis = 4 * short * (most + block_lanczos::BLOCK) + 2 * 8 * most * most;
    let solver = basis + growing.max(vectors);
    let sums = if m < n { groups(n) + 1 } else { 1 };
    let factors = 4 * columns * (sums * long + 3 * (m + n)) + 17 * 8 * columns * columns;
    (4 * short * short + batch_bytes(m, n).max(solver)).max(factors) + (8 << 20)
}
