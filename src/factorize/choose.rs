//! Which backend factorizes a matrix: from shape, rank and tolerance only, so that neither memory nor threads
//! decide what comes out.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};

use crate::factorize::backend::gram::Gram;
use crate::factorize::backend::krylov::Krylov;
use crate::factorize::backend::krylov_cost;
use crate::factorize::types::{Backend, Method, Request};

/// The backends that [`Method::Auto`] chooses from, the more exact first: it wins where both cost the same.
pub const BACKENDS: [&dyn Backend; 2] = [&Gram, &Krylov];

/// The backend for a matrix `[m, n]`: the one of the request's method, or the cheapest by its own estimate.
pub(crate) fn backend(m: usize, n: usize, request: &Request) -> &'static dyn Backend {
    let cost = |backend: &&dyn Backend| backend.cost([m, n], request).flops;
    let named = BACKENDS.into_iter().find(|backend| backend.method() == request.method);
    let cheapest = || BACKENDS.into_iter().min_by(|a, b| cost(a).total_cmp(&cost(b)));
    named.or_else(cheapest).unwrap_or(&Krylov)
}

/// The method for a matrix `[m, n]`: the request's, or the cheapest by [`flops`].
pub fn choose(m: usize, n: usize, request: &Request) -> Method {
    backend(m, n, request).method()
}

/// Estimated cost of factorizing a matrix `[m, n]`, in f32 flops of a large product: what runs slower counts more.
pub fn flops(m: usize, n: usize, request: &Request) -> f64 {
    backend(m, n, request).cost([m, n], request).flops
}

/// Estimated cost of factorizing a matrix `[m, n]` in bytes by block Krylov, in the same unit, where that is what the
/// request's method allows and no more than [`flops`].
pub fn code_flops(m: usize, n: usize, request: &Request) -> Option<f64> {
    let in_bytes = krylov_cost::code_flops(m, n, request);
    let allowed = matches!(request.method, Method::Auto | Method::Krylov);
    (allowed && in_bytes <= flops(m, n, request)).then_some(in_bytes)
}

/// An upper bound on the bytes a factorization on so many threads needs beyond the delta and the buffers its panels
/// are decoded into.
pub fn workspace(m: usize, n: usize, threads: usize, request: &Request) -> usize {
    let cost = backend(m, n, request).cost([m, n], request);
    cost.workspace + threads * cost.thread
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
    use crate::factorize::types::BasisPlan;

    fn request(rank: usize) -> Request {
        Request { rank, energy: None, tolerance: 0.005, method: Method::Auto, seed: 0 }
    }

    #[test]
    fn large_modules_fit_a_small_budget() {
        for (m, n) in [(25600, 5120), (5120, 25600)] {
            let bytes = workspace(m, n, 2, &request(256));
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
