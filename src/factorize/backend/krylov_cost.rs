//! What block Krylov costs, in flops and in bytes of memory.

use crate::factorize::kernel::block_ops::{eigen_bytes, eigen_flops, eigenvalues_bytes};
use crate::factorize::kernel::bytes::passes::pass_bytes;
use crate::factorize::kernel::fixed::blocks::multiply_bytes;
use crate::factorize::kernel::fixed::symmetric;
use crate::factorize::kernel::orthonormalize::orthogonal_bytes;
use crate::factorize::kernel::ritz::Unrounding;
use crate::factorize::kernel::skinny_gemm::packed_bytes;
use crate::factorize::kernel::tiling::{groups, panel_rows};
use crate::factorize::types::{BasisPlan, Request};

/// With passes that take `share` of those in f32.
pub(super) fn flops(m: usize, n: usize, plan: BasisPlan, share: f64) -> f64 {
    let (m, n, d) = (m as f64, n as f64, plan.expected() as f64);
    let passes = share * 4.0 * m * n * d * narrowness(plan.block);
    // Projections of 4 n d b each, summed over the blocks, and W^T W in f64.
    let orthogonal = (8.0 * n + 4.0 * m) * d * d;
    // One with vectors, and their values alone at every step.
    passes + orthogonal + 4.0 * eigen_flops(d)
}

/// The same for a matrix in bytes, in flops of f32 as well.
pub(crate) fn code_flops(m: usize, n: usize, request: &Request) -> f64 {
    /// Between what AVX-512 VNNI and AVX2 take.
    const SHARE: f64 = 0.4;
    flops(m, n, BasisPlan::of(m, n, request), SHARE)
}

/// How much slower a product with few columns is than a square one.
fn narrowness(block: usize) -> f64 {
    1.0 + 25.0 / block as f64
}

/// An upper bound on the bytes of a run of these sizes, beyond the delta and the buffers its panels are decoded into.
pub(crate) fn bytes(m: usize, n: usize, plan: BasisPlan) -> usize {
    let BasisPlan { rank, block, most } = plan;
    // The groups' sums, the packed block and the result, the first two in whole strips; what groups pack of their
    // panels.
    let (strips, height) = (4 * block.next_multiple_of(32), panel_rows(m, n).1);
    let sweep =
        (groups(n) + 1) * n * strips + 4 * n * block + groups(n) * (height * strips + packed_bytes(height));
    let judge = 2 * eigenvalues_bytes(most);
    let factors = (4 * (m + n) * rank).max(eigen_bytes(most));
    iteration_bytes(m, n, plan, sweep, [orthogonal_bytes(n, most, block), judge, factors])
}

/// The same for a matrix in bytes, whose passes keep their memory to the end.
pub(crate) fn code_bytes(m: usize, n: usize, request: &Request) -> usize {
    let plan = BasisPlan::of(m, n, request);
    let BasisPlan { rank, block, most } = plan;
    let orthogonal = orthogonal_bytes(n, most, block) + multiply_bytes(n, most, block);
    let square = 8 * most * most;
    let judge = 2 * (square + 64 * most);
    let products = 4 * (m + n) * rank + multiply_bytes(m.max(n), most, rank);
    // The left projection and its factor wait meanwhile.
    let factors =
        2 * square + products.max(symmetric::eigen_bytes(most)).max(Unrounding::bytes(n, most)) + square;
    iteration_bytes(m, n, plan, pass_bytes(m, n, block, groups(n)), [orthogonal, judge, factors])
}

/// Of the basis and a pass, and the most of what makes it orthogonal, judges it and takes the factors from it.
fn iteration_bytes(
    m: usize,
    n: usize,
    plan: BasisPlan,
    pass: usize,
    [orthogonal, judge, factors]: [usize; 3],
) -> usize {
    let BasisPlan { rank, block, most } = plan;
    let basis = 4 * (n * (most + block) + m * most) + 8 * most * most;
    // R and M, and a square to solve for.
    let judge = 3 * 8 * most * most + judge;
    let factors = factors + (8 + 4) * 3 * most * rank;
    // Where the allocator keeps some of the sums it was given back, they count beside what follows.
    basis + pass + orthogonal.max(judge).max(factors) + (8 << 20)
}
