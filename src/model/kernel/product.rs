//! Products of a panel of a weight with a group's activations.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

use super::Activations;

/// Columns that are multiplied at a time.
pub const TILE: usize = 512;

/// `out = w·x` for `w` `[rows, x.features]` and `out` `[rows, x.tokens]`, both row-major; on this thread, in tiles of
/// columns whose boundaries follow from the group alone.
///
/// # Panics
/// If the lengths do not match.
pub fn product(w: &[f32], x: &Activations, out: &mut [f32]) {
    tiles(w, x, out, Accum::Replace, 1.0);
}

/// `out += scale · w·x`, otherwise like [`product`].
///
/// # Panics
/// If the lengths do not match.
pub fn add_product(w: &[f32], x: &Activations, out: &mut [f32], scale: f32) {
    tiles(w, x, out, Accum::Add, scale);
}

fn tiles(w: &[f32], x: &Activations, out: &mut [f32], accum: Accum, scale: f32) {
    if x.tokens == 0 || x.features == 0 {
        return;
    }
    let rows = w.len() / x.features;
    let w = MatRef::from_row_major_slice(w, rows, x.features);
    let x = MatRef::from_row_major_slice(&x.values, x.features, x.tokens);
    let mut out = MatMut::from_row_major_slice_mut(out, rows, x.ncols());
    for start in (0..x.ncols()).step_by(TILE) {
        let width = TILE.min(x.ncols() - start);
        let out = out.as_mut().subcols_mut(start, width);
        matmul(out, accum, w, x.subcols(start, width), scale, Par::Seq);
    }
}
