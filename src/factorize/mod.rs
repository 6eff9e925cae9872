//! Low-rank factorization of a matrix that is seen in panels of rows. Pure: no file, no log.
//!
//! [`factorize`] takes a matrix `delta` `[m, n]` and gives `B` `[m, k]` and `A` `[k, n]` such that `B·A` is close to the
//! best approximation of rank `k` that there is. Two ways lead there:
//!
//! - [`Method::Krylov`]: randomized block Krylov, stopped by its own estimate of what is still missing. It reads the
//!   delta once a step and is the way for large matrices.
//! - [`Method::Gram`]: the Gram matrix of the shorter side, and the top of its spectrum. Cheaper where the shorter side is
//!   only a few times the rank: there in f64 and with a dense eigensolver, optimal to f32. Where that side is large, in
//!   f32 and with block Krylov on the square until the error is within 1e-5 of the optimal one, as estimated.
//!
//! Who reads what: `shape` cuts a matrix into groups and panels; `sweep` is the only file that visits the delta for
//! products; `dense`, `orthogonal` and `ritz` are the numerics on tall thin blocks and small squares; `excess` judges
//! convergence; `krylov` and `gram` are the two methods, `leading` solves the large squares of the latter; `cost` chooses and predicts; `measure` judges what was stored.
//!
//! Nothing here depends on the number of threads or on memory: how a matrix is cut follows from its shape, partial sums
//! are added in a fixed order, and products inside a task run on one thread.

pub mod backend;
pub(crate) mod choose;
pub(crate) mod in_memory;
pub mod kernel;
pub(crate) mod residual;
pub(crate) mod truncate;
pub use self::choose::{choose, flops, trial_product, workspace};
pub use self::in_memory::Held;
pub use self::residual::{Residual, residual, stored_error};
pub use self::truncate::{Recompressed, product_norm2, recompress};

use std::ops::Range;

use faer::MatRef;
use serde::{Deserialize, Serialize};

use crate::factorize::backend::gram;
use crate::factorize::backend::krylov;
use crate::{Error, Result};

/// The parts of the methods that `benches/factorize.rs` times one by one. No part of the library's promise.
#[doc(hidden)]
pub mod parts {
    pub use crate::factorize::backend::gram::gram_matrix;
    pub use crate::factorize::kernel::block_ops::{cross_gram, eigen};
    pub use crate::factorize::kernel::orthonormalize::orthonormalize;
    pub use crate::factorize::kernel::passes::{Scratch, sweep};
    pub use crate::factorize::kernel::rng::Stream;
}

/// A matrix `[rows, cols]` in f32 that is visited in panels of consecutive rows, as often as wished.
///
/// The same rows give the same bits at every visit. Several threads may visit at once.
pub trait Panels: Sync {
    /// Number of rows.
    fn rows(&self) -> usize;

    /// Number of columns.
    fn cols(&self) -> usize;

    /// Shows `rows` (row-major, `[rows.len(), cols]`) to `look`.
    ///
    /// # Errors
    /// What the source of the rows met (reading, decoding), or what `look` returned.
    fn visit(&self, rows: Range<usize>, look: &mut dyn FnMut(MatRef<'_, f32>) -> Result<()>) -> Result<()>;
}

/// How a matrix is factorized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// The cheaper of the two, by [`choose`].
    Auto,
    /// Randomized block Krylov.
    Krylov,
    /// Gram matrix of the shorter side and its leading eigenvectors.
    Gram,
}

impl Method {
    /// Its name on the command line and in manifests.
    pub fn name(self) -> &'static str {
        match self {
            Method::Auto => "auto",
            Method::Krylov => "krylov",
            Method::Gram => "gram",
        }
    }
}

/// What is asked of a factorization.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Request {
    /// The largest rank of the factors. A matrix with a shorter side below it is factorized exactly.
    pub rank: usize,
    /// Where given, the factors have the least rank (at most `rank`) that captures this share of `||delta||_F^2`.
    pub energy: Option<f64>,
    /// How far above the optimal error the error may be, relative to the optimal one: 0.005 is half a per cent.
    pub tolerance: f64,
    /// The way to go.
    pub method: Method,
    /// Seed of the random numbers, together with the module's name.
    pub seed: u64,
}

/// Factors of a matrix `[m, n]`, balanced: `left = U·sqrt(S)`, `right = sqrt(S)·V^T`.
#[derive(Clone, Debug)]
pub struct Factors {
    /// `B`, `[m, rank]` row-major.
    pub left: Vec<f32>,
    /// `A`, `[rank, n]` row-major.
    pub right: Vec<f32>,
    /// The factors' rank: below the request's where the matrix has not that many singular values above 5e-7 of the
    /// largest, or where less captures the energy asked for. A zero matrix has rank 0.
    pub rank: usize,
    /// The method used, never [`Method::Auto`]. Asked for a Gram matrix, it is Krylov where one in f32 would not do.
    pub method: Method,
    /// All singular values that were computed, descending.
    pub singular_values: Vec<f64>,
    /// How many of `singular_values` can be trusted. Those beyond have not converged: they are lower bounds.
    pub converged: usize,
    /// Sum of squares of the singular values kept, what `B·A` captures of `||delta||_F^2`.
    pub captured: f64,
    /// Error of `B·A` over the optimal error of its rank, minus 1: an estimate that leans upward.
    pub estimated_excess: f64,
    /// Columns of the Krylov basis, of the delta or of a large Gram matrix, or the side of a smaller one.
    pub basis: usize,
    /// How often all of the matrix was visited (rounded up where a Gram matrix of panel pairs revisits parts).
    pub passes: usize,
    /// Floating point operations spent in products, counted.
    pub flops: u64,
}

/// Factorizes `delta` `[m, n]`. `norm2` is its squared Frobenius norm, known from streaming it; `module` names the random
/// stream. Runs in the rayon pool that is current, with the same bits whatever its size.
///
/// # Errors
/// A rank of 0 or a tolerance or energy outside (0, 1] ([`Kind::Decide`](crate::Kind::Decide)), a norm that is not finite
/// ([`Kind::Input`](crate::Kind::Input)), and whatever visiting the delta meets.
pub fn factorize(delta: &dyn Panels, norm2: f64, module: &str, request: &Request) -> Result<Factors> {
    check(norm2, module, request)?;
    let (m, n) = (delta.rows(), delta.cols());
    let method = choose(m, n, request);
    if norm2 == 0.0 || m == 0 || n == 0 {
        return Ok(Factors::zero(method));
    }
    match method {
        Method::Gram => gram::factorize(delta, norm2, module, request),
        _ => krylov::factorize(delta, norm2, module, request, choose::Plan::of(m, n, request)),
    }
    .map_err(|e| e.tensor(module))
}

fn check(norm2: f64, module: &str, request: &Request) -> Result<()> {
    if request.rank == 0 {
        return Err(Error::decide("a LoRA of rank 0 holds nothing").hint("ask for a rank of at least 1"));
    }
    if !(request.tolerance > 0.0 && request.tolerance <= 1.0) {
        return Err(Error::decide(format!("the tolerance {} is outside (0, 1]", request.tolerance)));
    }
    if let Some(energy) = request.energy.filter(|e| !(*e > 0.0 && *e <= 1.0)) {
        return Err(Error::decide(format!("the energy {energy} is outside (0, 1]")));
    }
    if !(norm2.is_finite() && norm2 >= 0.0) {
        return Err(Error::input("the difference holds infinities or NaN").tensor(module));
    }
    Ok(())
}

impl Factors {
    fn zero(method: Method) -> Self {
        Factors {
            left: Vec::new(),
            right: Vec::new(),
            rank: 0,
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

/// What brings a matrix of squared norm `norm2` near norm 1, so that the squares of a tiny or huge one stay within f32. A power of two
/// costs no accuracy.
fn unit_scale(norm2: f64) -> f64 {
    (-0.5 * norm2.log2()).round().clamp(-120.0, 120.0).exp2()
}

/// The rank to keep of `squares`, the squared singular values found, descending: at most `most`, none that f32 cannot tell
/// from zero, and where an energy is asked for the least that captures it.
fn kept_rank(squares: &[f64], most: usize, energy: Option<f64>, norm2: f64) -> usize {
    /// Relative to the largest singular value: the rounding of f32 products.
    const NOISE: f64 = 5e-7;
    let floor = squares.first().map_or(0.0, |s| s * NOISE * NOISE);
    let real = squares.iter().take(most).take_while(|s| **s > floor).count();
    let Some(energy) = energy else { return real };
    let mut sum = 0.0;
    let reached = squares[..real].iter().position(|s| {
        sum += s;
        sum >= energy * norm2
    });
    reached.map_or(real, |at| at + 1)
}
