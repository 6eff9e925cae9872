//! Rotary position embeddings.

use std::ops::Range;

use super::super::decoder::Rotary;
use super::Activations;

/// The sine and cosine of every pair of dimensions at every token of a group.
#[derive(Debug)]
pub struct Angles {
    /// `[pairs, tokens]`.
    cos: Activations,
    sin: Activations,
}

impl Angles {
    /// The angles for a group whose sequences have these columns, with positions counted from 0 in each.
    pub fn of<'a>(
        rotary: &Rotary,
        sequences: impl Iterator<Item = &'a Range<usize>>,
        tokens: usize,
    ) -> Angles {
        let pairs = rotary.frequencies.len();
        let (mut cos, mut sin) = (Activations::zeros(pairs, tokens), Activations::zeros(pairs, tokens));
        for columns in sequences {
            let frequencies = match &rotary.long {
                Some((limit, long)) if columns.len() > *limit => long,
                _ => &rotary.frequencies,
            };
            for (pair, frequency) in frequencies.iter().enumerate() {
                for (position, column) in columns.clone().enumerate() {
                    let (s, c) = (position as f64 * frequency).sin_cos();
                    cos.values[pair * tokens + column] = (c * rotary.scale) as f32;
                    sin.values[pair * tokens + column] = (s * rotary.scale) as f32;
                }
            }
        }
        Angles { cos, sin }
    }
}

/// Rotates every head of `width` rows: its rows `j` and `j + pairs` by the angle of pair `j`.
///
/// # Panics
/// If the rows are not a whole number of heads, or a head is narrower than its rotated pairs.
pub fn rotate(x: &mut Activations, width: usize, angles: &Angles) {
    let (tokens, pairs) = (x.tokens, angles.cos.features);
    assert!(x.features.is_multiple_of(width) && 2 * pairs <= width, "heads of {width}, {pairs} pairs");
    for head in x.values.chunks_mut((width * tokens).max(1)) {
        let (first, rest) = head.split_at_mut(pairs * tokens);
        let angles = angles.cos.values.iter().zip(&angles.sin.values);
        for ((a, b), (cos, sin)) in first.iter_mut().zip(rest).zip(angles) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}
