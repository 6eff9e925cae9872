//! The leading eigenvectors of a large symmetric square in memory, by block Krylov.
//!
//! A product with the square is cheap compared to computing the square itself, so blocks are narrow, which keeps the
//! basis small: on the flat spectrum of noise it takes some 5 to 6 times the rank. Basis and products are in f32, the
//! projected square is in f64.

use faer::Accum;
use faer::prelude::*;
use rayon::prelude::*;

use crate::Result;
use crate::factorize::kernel::block_ops::{append, cross_gram, eigen, eigenvalues, multiply, narrow};
use crate::factorize::kernel::convergence::{Estimate, History};
use crate::factorize::kernel::orthonormalize::orthonormalize;
use crate::factorize::kernel::rng::Stream;
use crate::factorize::kernel::skinny_gemm;
use crate::factorize::kernel::skinny_gemm::Strips;
use crate::factorize::kernel::tiling::{pieces, split_rows};
use crate::factorize::types::{Request, kept_rank};

/// Columns that are multiplied at a time: reading the square takes as long as multiplying this many.
pub(crate) const BLOCK: usize = 16;
/// Error over optimal error, minus 1, that the estimate must fall to.
pub(crate) const EXCESS: f64 = 1e-5;
/// Eigenvalues below this share of the largest are too close to the rounding of an f32 square.
const VISIBLE: f64 = 1e-5;

/// The leading eigenvectors, and how they were found.
pub(crate) struct Leading {
    /// Orthonormal to f32, `[side, columns(rank)]`: the rank's vectors and one more block, so that those at the edge
    /// can mix.
    pub(crate) vectors: Mat<f32>,
    /// Error over optimal error, minus 1: an estimate, biased upward.
    pub(crate) excess: f64,
    /// Columns of the basis.
    pub(crate) basis: usize,
    /// Floating point operations spent in products.
    pub(crate) flops: u64,
}

/// The number of vectors that are computed for a rank.
pub(crate) fn columns(rank: usize) -> usize {
    rank + BLOCK
}

/// The most columns that the basis may grow to.
pub(crate) fn most(side: usize, rank: usize) -> usize {
    (8 * rank).max(1024).min(side / 2) / BLOCK * BLOCK
}

/// The orthonormal basis `v` `[side, size + next]`, and the lower triangle of `projected = v^T·square·v`
/// `[size, size]`.
struct Space {
    v: Mat<f32>,
    projected: Mat<f64>,
    size: usize,
    flops: u64,
}

/// The leading eigenvectors of the full matrix `square`, whose trace is `total`, as many as the requested rank needs.
/// `None` if the requested eigenvalues cannot be told from rounding.
///
/// # Errors
/// [`Kind::Input`](crate::Kind::Input) if the square holds NaN.
pub(crate) fn leading(
    square: MatRef<'_, f32>,
    total: f64,
    request: &Request,
    fresh: &mut Stream,
) -> Result<Option<Leading>> {
    let most = most(square.nrows(), request.rank);
    // Judging needs all eigenvalues of the projected square, so it is not done at every step, nor before it can be
    // meaningful.
    let stride = (request.rank / 2).next_multiple_of(BLOCK).max(2 * BLOCK);
    let mut due = (4 * request.rank).next_multiple_of(BLOCK).max(8 * BLOCK).min(most);
    let mut space = Space::start(square.nrows(), most, fresh)?;
    let mut history = History::default();
    space.grow(due, square, fresh)?;
    loop {
        // The eigenvalues are one thread's work; the basis grows meanwhile, as it must unless this is enough.
        let further = (due + stride).min(most);
        let known = space.known(due).to_owned();
        let (values, grown) =
            rayon::join(|| eigenvalues(known.as_ref()), || space.grow(further, square, fresh));
        let values = values?;
        grown?;
        let rank = kept_rank(&values, request.rank, request.energy, total);
        if !visible(&values, rank, total, request) {
            return Ok(None);
        }
        history.push(&values, None);
        let estimate = history.estimate(rank, total, total - values.iter().sum::<f64>());
        let excess = estimate.map_or(f64::INFINITY, |e: Estimate| e.excess);
        if excess <= EXCESS || due == most {
            return space.finish(known.as_ref(), columns(request.rank), excess).map(Some);
        }
        due = further;
    }
}

/// Whether the smallest of the requested eigenvalues is clear of rounding.
fn visible(values: &[f64], rank: usize, total: f64, request: &Request) -> bool {
    let captured: f64 = values[..rank].iter().sum();
    let enough = request.energy.is_some_and(|energy| captured >= energy * total);
    let asked = if enough { rank } else { request.rank };
    asked > 0 && values[asked - 1] > VISIBLE * values[0]
}

impl Space {
    fn start(side: usize, most: usize, fresh: &mut Stream) -> Result<Space> {
        let mut v = Mat::with_capacity(side, most + BLOCK);
        let mut first = fresh.gaussian(side, BLOCK);
        orthonormalize(v.as_ref(), 0, &mut first, fresh)?;
        append(&mut v, first.as_ref());
        Ok(Space { v, projected: Mat::zeros(most, most), size: 0, flops: 0 })
    }

    /// Multiplies the newest block and adds the next one. The projected square is block tridiagonal: the product with a
    /// block is in the span of the basis up to the block after it, so the newest block couples only with itself and the
    /// one before.
    fn step(&mut self, square: MatRef<'_, f32>, fresh: &mut Stream) -> Result<()> {
        let (side, old) = (square.nrows(), self.size);
        let (from, d) = (old.saturating_sub(BLOCK), old + BLOCK);
        let mut block = times(square, self.v.as_ref().subcols(old, BLOCK));
        let met = cross_gram(self.v.as_ref().subcols(from, d - from), block.as_ref());
        for j in 0..BLOCK {
            for i in 0..d - from {
                self.projected[(old + j, from + i)] = met[(i, j)];
            }
        }
        orthonormalize(self.v.as_ref(), d - from, &mut block, fresh)?;
        append(&mut self.v, block.as_ref());
        self.size = d;
        self.flops += 2 * (side * side * BLOCK + 2 * side * d * BLOCK) as u64;
        Ok(())
    }

    /// Adds blocks until there are `columns`.
    fn grow(&mut self, columns: usize, square: MatRef<'_, f32>, fresh: &mut Stream) -> Result<()> {
        while self.size < columns {
            self.step(square, fresh)?;
        }
        Ok(())
    }

    /// The projection onto the first `columns`.
    fn known(&self, columns: usize) -> MatRef<'_, f64> {
        self.projected.as_ref().submatrix(0, 0, columns, columns)
    }

    /// The leading vectors in the span of the first `columns`, whose projection is `known`.
    fn finish(self, known: MatRef<'_, f64>, columns: usize, excess: f64) -> Result<Leading> {
        let d = known.ncols();
        let (_, turn) = eigen(known)?;
        let turn = narrow(turn.as_ref().subcols(0, columns.min(d)));
        let mut vectors = Mat::zeros(self.v.nrows(), turn.ncols());
        multiply(vectors.as_mut(), Accum::Replace, self.v.as_ref().subcols(0, d), turn.as_ref(), 1.0);
        let flops = self.flops + 2 * (self.v.nrows() * d * turn.ncols()) as u64;
        Ok(Leading { vectors, excess, basis: d, flops })
    }
}

/// `square·block`, in parallel over the rows of the square, which are also its columns.
fn times(square: MatRef<'_, f32>, block: MatRef<'_, f32>) -> Mat<f32> {
    const PART: usize = 160;
    let mut out = Mat::zeros(square.nrows(), block.ncols());
    let mut packed = Strips::default();
    packed.pack(block);
    let rows: Vec<_> = pieces(0..square.nrows(), PART).collect();
    let tasks: Vec<_> = rows.iter().cloned().zip(split_rows(out.as_mut(), &rows)).collect();
    tasks.into_par_iter().with_max_len(1).for_each(|(rows, out)| {
        let mut product = Strips::default();
        product.clear(rows.len(), packed.columns());
        skinny_gemm::multiply(square.subcols(rows.start, rows.len()).transpose(), &packed, &mut product);
        product.unpack(out);
    });
    out
}
