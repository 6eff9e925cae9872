//! The methods of factorization. A further one is a file here and a line in `choose.rs`.

pub(crate) mod block_lanczos;
pub(crate) mod gram;
pub(crate) mod krylov;
pub(crate) mod krylov_cost;
pub(crate) mod operator;
