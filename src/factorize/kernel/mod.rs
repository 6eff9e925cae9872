//! The building blocks of the backends: passes over the panels, thin products, orthonormalization, Rayleigh-Ritz,
//! random numbers.

pub(crate) mod arithmetic;
pub(crate) mod block_ops;
pub(crate) mod bytes;
pub(crate) mod convergence;
pub(crate) mod fixed;
pub(crate) mod gram_matrix;
pub(crate) mod orthonormalize;
pub(crate) mod passes;
pub(crate) mod ritz;
pub(crate) mod rng;
pub(crate) mod skinny_gemm;
pub(crate) mod tiling;
pub use self::block_ops::{cross_gram, eigen, square_sum};
pub use self::passes::{times, transpose_times};
pub use self::tiling::panel_rows;
