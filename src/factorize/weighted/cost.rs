//! What a weighted factorization costs, and how `D·R^T` is treated: from shapes, rank and tolerance only.

use crate::factorize::choose;
use crate::factorize::kernel::tiling::{groups, panel_rows};
use crate::factorize::types::{BasisPlan, Method, Request};
use crate::factorize::weighted::root::{Root, widened_bytes};

/// Random columns by which norms are estimated.
pub(crate) const PROBES: usize = 64;

/// The most bytes that `D·R^T` and `R` in f32 may take where the product is formed.
const FORMED: usize = 192 << 20;

/// Whether `D·R^T` `[m, c]` is formed, rather than multiplied factor by factor, for `D` `[m, n]` and a sketch `R` `[c,
/// n]`.
pub(crate) fn forms_product(m: usize, n: usize, c: usize, request: &Request) -> bool {
    if m * c == 0 {
        return true;
    }
    let fits = 4 * (m * c + c * n) <= FORMED;
    fits && 2.0 * (m * n * c) as f64 + choose::flops(m, c, request) <= factored_flops(m, n, c, request)
}

/// The plan of block Krylov on `D·R^T` where its products are those of its factors.
pub(crate) fn basis_plan(m: usize, n: usize, c: usize, request: &Request) -> BasisPlan {
    let side = m.min(n).min(c);
    let BasisPlan { block, most, .. } = BasisPlan::of(m, n, request);
    BasisPlan { rank: request.rank.min(side), block: block.min(side), most: most.min(c) }
}

fn factored_flops(m: usize, n: usize, c: usize, request: &Request) -> f64 {
    let krylov = Request { method: Method::Krylov, ..*request };
    // Passes over the delta dominate; the root's products are of the same kind.
    choose::flops(m, n, &krylov) * (1.0 + c as f64 / m.max(1) as f64) + 2.0 * ((m + c) * n * PROBES) as f64
}

/// The method for `D` `[m, n]` and a sketch of so many rows, or the diagonal alone (0): never [`Method::Auto`].
pub fn method(m: usize, n: usize, rows: usize, request: &Request) -> Method {
    match rows {
        0 => choose::choose(m, n, request),
        _ if forms_product(m, n, rows, request) => choose::choose(m, rows, request),
        _ => Method::Krylov,
    }
}

/// Estimated cost in f32 flops of a large product, for `D` `[m, n]` and a sketch of so many rows, or the diagonal
/// alone (0).
pub fn flops(m: usize, n: usize, rows: usize, request: &Request) -> f64 {
    let rank = request.rank.min(m).min(n);
    let projection = 2.0 * ((m + 2 * rows) * n * rank) as f64;
    projection
        + if rows == 0 {
            choose::flops(m, n, request)
        } else if forms_product(m, n, rows, request) {
            2.0 * (m * n * rows) as f64 + choose::flops(m, rows, request)
        } else {
            factored_flops(m, n, rows, request)
        }
}

/// An upper bound on the bytes that [`directions`](super::directions()) and [`project`](super::project()) need on so
/// many threads, beyond the delta: the root itself, and the factors as they are computed and stored.
pub fn workspace([m, n]: [usize; 2], rows: usize, threads: usize, request: &Request) -> usize {
    let rank = request.rank.min(m).min(n);
    // Rows of a sketch in f32, or a panel with its columns scaled, for each thread.
    let widened = threads * if rows == 0 { 4 * panel_rows(m, n).1 * n } else { widened_bytes(n) };
    let finding = if rows == 0 {
        choose::workspace(m, n, threads, request)
    } else if forms_product(m, n, rows, request) {
        4 * (m * rows + rows * n) + choose::workspace(m, rows, threads, request)
    } else {
        let krylov = Request { method: Method::Krylov, ..*request };
        let BasisPlan { block, most, .. } = BasisPlan::of(m, n, request);
        // The basis is in the space of the sketch's rows; blocks pass through that of the inputs.
        let basis =
            choose::workspace(m, n, threads, &krylov) + 4 * rows * (most + block) - 4 * n * (most + block);
        basis + 8 * n * block + 4 * (2 * m + 2 * n + rows) * PROBES
    };
    let c = if rows == 0 { n } else { rows };
    // B as rows and as columns, the groups' sums, products, outputs, A and what rounding it took.
    let projecting = rank * (16 * m + (4 * groups(n) + 28) * n + 8 * c) + 8 * 6 * rank * rank;
    Root::bytes(rows, n) + widened + finding.max(projecting) + (4 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(rank: usize) -> Request {
        Request { rank, energy: None, tolerance: 0.005, method: Method::Auto, seed: 0 }
    }

    #[test]
    fn the_layers_of_a_32b_fit_a_gibibyte_and_cost_little_more_than_plain_ones() {
        let (mut plain, mut weighted) = (0.0, 0.0);
        let layer = [
            (8192, 5120),
            (1024, 5120),
            (1024, 5120),
            (5120, 8192),
            (25600, 5120),
            (25600, 5120),
            (5120, 25600),
        ];
        for (m, n) in layer {
            let bytes = 4 * m * n + workspace([m, n], 2048, 2, &request(128));
            assert!(bytes < 940 << 20, "{m} x {n}: {bytes}");
            plain += choose::flops(m, n, &request(128));
            weighted += flops(m, n, 2048, &request(128));
        }
        assert!(weighted < 1.8 * plain, "{weighted} {plain}");
    }

    #[test]
    fn small_products_are_formed_and_large_ones_are_not() {
        assert!(!forms_product(25600, 5120, 2048, &request(128)));
        assert!(forms_product(576, 576, 300, &request(128)));
        for (m, n, c) in [(25600, 5120, 2048), (64, 100, 3), (1, 1, 1), (300, 200, 62)] {
            let plan = basis_plan(m, n, c, &request(16));
            assert!(plan.rank <= m.min(n).min(c) && plan.block >= 1 && plan.most <= c, "{plan:?}");
        }
    }
}
