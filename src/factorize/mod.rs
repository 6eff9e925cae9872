//! Low-rank factorization of a matrix that is read in panels of rows. Pure: no file, no log.
//!
//! [`factorize`] takes a matrix `delta` `[m, n]` and returns `B` `[m, k]` and `A` `[k, n]` such that `B·A` is close to
//! the best approximation of rank `k`. There are two methods:
//!
//! - [`Method::Krylov`]: randomized block Krylov, stopped by its own estimate of what is still missing. It reads the
//!   delta once per step and is the method for large matrices.
//! - [`Method::Gram`]: the Gram matrix of the shorter side, and the top of its spectrum. Cheaper where the shorter side
//!   is only a few times the rank: computed there in f64 with a dense eigensolver, optimal to f32. Where that side is
//!   large, computed in f32 with block Krylov on the square, until the estimated error is within 1e-5 of the optimal
//!   one.
//!
//! Block Krylov multiplies in f32 or in bytes ([`factorize_codes`]): `quantized` is the delta in bytes, `precision`
//! says when they are exact enough, `kernel::bytes` has the products. There all linear algebra is that of
//! `kernel::fixed`, whose sums have an order of their own, so the factors are the same on every processor.
//!
//! Each way is a [`Backend`] in `backend`: it says what it costs, and does it; `choose` takes the cheapest. In
//! `kernel`, `tiling` cuts a matrix into groups and panels; `passes` and `gram_matrix` are the only files that visit
//! the delta for products; `block_ops`, `orthonormalize` and `ritz` are the numerics on tall thin blocks and small
//! squares; `convergence` judges the basis. `residual` judges what was stored, `truncate` lowers the rank of finished
//! factors.
//!
//! Nothing here depends on the number of threads or on memory: how a matrix is cut follows from its shape, partial sums
//! are added in a fixed order, and products inside a task run on one thread.

pub mod backend;
pub(crate) mod choose;
pub(crate) mod in_memory;
pub mod kernel;
pub(crate) mod precision;
pub(crate) mod quantized;
pub(crate) mod remainder;
pub(crate) mod residual;
pub(crate) mod truncate;
pub(crate) mod types;
pub mod weighted;
pub(crate) mod white_noise;
pub use self::choose::{BACKENDS, choose, code_flops, flops, trial_product, workspace};
pub use self::in_memory::Held;
pub use self::kernel::bytes::codes::{quantize_rows, record_words, words as code_words};
pub use self::kernel::bytes::passes::Codes;
pub use self::precision::{Missed, Precision, Split};
pub use self::quantized::{HeldCodes, Requantized};
pub use self::remainder::{Remainder, subtract};
pub use self::residual::{Residual, residual, stored_error};
pub use self::truncate::{Recompressed, product_norm2, recompress};
pub use self::types::{Backend, Cost, Factors, Method, Panels, Request};
pub use self::white_noise::leading_noise_energy;
pub use crate::simd::{SimdLevel, limit_simd, simd_limit};

use crate::{Error, Result};

/// The parts of the methods that `benches/factorize.rs` times one by one. Not part of the library's promise.
#[doc(hidden)]
pub mod parts {
    pub use crate::factorize::kernel::block_ops::{cross_gram, eigen};
    pub use crate::factorize::kernel::gram_matrix::gram_matrix;
    pub use crate::factorize::kernel::orthonormalize::orthonormalize;
    pub use crate::factorize::kernel::passes::{Scratch, sweep};
    pub use crate::factorize::kernel::rng::Stream;
}

/// Factorizes `delta` `[m, n]`. `norm2` is its squared Frobenius norm, known from streaming it; `module` names the
/// random stream. Runs in the current rayon pool, with exactly the same result whatever its size.
///
/// # Errors
/// A rank of 0 or a tolerance or energy outside (0, 1] ([`Kind::Decide`](crate::Kind::Decide)), a norm that is not
/// finite ([`Kind::Input`](crate::Kind::Input)), and any error from visiting the delta.
pub fn factorize(delta: &dyn Panels, norm2: f64, module: &str, request: &Request) -> Result<Factors> {
    check(norm2, module, request)?;
    let (m, n) = (delta.rows(), delta.cols());
    let backend = choose::backend(m, n, request);
    if norm2 == 0.0 || m == 0 || n == 0 {
        return Ok(Factors::zero(backend.method()));
    }
    backend.factorize(delta, norm2, module, request).map_err(|e| e.tensor(module))
}

/// Factorizes the matrix of `codes` by block Krylov, as [`factorize`] does one in f32; `norm2` is the squared norm of
/// the matrix that they are the codes of. The bits are the same on every processor that can fuse a multiplication and
/// an addition. `None` where bytes are too coarse for the request; with `must` they have to do.
///
/// # Errors
/// Those of [`factorize`].
pub fn factorize_codes(
    codes: &dyn Codes,
    norm2: f64,
    module: &str,
    request: &Request,
    must: bool,
) -> Result<Option<Factors>> {
    check(norm2, module, request)?;
    if norm2 == 0.0 || codes.rows() == 0 || codes.cols() == 0 {
        return Ok(Some(Factors { precision: Precision::Int8, ..Factors::zero(Method::Krylov) }));
    }
    backend::krylov::factorize_codes(codes, norm2, module, request, must).map_err(|e| e.tensor(module))
}

/// An upper bound on the bytes of [`factorize_codes`] beyond the codes and the buffers they are made in.
pub fn code_workspace(m: usize, n: usize, request: &Request) -> usize {
    backend::krylov_cost::code_bytes(m, n, request)
}

pub(crate) fn check(norm2: f64, module: &str, request: &Request) -> Result<()> {
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
