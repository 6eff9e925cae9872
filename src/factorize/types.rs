//! The request for a factorization, and its result.

use crate::Result;
use crate::factorize::kernel::tiling::groups;
use crate::factorize::precision::Precision;
use faer::MatRef;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// A matrix `[rows, cols]` in f32 that is visited in panels of consecutive rows, any number of times.
///
/// The same rows have exactly the same values at every visit. Several threads may visit at once.
pub trait Panels: Sync {
    /// Number of rows.
    fn rows(&self) -> usize;

    /// Number of columns.
    fn cols(&self) -> usize;

    /// Passes `rows` (row-major, `[rows.len(), cols]`) to `look`.
    ///
    /// # Errors
    /// Any error from the source of the rows (reading, decoding), or the error that `look` returned.
    fn visit(&self, rows: Range<usize>, look: &mut dyn FnMut(MatRef<'_, f32>) -> Result<()>) -> Result<()>;
}

/// How a matrix is factorized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Method {
    /// The cheaper of the two methods, by [`choose`](crate::factorize::choose()).
    Auto,
    /// Randomized block Krylov.
    Krylov,
    /// The Gram matrix of the shorter side and its leading eigenvectors.
    Gram,
}

impl Method {
    /// The name on the command line and in manifests.
    pub fn name(self) -> &'static str {
        match self {
            Method::Auto => "auto",
            Method::Krylov => "krylov",
            Method::Gram => "gram",
        }
    }
}

/// The parameters of a factorization.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Request {
    /// The largest rank of the factors. A matrix whose shorter side is below it is factorized exactly.
    pub rank: usize,
    /// If given, the factors have the smallest rank (at most `rank`) that captures this share of `||delta||_F^2`.
    pub energy: Option<f64>,
    /// How much larger than the optimal error the error may be, relative to the optimal one: 0.005 is half a percent.
    pub tolerance: f64,
    /// The method.
    pub method: Method,
    /// The seed of the random numbers, used together with the module's name.
    pub seed: u64,
}

/// What a factorization costs, from the shape and the request alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// In f32 flops of a large product on all threads: what runs slower counts more.
    pub flops: f64,
    /// An upper bound on the bytes needed beyond the delta and the buffers its panels are decoded into.
    pub workspace: usize,
    /// The same for each thread.
    pub thread: usize,
}

/// A way to factorize a matrix. An implementation passes the conformance suite in `tests/numerics/backends.rs`.
///
/// What comes out depends on the matrix, the module's name and the request alone: not on threads, memory or the
/// time of day.
pub trait Backend: Sync {
    /// The method that it is.
    fn method(&self) -> Method;

    /// What a matrix `[m, n]` would cost.
    fn cost(&self, shape: [usize; 2], request: &Request) -> Cost;

    /// Factorizes `delta`, whose squared Frobenius norm is `norm2`, neither zero nor infinite; `module` names the
    /// random stream.
    ///
    /// # Errors
    /// What visiting the delta meets.
    fn factorize(&self, delta: &dyn Panels, norm2: f64, module: &str, request: &Request) -> Result<Factors>;
}

/// Factors of a matrix `[m, n]`, balanced: `left = U·sqrt(S)`, `right = sqrt(S)·V^T`.
#[derive(Clone, Debug)]
pub struct Factors {
    /// `B`, `[m, rank]` row-major.
    pub left: Vec<f32>,
    /// `A`, `[rank, n]` row-major.
    pub right: Vec<f32>,
    /// The factors' rank: below the requested rank if the matrix has fewer singular values above 5e-7 of the largest,
    /// or if a lower rank captures the requested energy. A zero matrix has rank 0.
    pub rank: usize,
    /// The numbers in which the delta was multiplied, never [`Precision::Auto`].
    pub precision: Precision,
    /// The method used, never [`Method::Auto`]. Krylov even if Gram was requested, where an f32 Gram matrix is not
    /// accurate enough.
    pub method: Method,
    /// All computed singular values, in descending order.
    pub singular_values: Vec<f64>,
    /// How many of `singular_values` can be trusted. Those after them have not converged: they are lower bounds.
    pub converged: usize,
    /// The sum of squares of the kept singular values: what `B·A` captures of `||delta||_F^2`.
    pub captured: f64,
    /// The error of `B·A` over the optimal error at its rank, minus 1: an estimate, biased upward.
    pub estimated_excess: f64,
    /// Columns of the Krylov basis (of the delta or of a large Gram matrix), or the side of a smaller Gram matrix.
    pub basis: usize,
    /// How many times the whole matrix was visited (rounded up where a Gram matrix of panel pairs revisits parts).
    pub passes: usize,
    /// Floating point operations in products, counted.
    pub flops: u64,
}

impl Factors {
    pub(crate) fn zero(method: Method) -> Self {
        Factors {
            left: Vec::new(),
            right: Vec::new(),
            rank: 0,
            precision: Precision::F32,
            method,
            singular_values: Vec::new(),
            converged: 0,
            captured: 0.0,
            estimated_excess: 0.0,
            basis: 0,
            passes: 0,
            flops: 0,
        }
    }
}

/// The factor that brings a matrix of squared norm `norm2` near norm 1, so that the squares of a tiny or huge one stay
/// within f32. It is a power of two, which costs no accuracy.
pub(crate) fn unit_scale(norm2: f64) -> f64 {
    (-0.5 * norm2.log2()).round().clamp(-120.0, 120.0).exp2()
}

/// The rank to keep, given `squares`, the squared singular values in descending order: at most `most`, none that f32
/// cannot tell from zero, and with an `energy` the smallest rank that captures it.
pub(crate) fn kept_rank(squares: &[f64], most: usize, energy: Option<f64>, norm2: f64) -> usize {
    /// The rounding of f32 products, relative to the largest singular value.
    const NOISE: f64 = 5e-7;
    let floor = squares.first().map_or(0.0, |s| s * NOISE * NOISE);
    let real = squares.iter().take(most).take_while(|s| **s > floor).count();
    let Some(energy) = energy else { return real };
    let mut sum = 0.0;
    let reached = squares[..real].iter().position(|s| {
        sum += s;
        sum >= energy * norm2
    });
    reached.map_or(real, |index| index + 1)
}

/// The sizes of a block Krylov run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BasisPlan {
    /// Rank of the factors.
    pub(crate) rank: usize,
    /// Columns that are multiplied at a time.
    pub(crate) block: usize,
    /// The most columns that the basis may grow to.
    pub(crate) most: usize,
}

impl BasisPlan {
    /// The sizes for a matrix `[m, n]`.
    pub(crate) fn of(m: usize, n: usize, request: &Request) -> BasisPlan {
        let side = m.min(n);
        let rank = request.rank.min(side);
        // Narrow blocks converge in the smallest basis; wide ones read the delta less often and multiply faster. Each
        // group of panels sums a block of its own, which limits the width where rows are long.
        let widest = ((5 << 21) / groups(n) / n.max(1) / 16 * 16).clamp(16, 128);
        let block = (rank / 4).next_multiple_of(16).clamp(32.min(widest), widest).min(side);
        // The basis grows with the number of steps that a flat spectrum takes, about the logarithm of the tolerance.
        let digits = (1.0 / request.tolerance).log10().max(1.0);
        let factor = if digits <= 3.0 { 3 } else { 4 };
        let most = (factor * rank).max(rank + 6 * block).next_multiple_of(block).min(n);
        BasisPlan { rank, block, most }
    }

    /// The sizes to reach the optimum to 1e-5, for matrices where a Gram matrix is not accurate enough.
    pub(crate) fn thorough(m: usize, n: usize, request: &Request) -> BasisPlan {
        let plan = BasisPlan::of(m, n, request);
        let most = (6 * plan.rank).max(plan.rank + 12 * plan.block).next_multiple_of(plan.block).min(n);
        BasisPlan { most, ..plan }
    }

    /// The approximate number of basis columns when a flat spectrum has converged.
    pub(crate) fn expected(&self) -> usize {
        (self.rank * 11 / 4 + self.block).min(self.most)
    }
}

/// Whether block Krylov, rather than a dense solver, computes the top of the Gram matrix's spectrum for a matrix
/// `[m, n]`.
pub(crate) fn iterates(m: usize, n: usize, rank: usize) -> bool {
    let short = m.min(n);
    short >= 1536 && 10 * rank <= short
}
