//! The Gram matrix of the shorter side, in f64, and its dense eigendecomposition. Optimal to f32.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::prelude::*;
use faer::{Accum, Par};
use rayon::prelude::*;

use super::dense::{eigen, narrow, widen};
use super::shape::{pieces, split_rows};
use super::sweep::{times, transpose_times};
use super::{Factors, Method, Panels, Request, kept_rank};
use crate::Result;

/// Side of the tiles of the triangle. Each tile is one task's, so its sums depend on no other.
const TILE: usize = 256;
/// Rows (tall) or columns (wide) that are widened to f64 at a time.
const DEPTH: usize = 512;
/// Rows of the panels that are visited at the same time while a batch is filled.
const FILL: usize = 64;
/// Rows of a wide matrix that a task multiplies with the block that is held.
const STRIP: usize = 128;

/// Factors of `delta` `[m, n]` with squared norm `norm2`, which is neither zero nor infinite.
pub(super) fn factorize(delta: &dyn Panels, norm2: f64, request: &Request) -> Result<Factors> {
    let (m, n) = (delta.rows(), delta.cols());
    let (short, long) = (m.min(n), m.max(n));
    let mut gram = gram_matrix(delta)?;
    // The solver's thresholds are absolute: bring the trace near 1, by a power of two, which costs nothing.
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

/// The columns of `mat`, one behind the other: row-major, its transpose.
fn columns(mat: &Mat<f32>) -> Vec<f32> {
    (0..mat.ncols()).flat_map(|j| mat.col_as_slice(j)).copied().collect()
}

/// `delta^T·delta` where the matrix is tall, `delta·delta^T` where it is wide: the lower triangle of tiles.
///
/// # Errors
/// What visiting the delta meets.
pub fn gram_matrix(delta: &dyn Panels) -> Result<Mat<f64>> {
    if delta.cols() <= delta.rows() { tall(delta) } else { wide(delta) }
}

/// Bytes of the buffers that [`gram_matrix`] fills, beside its result.
pub(super) fn batch_bytes(m: usize, n: usize) -> usize {
    if n <= m {
        8 * DEPTH.min(m) * n
    } else {
        // The held block, and what each of as many as 64 threads widens.
        4 * TILE.min(m) * n + 64 * 8 * DEPTH * (TILE + STRIP)
    }
}

/// Batches of rows are widened in parallel, then each tile adds its product.
fn tall(delta: &dyn Panels) -> Result<Mat<f64>> {
    let (m, n) = (delta.rows(), delta.cols());
    let mut gram = Mat::<f64>::zeros(n, n);
    // Transposed, so that a row of the delta is copied to where it lies in one piece.
    let mut batch = Mat::<f64>::zeros(n, DEPTH.min(m));
    for rows in pieces(0..m, DEPTH) {
        let mut batch = batch.as_mut().subcols_mut(0, rows.len());
        fill(delta, rows, batch.rb_mut().transpose_mut())?;
        let batch = batch.rb();
        tiles(gram.as_mut()).into_par_iter().with_max_len(1).for_each(|(i, j, tile)| {
            let (left, right) = (batch.subrows(i, tile.nrows()), batch.subrows(j, tile.ncols()));
            matmul(tile, Accum::Add, left, right.transpose(), 1.0, Par::Seq);
        });
    }
    Ok(gram)
}

/// Copies `rows` of the delta to `out` `[rows.len(), n]`, row-major, in parallel.
fn fill<T: From<f32> + Send>(delta: &dyn Panels, rows: Range<usize>, out: MatMut<'_, T>) -> Result<()> {
    let parts: Vec<_> = pieces(rows, FILL).collect();
    let tasks: Vec<_> = parts.iter().cloned().zip(split_rows(out, &parts)).collect();
    tasks.into_par_iter().with_max_len(1).try_for_each(|(part, mut out)| {
        delta.visit(part, &mut |p| {
            for i in 0..p.nrows() {
                let pairs = out.rb_mut().row_mut(i).iter_mut().zip(p.row(i).iter());
                pairs.for_each(|(to, from)| *to = T::from(*from));
            }
            Ok(())
        })
    })
}

/// The tiles on and below the diagonal with the row and column they start at.
fn tiles(gram: MatMut<'_, f64>) -> Vec<(usize, usize, MatMut<'_, f64>)> {
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

/// A block of rows is held; strips of all rows down to its end are visited and multiplied with it. Where the delta is
/// recomputed at each visit that is about `m / (2·TILE)` passes, still less than the products cost.
fn wide(delta: &dyn Panels) -> Result<Mat<f64>> {
    let (m, n) = (delta.rows(), delta.cols());
    let mut gram = Mat::<f64>::zeros(m, m);
    for held in pieces(0..m, TILE) {
        let mut block = Mat::<f32>::zeros(n, held.len());
        fill(delta, held.clone(), block.as_mut().transpose_mut())?;
        let strips: Vec<_> = pieces(0..held.end, STRIP).collect();
        let band = gram.as_mut().subrows_mut(held.start, held.len()).subcols_mut(0, held.end).transpose_mut();
        let tasks: Vec<_> = strips.iter().cloned().zip(split_rows(band, &strips)).collect();
        tasks.into_par_iter().with_max_len(1).try_for_each(|(strip, tile)| {
            let mut tile = tile.transpose_mut();
            delta.visit(strip, &mut |p| {
                for part in pieces(0..n, DEPTH) {
                    let left = widen(block.as_ref().subrows(part.start, part.len()));
                    let right = widen(p.transpose().subrows(part.start, part.len()));
                    matmul(tile.rb_mut(), Accum::Add, left.transpose(), right.as_ref(), 1.0, Par::Seq);
                }
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
