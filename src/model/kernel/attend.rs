//! Causal attention of one head over one group, query tile by query tile: only one tile's scores are ever held.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

/// Queries per tile.
const QUERIES: usize = 128;

/// The parameters that all heads of a layer share.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Width of a head.
    pub width: usize,
    /// The factor of the scores.
    pub scale: f32,
    /// The soft cap of the scores.
    pub cap: Option<f32>,
    /// How many tokens back a token sees, including itself.
    pub window: Option<usize>,
}

/// The number of scratch values that [`attend`] needs for sequences of up to `longest` tokens.
pub fn scratch(longest: usize, width: usize) -> usize {
    QUERIES * (longest + width)
}

/// Replaces the queries of one head, `[width, tokens]` for a whole group, by the attention's output. `keys` and
/// `values` are those that the head reads, of the same shape; `sequences` are the columns of each sequence.
///
/// # Panics
/// If the lengths do not match.
pub fn attend<'a>(
    heads: Heads,
    queries: &mut [f32],
    keys: &[f32],
    values: &[f32],
    sequences: impl Iterator<Item = &'a Range<usize>>,
    scratch: &mut Vec<f32>,
) {
    let width = heads.width;
    let tokens = queries.len() / width;
    let keys = MatRef::from_row_major_slice(keys, width, tokens);
    let values = MatRef::from_row_major_slice(values, width, tokens);
    for columns in sequences {
        for start in columns.clone().step_by(QUERIES) {
            let tile = start..(start + QUERIES).min(columns.end);
            // The first token that the first query of the tile sees.
            let first = heads
                .window
                .map_or(columns.start, |back| (start + 1).saturating_sub(back).max(columns.start));
            let seen = first..tile.end;
            scratch.resize(tile.len() * (seen.len() + width), 0.0);
            let (scores, out) = scratch.split_at_mut(tile.len() * seen.len());
            let q = MatRef::from_row_major_slice(queries, width, tokens).subcols(tile.start, tile.len());
            let mut matrix = MatMut::from_row_major_slice_mut(scores, tile.len(), seen.len());
            let k = keys.subcols(seen.start, seen.len());
            matmul(matrix.as_mut(), Accum::Replace, q.transpose(), k, heads.scale, Par::Seq);
            for (query, row) in tile.clone().zip(scores.chunks_mut(seen.len())) {
                let from =
                    heads.window.map_or(seen.start, |back| (query + 1).saturating_sub(back).max(seen.start));
                softmax(row, from - seen.start..query + 1 - seen.start, heads.cap);
            }
            let weights = MatRef::from_row_major_slice(scores, tile.len(), seen.len());
            let mut result = MatMut::from_row_major_slice_mut(out, width, tile.len());
            let v = values.subcols(seen.start, seen.len());
            matmul(result.as_mut(), Accum::Replace, v, weights.transpose(), 1.0, Par::Seq);
            let into = MatMut::from_row_major_slice_mut(queries, width, tokens);
            into.subcols_mut(tile.start, tile.len()).copy_from(result);
        }
    }
}

/// The softmax over the scores in `seen`; all others get no weight.
fn softmax(row: &mut [f32], seen: Range<usize>, cap: Option<f32>) {
    row[..seen.start].fill(0.0);
    row[seen.end..].fill(0.0);
    let row = &mut row[seen];
    if let Some(cap) = cap {
        row.iter_mut().for_each(|score| *score = (*score / cap).tanh() * cap);
    }
    let most = row.iter().fold(f32::NEG_INFINITY, |most, &score| most.max(score));
    row.iter_mut().for_each(|score| *score = (*score - most).exp());
    let sum: f32 = row.iter().sum();
    row.iter_mut().for_each(|weight| *weight /= sum);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, in f64.
    fn plain(heads: Heads, q: &[f32], k: &[f32], v: &[f32], sequences: &[Range<usize>]) -> Vec<f64> {
        let tokens = q.len() / heads.width;
        let at = |x: &[f32], row: usize, column: usize| f64::from(x[row * tokens + column]);
        let mut out = vec![0.0; q.len()];
        for columns in sequences {
            for t in columns.clone() {
                let seen: Vec<usize> =
                    (columns.start..=t).filter(|s| heads.window.is_none_or(|back| t - s < back)).collect();
                let score = |s: &usize| {
                    let dot: f64 = (0..heads.width).map(|j| at(q, j, t) * at(k, j, *s)).sum();
                    let dot = dot * f64::from(heads.scale);
                    heads.cap.map_or(dot, |cap| f64::from(cap) * (dot / f64::from(cap)).tanh()).exp()
                };
                let weights: Vec<f64> = seen.iter().map(score).collect();
                let sum: f64 = weights.iter().sum();
                for j in 0..heads.width {
                    let mean: f64 = seen.iter().zip(&weights).map(|(s, w)| w * at(v, j, *s)).sum();
                    out[j * tokens + t] = mean / sum;
                }
            }
        }
        out
    }

    #[test]
    fn tiles_windows_and_caps_give_what_the_definition_gives() {
        let (width, tokens) = (4, 310);
        let noise = |seed: u32| -> Vec<f32> {
            let value = |i: u32| {
                ((i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 8) % 1000) as f32 / 250.0 - 2.0
            };
            (0..(width * tokens) as u32).map(value).collect()
        };
        let (q, k, v) = (noise(1), noise(77), noise(991));
        let sequences = [0..290, 290..291, 291..310];
        for (cap, window) in [(None, None), (Some(1.5), Some(5)), (None, Some(1)), (None, Some(150))] {
            let heads = Heads { width, scale: 0.5, cap, window };
            let mut out = q.clone();
            attend(heads, &mut out, &k, &v, sequences.iter(), &mut Vec::new());
            let expected = plain(heads, &q, &k, &v, &sequences);
            let worst = out.iter().zip(expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
            assert!(worst < 2e-6, "{cap:?} {window:?}: {worst:e}");
        }
    }
}
