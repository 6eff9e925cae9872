//! What a factorization costs, and which way to go: from shape, rank and tolerance only, so that neither memory nor
//! threads decide what comes out.

use crate::factorize::types::{BasisPlan, iterates};
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};

use crate::factorize::backend::block_lanczos;
use crate::factorize::kernel::block_ops::{eigen_bytes, eigenvalues_bytes};
use crate::factorize::kernel::skinny_gemm::packed_bytes;
use crate::factorize::kernel::tiling::{groups, panel_rows};
use crate::factorize::types::{Method, Request};

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
    // Some 9 s^3 in f64, half of them matrix-vector products, on one thread: measured, 2 threads, sides of 500 to 2500.
    25.0 * s.powi(3)
}

fn gram_flops(m: usize, n: usize, request: &Request) -> f64 {
    let (long, short) = (m.max(n) as f64, m.min(n) as f64);
    if iterates(m, n, request.rank) {
        let (rank, d) = (request.rank as f64, (5.5 * request.rank as f64).max(200.0));
        // Narrow products with the square and projections; the eigenvectors, and values alone at a few steps before.
        let solver = (3.0 * short * short + 6.0 * short * d) * d + 2.0 * eigen_flops(d);
        return 1.2 * long * short * short + solver + 2.0 * long * short * rank;
    }
    // A triangle is half the product, and f64 less than half the speed.
    2.5 * long * short * short + eigen_flops(short) + 2.0 * long * short * request.rank.min(m.min(n)) as f64
}

fn krylov_flops(m: usize, n: usize, request: &Request) -> f64 {
    let plan = BasisPlan::of(m, n, request);
    let (m, n, d) = (m as f64, n as f64, plan.expected() as f64);
    let passes = 4.0 * m * n * d * narrowness(plan.block);
    // Projections of 4 n d b each, summed over the blocks, and W^T W in f64.
    let orthogonal = (8.0 * n + 4.0 * m) * d * d;
    // One with vectors, and their values alone at every step.
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
        _ => krylov_bytes(m, n, BasisPlan::of(m, n, request)),
    }
}

fn krylov_bytes(m: usize, n: usize, BasisPlan { rank, block, most }: BasisPlan) -> usize {
    let basis = 4 * (n * (most + block) + m * most) + 8 * most * most;
    // The groups' sums, the packed block and the result, the first two in whole strips; what groups pack of their panels.
    let (strips, height) = (4 * block.next_multiple_of(32), panel_rows(m, n).1);
    let sweep =
        (groups(n) + 1) * n * strips + 4 * n * block + groups(n) * (height * strips + packed_bytes(height));
    let orthogonal = orthogonal_bytes(n, most, block);
    // R, M and two eigensolvers.
    let judge = 3 * 8 * most * most + 2 * eigenvalues_bytes(most);
    let factors = (4 * (m + n) * rank).max(eigen_bytes(most)) + (8 + 4) * 3 * most * rank;
    // Where the allocator keeps some of the sums it was given back, they count beside what follows.
    basis + sweep + orthogonal.max(judge).max(factors) + (8 << 20)
}

/// To make a block `[n, block]` orthogonal to at most `most` columns: the block, its copy, its better and partial Gram matrices.
fn orthogonal_bytes(n: usize, most: usize, block: usize) -> usize {
    4 * 4 * n * block + 17 * 8 * most * block
}

fn gram_bytes(m: usize, n: usize, request: &Request) -> usize {
    if iterates(m, n, request.rank) {
        return iterated_bytes(m, n, request.rank).max(krylov_bytes(
            m,
            n,
            BasisPlan::thorough(m, n, request),
        ));
    }
    let (long, short) = (m.max(n), m.min(n));
    let rank = request.rank.min(short);
    let eigen = 8 * short * short + eigen_bytes(short);
    let batch = crate::factorize::backend::gram::batch_bytes(m, n);
    let sums = if m < n { groups(n) } else { 1 };
    let factors = 4 * rank * (sums * long + 2 * (m + n));
    (8 * short * short + batch).max(eigen).max(8 * short * short * 2 + factors) + (1 << 20)
}

/// The f32 square, block Krylov on it, and then the product of the delta with what was found.
fn iterated_bytes(m: usize, n: usize, rank: usize) -> usize {
    let (long, short) = (m.max(n), m.min(n));
    let (most, columns) = (block_lanczos::most(short, rank), block_lanczos::columns(rank));
    // Eigenvalues are judged while the basis grows.
    let growing = orthogonal_bytes(short, most, block_lanczos::BLOCK) + eigenvalues_bytes(most);
    let vectors = eigen_bytes(most) + 4 * most * columns + 4 * short * columns;
    // The projected square, and what is judged of it.
    let basis = 4 * short * (most + block_lanczos::BLOCK) + 2 * 8 * most * most;
    let solver = basis + growing.max(vectors);
    let sums = if m < n { groups(n) + 1 } else { 1 };
    let factors = 4 * columns * (sums * long + 3 * (m + n)) + 17 * 8 * columns * columns;
    (4 * short * short + crate::factorize::backend::gram::batch_bytes(m, n).max(solver)).max(factors)
        + (8 << 20)
}

/// Does one product `[rows, inner] x [inner, cols]` of the kind that a pass is made of `times` times on one thread, for
/// whoever wants to time this machine. Gives a value of the result, so that it is not optimized away.
pub fn trial_product((rows, inner, cols): (usize, usize, usize), times: usize) -> f32 {
    let (left, right) = (Mat::<f32>::ones(rows, inner), Mat::<f32>::ones(inner, cols));
    let mut product = Mat::<f32>::zeros(rows, cols);
    for _ in 0..times {
        matmul(product.as_mut(), Accum::Add, left.as_ref(), right.as_ref(), 1.0, Par::Seq);
    }
    product[(rows / 2, cols / 2)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(rank: usize) -> Request {
        Request { rank, energy: None, tolerance: 0.005, method: Method::Auto, seed: 0 }
    }

    #[test]
    fn large_modules_fit_a_small_budget() {
        for (m, n) in [(25600, 5120), (5120, 25600)] {
            let bytes = workspace(m, n, &request(256));
            assert!(bytes < 230 << 20, "{m} x {n}: {bytes}");
        }
    }

    #[test]
    fn the_gram_matrix_is_for_short_sides() {
        assert_eq!(choose(25600, 5120, &request(256)), Method::Krylov);
        assert_eq!(choose(5120, 1024, &request(256)), Method::Gram);
        assert_eq!(choose(1, 500, &request(8)), Method::Gram);
        let forced = Request { method: Method::Gram, ..request(256) };
        assert_eq!(choose(25600, 5120, &forced), Method::Gram);
    }

    #[test]
    fn plans_stay_within_the_matrix() {
        for (m, n, rank) in [(1, 500, 8), (3, 2, 8), (700, 400, 400), (25600, 5120, 256), (16, 100_000, 64)] {
            let plan = BasisPlan::of(m, n, &request(rank));
            assert!(plan.rank <= m.min(n) && plan.block >= 1 && plan.block <= m.min(n) && plan.most <= n);
        }
    }
}
