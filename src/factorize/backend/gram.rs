//! The Gram matrix of the shorter side, and the top of its spectrum.
//!
//! - Small sides: in f64, with a dense eigendecomposition. Optimal to f32.
//! - Large sides with ranks that are small in comparison: in f32, at twice the speed and half the memory, with block
//!   Krylov on the square. One more pass multiplies the delta with the vectors found, and a Rayleigh-Ritz step in f64
//!   takes singular values and factors from that product, so the rounding of the square enters only to second order.
//!   Singular values below 3e-3 of the largest are too close to that rounding: if such values are requested, block
//!   Krylov on the delta itself is used.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::prelude::*;
use faer::traits::ComplexField;
use faer::{Accum, Par};
use rayon::prelude::*;

use crate::Result;
use crate::factorize::backend::block_lanczos::{EXCESS, Leading, leading};
use crate::factorize::backend::krylov;
use crate::factorize::kernel::block_ops::{cross_gram, eigen, multiply, narrow, widen};
use crate::factorize::kernel::passes::{times, transpose_times};
use crate::factorize::kernel::ritz;
use crate::factorize::kernel::ritz::Coefficients;
use crate::factorize::kernel::rng::Stream;
use crate::factorize::kernel::tiling::{pieces, split_rows};
use crate::factorize::types::{BasisPlan, iterates};
use crate::factorize::types::{Factors, Method, Panels, Request, kept_rank, unit_scale};

/// Side of the tiles of the triangle. Each tile is computed by one task, so its sums depend on no other.
const TILE: usize = 256;
/// Rows (tall) or columns (wide) that are converted at a time.
const DEPTH: usize = 512;
/// Rows of the panels that are visited at the same time while a batch is filled.
const FILL: usize = 64;
/// Rows of a wide matrix that a task multiplies with the held block.
const STRIP: usize = 128;

/// The type that the Gram matrix is summed in.
pub(crate) trait GramScalar: ComplexField + From<f32> + Send + Sync {
    /// Whether batches of rows are column-major, rather than row-major like the delta.
    const UPRIGHT: bool;

    /// `tile += scale·left·right`.
    fn add_product(tile: MatMut<'_, Self>, left: MatRef<'_, f32>, right: MatRef<'_, f32>, scale: f32);
}

impl GramScalar for f32 {
    // Transposing a batch costs less than transposing parts of it in each tile's product.
    const UPRIGHT: bool = true;

    fn add_product(tile: MatMut<'_, f32>, left: MatRef<'_, f32>, right: MatRef<'_, f32>, scale: f32) {
        matmul(tile, Accum::Add, left, right, scale, Par::Seq);
    }
}

impl GramScalar for f64 {
    const UPRIGHT: bool = false;

    fn add_product(mut tile: MatMut<'_, f64>, left: MatRef<'_, f32>, right: MatRef<'_, f32>, scale: f32) {
        for part in pieces(0..left.ncols(), DEPTH) {
            let left = widen(left.transpose().subrows(part.start, part.len()));
            let right = widen(right.subrows(part.start, part.len()));
            matmul(tile.rb_mut(), Accum::Add, left.transpose(), right.as_ref(), f64::from(scale), Par::Seq);
        }
    }
}

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
    let Coefficients { squares, on_w, on_v, .. } = ritz::right(gram.as_ref(), p)?;
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
        converged: k,
        captured: singular_values[..k].iter().map(|s| s * s).sum(),
        singular_values,
        estimated_excess: found.excess,
        basis: found.basis,
        passes: 1 + if n <= m { 1 } else { wide_passes(m) },
        flops: (long * short * short + 2 * m * n * p + 2 * (m + n) * p * k) as u64 + found.flops,
    })
}

/// Copies the lower triangle to the upper one.
fn mirror(mut square: MatMut<'_, f32>) {
    let side = square.nrows();
    // In tiles, so that the lines stay in the cache while one side is read across its columns.
    for rows in pieces(0..side, 64) {
        for cols in pieces(0..rows.end, 64) {
            for j in cols.clone() {
                for i in rows.clone().filter(|&i| i > j) {
                    square[(j, i)] = square[(i, j)];
                }
            }
        }
    }
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

/// `delta^T·delta` if the matrix is tall, `delta·delta^T` if it is wide: the lower triangle of tiles.
///
/// # Errors
/// Any error from visiting the delta.
pub fn gram_matrix(delta: &dyn Panels) -> Result<Mat<f64>> {
    triangle(delta, 1.0)
}

/// The same for `scale·delta`, summed in `T`.
fn triangle<T: GramScalar>(delta: &dyn Panels, scale: f32) -> Result<Mat<T>> {
    if delta.cols() <= delta.rows() { tall(delta, scale) } else { wide(delta, scale) }
}

/// Bytes of the buffers that computing a Gram matrix needs, besides its result.
pub(crate) fn batch_bytes(m: usize, n: usize) -> usize {
    if n <= m {
        8 * DEPTH.min(m) * n
    } else {
        // The held block, and what each of up to 64 threads widens.
        4 * TILE.min(m) * n + 64 * 8 * DEPTH * (TILE + STRIP)
    }
}

/// For tall matrices: batches of rows are converted in parallel, then each tile adds its product.
fn tall<T: GramScalar>(delta: &dyn Panels, scale: f32) -> Result<Mat<T>> {
    let (m, n) = (delta.rows(), delta.cols());
    let mut gram = Mat::<T>::zeros(n, n);
    let depth = DEPTH.min(m);
    let mut store = if T::UPRIGHT { Mat::<T>::zeros(depth, n) } else { Mat::zeros(n, depth) };
    for rows in pieces(0..m, DEPTH) {
        let mut batch = if T::UPRIGHT {
            store.as_mut().subrows_mut(0, rows.len())
        } else {
            store.as_mut().subcols_mut(0, rows.len()).transpose_mut()
        };
        fill(delta, rows, scale, batch.rb_mut())?;
        let batch = batch.rb().transpose();
        tiles(gram.as_mut()).into_par_iter().with_max_len(1).for_each(|(i, j, tile)| {
            let (left, right) = (batch.subrows(i, tile.nrows()), batch.subrows(j, tile.ncols()));
            matmul(tile, Accum::Add, left, right.transpose(), T::from(1.0), Par::Seq);
        });
    }
    Ok(gram)
}

/// Copies `rows` of `scale·delta` to `out` `[rows.len(), n]`, row-major, in parallel.
fn fill<T: GramScalar>(delta: &dyn Panels, rows: Range<usize>, scale: f32, out: MatMut<'_, T>) -> Result<()> {
    let parts: Vec<_> = pieces(rows, FILL).collect();
    let tasks: Vec<_> = parts.iter().cloned().zip(split_rows(out, &parts)).collect();
    tasks.into_par_iter().with_max_len(1).try_for_each(|(part, mut out)| {
        delta.visit(part, &mut |p| {
            // In parts of the columns: if the batch is column-major, the lines that are written stay in the cache.
            for cols in pieces(0..p.ncols(), 64) {
                for i in 0..p.nrows() {
                    for j in cols.clone() {
                        out[(i, j)] = T::from(scale * p[(i, j)]);
                    }
                }
            }
            Ok(())
        })
    })
}

/// The tiles on and below the diagonal, with the row and column that they start at.
fn tiles<T: GramScalar>(gram: MatMut<'_, T>) -> Vec<(usize, usize, MatMut<'_, T>)> {
    let side = gram.nrows();
    let bands: Vec<_> = pieces(0..side, TILE).collect();
    let mut out = Vec::new();
    for (rows, band) in bands.iter().zip(split_rows(gram, &bands)) {
        let columns: Vec<_> = pieces(0..rows.end, TILE).collect();
        let band = band.subcols_mut(0, rows.end).transpose_mut();
        for (cols, tile) in columns.iter().zip(split_rows(band, &columns)) {
            out.push((rows.start, cols.start, tile.transpose_mut()));
        }
    }
    out
}

/// For wide matrices: a block of rows is held; strips of all rows up to its end are visited and multiplied with it.
/// Where the delta is recomputed at each visit this is about `m / (2·TILE)` passes, still less than the products cost.
fn wide<T: GramScalar>(delta: &dyn Panels, scale: f32) -> Result<Mat<T>> {
    let (m, n) = (delta.rows(), delta.cols());
    let mut gram = Mat::<T>::zeros(m, m);
    for held in pieces(0..m, TILE) {
        let mut block = Mat::<f32>::zeros(n, held.len());
        fill(delta, held.clone(), scale, block.as_mut().transpose_mut())?;
        let strips: Vec<_> = pieces(0..held.end, STRIP).collect();
        let band = gram.as_mut().subrows_mut(held.start, held.len()).subcols_mut(0, held.end).transpose_mut();
        let tasks: Vec<_> = strips.iter().cloned().zip(split_rows(band, &strips)).collect();
        tasks.into_par_iter().with_max_len(1).try_for_each(|(strip, tile)| {
            let mut tile = tile.transpose_mut();
            delta.visit(strip, &mut |p| {
                T::add_product(tile.rb_mut(), block.transpose(), p.transpose(), scale);
                Ok(())
            })
        })?;
    }
    Ok(gram)
}

fn wide_passes(m: usize) -> usize {
    let blocks = m.div_ceil(TILE);
    1 + blocks.div_ceil(2)
}
