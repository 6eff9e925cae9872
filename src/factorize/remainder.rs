//! What a product of factors leaves of a matrix.

use std::ops::Range;

use faer::MatRef;
use rayon::prelude::*;

use crate::factorize::types::Panels;
use crate::{Error, Result};

/// Rows of the right factor that are subtracted at a time.
const DEPTH: usize = 8;

/// A matrix less a product of factors, computed at every visit: `delta - left·right`. The bits are those of
/// [`subtract`].
pub struct Remainder<'a> {
    delta: &'a dyn Panels,
    left: &'a [f32],
    right: &'a [f32],
    rank: usize,
}

impl<'a> Remainder<'a> {
    /// Of `delta` `[m, n]`, `left` `[m, rank]` and `right` `[rank, n]`, both row-major.
    ///
    /// # Errors
    /// [`Kind::Unexpected`](crate::Kind::Unexpected) where the lengths do not match.
    pub fn new(
        delta: &'a dyn Panels,
        left: &'a [f32],
        right: &'a [f32],
        rank: usize,
    ) -> Result<Remainder<'a>> {
        if left.len() != delta.rows() * rank || right.len() != rank * delta.cols() {
            return Err(Error::unexpected("the factors do not fit the matrix"));
        }
        Ok(Remainder { delta, left, right, rank })
    }
}

impl Panels for Remainder<'_> {
    fn rows(&self) -> usize {
        self.delta.rows()
    }

    fn cols(&self) -> usize {
        self.delta.cols()
    }

    fn visit(&self, rows: Range<usize>, look: &mut dyn FnMut(MatRef<'_, f32>) -> Result<()>) -> Result<()> {
        let left = &self.left[rows.start * self.rank..rows.end * self.rank];
        self.delta.visit(rows, &mut |panel| {
            let (height, cols) = (panel.nrows(), panel.ncols());
            let mut values = vec![0f32; height * cols];
            for (i, out) in values.chunks_exact_mut(cols.max(1)).enumerate() {
                out.iter_mut().zip(panel.row(i).iter()).for_each(|(to, from)| *to = *from);
                subtract_row(out, &left[i * self.rank..][..self.rank], self.right);
            }
            look(MatRef::from_row_major_slice(&values, height, cols))
        })
    }
}

/// `values -= left·right`, in place: `values` `[m, n]`, `left` `[m, rank]`, `right` `[rank, n]`, all row-major.
///
/// # Panics
/// If the lengths do not match.
pub fn subtract(values: &mut [f32], left: &[f32], right: &[f32], rank: usize) {
    let n = right.len().checked_div(rank).unwrap_or(0);
    if n == 0 {
        return;
    }
    assert!(values.len() * rank == left.len() * n, "factors of {} and {} values", left.len(), right.len());
    let rows = values.par_chunks_exact_mut(n).zip(left.par_chunks_exact(rank));
    rows.for_each(|(out, left)| subtract_row(out, left, right));
}

/// Every element in the order of the inner dimension, each product and difference rounded.
fn subtract_row(out: &mut [f32], left: &[f32], right: &[f32]) {
    let n = out.len();
    let (whole, rest) = left.as_chunks::<DEPTH>();
    for (factors, right) in whole.iter().zip(right.chunks_exact(DEPTH * n)) {
        let rows: [&[f32]; DEPTH] = std::array::from_fn(|l| &right[l * n..][..n]);
        for (j, out) in out.iter_mut().enumerate() {
            let mut value = *out;
            for (factor, row) in factors.iter().zip(rows) {
                value -= factor * row[j];
            }
            *out = value;
        }
    }
    let done = whole.len() * DEPTH;
    for (factor, row) in rest.iter().zip(right[done * n..].chunks_exact(n)) {
        out.iter_mut().zip(row).for_each(|(out, x)| *out -= factor * x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::factorize::in_memory::Held;
    use crate::factorize::kernel::rng::Stream;

    #[test]
    fn both_ways_give_the_bits_of_the_definition() {
        for (m, n, rank) in [(20, 33, 11), (5, 7, 8), (3, 4, 1), (6, 5, 0)] {
            let mut fresh = Stream::new(1, "remainder");
            let mut draw = |count: usize| fresh.gaussian(count.max(1), 1).col_as_slice(0)[..count].to_vec();
            let (values, left, right) = (draw(m * n), draw(m * rank), draw(rank * n));
            let mut expected = values.clone();
            for i in 0..m {
                for j in 0..n {
                    for l in 0..rank {
                        expected[i * n + j] -= left[i * rank + l] * right[l * n + j];
                    }
                }
            }
            let mut held = values.clone();
            subtract(&mut held, &left, &right, rank);
            assert!(held == expected, "{m} x {n}, rank {rank}");
            let delta = Held::new(m, n, values).unwrap();
            let rest = Remainder::new(&delta, &left, &right, rank).unwrap();
            rest.visit(1..m, &mut |panel| {
                assert!(
                    panel
                        .row_iter()
                        .flat_map(|row| row.iter().copied().collect::<Vec<_>>())
                        .eq(expected[n..].iter().copied())
                );
                Ok(())
            })
            .unwrap();
        }
    }
}
