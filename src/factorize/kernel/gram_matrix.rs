//! The Gram matrix of the shorter side of a matrix, summed in f32 or f64 as its rows are visited.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::prelude::*;
use faer::traits::ComplexField;
use faer::{Accum, Par};
use rayon::prelude::*;

use crate::Result;
use crate::factorize::kernel::block_ops::widen;
use crate::factorize::kernel::tiling::{pieces, split_rows};
use crate::factorize::types::Panels;

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

/// Copies the lower triangle to the upper one.
pub(crate) fn mirror(mut square: MatMut<'_, f32>) {
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

/// `delta^T·delta` if the matrix is tall, `delta·delta^T` if it is wide: the lower triangle of tiles.
///
/// # Errors
/// Any error from visiting the delta.
pub fn gram_matrix(delta: &dyn Panels) -> Result<Mat<f64>> {
    triangle(delta, 1.0)
}

/// The same for `scale·delta`, summed in `T`.
pub(crate) fn triangle<T: GramScalar>(delta: &dyn Panels, scale: f32) -> Result<Mat<T>> {
    if delta.cols() <= delta.rows() { tall(delta, scale) } else { wide(delta, scale) }
}

/// Bytes of the buffers that computing a Gram matrix needs, besides its result: a batch of rows, or the held block.
pub(crate) fn batch_bytes(m: usize, n: usize) -> usize {
    if n <= m { 8 * DEPTH.min(m) * n } else { 4 * TILE.min(m) * n }
}

/// Bytes that each thread widens at a time where the sums are in f64.
pub(crate) fn widened_bytes(m: usize, n: usize) -> usize {
    if n <= m { 0 } else { 8 * DEPTH * (TILE + STRIP) }
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

/// How often a wide matrix is visited for its Gram matrix.
pub(crate) fn wide_passes(m: usize) -> usize {
    let blocks = m.div_ceil(TILE);
    1 + blocks.div_ceil(2)
}
