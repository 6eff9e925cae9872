//! What a weighted factorization costs, and how `D·R^T` is treated: from shapes, rank and tolerance only.

use crate::factorize::choose;
use crate::factorize::kernel::tiling::{groups, panel_rows};
use crate::factorize::types::{BasisPlan, Method, Request};
use crate::factorize::weighted::root::Root;

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

/// An upper bound on the bytes that [`directions`](super::directions()) and [`project`](super::project()) need beyond
/// the delta, the root itself included.
pub fn workspace(m: usize, n: usize, rows: usize, request: &Request) -> usize {
    let rank = request.rank.min(m).min(n);
    let (panel, blocks) = (4 * panel_rows(m, n).1 * n, 64 * 4 * 32 * n.min(1 << 16));
    let finding = if rows == 0 {
        // Each thread scales its panel.
        choose::workspace(m, n, request) + 4 * panel
    } else if forms_product(m, n, rows, request) {
        4 * (m * rows + rows * n) + choose::workspace(m, rows, request)
    } else {
        let krylov = Request { method: Method::Krylov, ..*request };
        choose::workspace(m, n, &krylov) + 4 * (m + n + rows) * PROBES + blocks / 16
    };
    let c = if rows == 0 { n } else { rows };
    // B as rows and as columns, the groups' sums, products, outputs, A and what rounding it took.
    let projecting = 4 * rank * (2 * m + (groups(n) + 3) * n + 2 * c) + 8 * 6 * rank * rank;
    Root::bytes(rows, n) + finding.max(projecting) + (4 << 20)
}
