//! Linear algebra with the same bits on every processor: sums have an order of their own, whatever the width of
//! vectors, and only what every vector unit fuses is fused.

pub(crate) mod blocks;
pub(crate) mod gemm;
pub(crate) mod square;
pub(crate) mod symmetric;
pub(crate) mod tridiagonal;
