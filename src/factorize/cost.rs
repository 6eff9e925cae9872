//! What a factorization costs, and which way to go: from shape, rank and tolerance only, so that neither memory nor
//! threads decide what comes out.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};

use super::dense::eigen_bytes;
use super::{Method, Request};

/// The sizes of a block Krylov run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Rank of the factors.
    pub(super) rank: usize,
    /// Columns that are multiplied at a time.
    pub(super) block: usize,
    /// The most columns the basis may grow to.
    pub(super) most: usize,
}

impl Plan {
    /// For a matrix `[m, n]`.
    pub(super) fn of(m: usize, n: usize, request: &Request) -> Plan {
        let side = m.min(n);
        let rank = request.rank.min(side);
        let block = (rank / 4).next_multiple_of(8).clamp(16, 128).min(side);
        // The basis grows like the number of steps that a flat spectrum takes, about the logarithm of the tolerance.
        let digits = (1.0 / request.tolerance).log10().max(1.0);
        let factor = if digits <= 3.0 { 3 } else { 4 };
        let most = (factor * rank).max(rank + 8 * block).next_multiple_of(block).min(n);
        Plan { rank, block, most }
    }

    /// Columns of the basis when a flat spectrum has converged, roughly.
    fn expected(&self) -> usize {
        (self.rank * 2 + self.block).min(self.most)
    }
}

/// The method for a matrix `[m, n]`: the request's, or the cheaper one by [`flops`].
pub fn choose(m: usize, n: usize, request: &Request) -> Method {
    match request.method {
        Method::Auto if gram_flops(m, n, request) <= krylov_flops(m, n, request) => Method::Gram,
        Method::Auto => Method::Krylov,
        method => method,
    }
}

/// Estimated cost of factorizing a matrix `[m, n]`, in f32 flops of a large product: what runs slower counts more.
pub fn flops(m: usize, n: usize, request: &Request) -> f64 {
    match choose(m, n, request) {
        Method::Gram => gram_flops(m, n, request),
        _ => krylov_flops(m, n, request),
    }
}

/// Cost of an eigensolver for a square of side `s`, in f32 flops of a product on all threads.
fn eigen_flops(s: f64) -> f64 {
    // Some 9 s^3 in f64, half of them matrix-vector products, on one thread.
    100.0 * s.powi(3)
}

fn gram_flops(m: usize, n: usize, request: &Request) -> f64 {
    let (long, short) = (m.max(n) as f64, m.min(n) as f64);
    // A triangle is half the product, and f64 half the speed.
    2.0 * long * short * short + eigen_flops(short) + 2.0 * long * short * request.rank.min(m.min(n)) as f64
}

fn krylov_flops(m: usize, n: usize, request: &Request) -> f64 {
    let plan = Plan::of(m, n, request);
    let (m, n, d) = (m as f64, n as f64, plan.expected() as f64);
    let passes = 4.0 * m * n * d * narrowness(plan.block);
    // Two projections of 4 n d b each, summed over the blocks, and W^T W in f64.
    let orthogonal = (4.0 * n + 2.0 * m) * d * d;
    passes + orthogonal + 4.0 * eigen_flops(d)
}

/// How much slower a product with few columns is than a square one.
fn narrowness(block: usize) -> f64 {
    1.0 + 25.0 / block as f64
}

/// An upper bound on the bytes a factorization needs beyond the delta and the buffers its panels are decoded into.
pub fn workspace(m: usize, n: usize, request: &Request) -> usize {
    match choose(m, n, request) {
        Method::Gram => gram_bytes(m, n, request),
        _ => krylov_bytes(m, n, request),
    }
}

fn krylov_bytes(m: usize, n: usize, request: &Request) -> usize {
    let Plan { rank, block, most } = Plan::of(m, n, request);
    let basis = 4 * (n * (most + block) + m * most);
    // The groups' sums and one panel's products; later the block, its copy and the corrected block.
    let sweep = 4 * (8 * n * block + n * block);
    let small = 8 * most * most * 4 + eigen_bytes(most) + 17 * 8 * most * block;
    let factors = 4 * (2 * m.max(n) * rank + m.min(n) * rank);
    basis + small + sweep.max(factors) + (1 << 20)
}

fn gram_bytes(m: usize, n: usize, request: &Request) -> usize {
    let (long, short) = (m.max(n), m.min(n));
    let rank = request.rank.min(short);
    let eigen = 8 * short * short + eigen_bytes(short);
    let batch = super::gram::batch_bytes(m, n);
    let groups = if m < n { 8 } else { 1 };
    let factors = 4 * rank * (groups * long + 2 * (m + n));
    (8 * short * short + batch).max(eigen).max(8 * short * short * 2 + factors) + (1 << 20)
}

/// One product `[rows, inner] x [inner, cols]` of the kind that a pass is made of, on one thread, for whoever wants to
/// time this machine. Gives a value of the result, so that it is not optimized away.
pub fn trial_product((rows, inner, cols): (usize, usize, usize)) -> f32 {
    let (left, right) = (Mat::<f32>::ones(rows, inner), Mat::<f32>::ones(inner, cols));
    let mut product = Mat::<f32>::zeros(rows, cols);
    matmul(product.as_mut(), Accum::Replace, left.as_ref(), right.as_ref(), 1.0, Par::Seq);
    product[(rows / 2, cols / 2)]
}
