//! Products in bytes: a matrix as signed bytes with scales by rows and runs of columns, thin blocks as signed bytes
//! with scales by columns and runs of rows, sums in 32-bit integers.
//!
//! Sums of integers are exact, and what is done to them in f32 has a fixed order and is never fused, so every processor
//! gives the same bits.

pub(crate) mod block;
pub(crate) mod codes;
pub(crate) mod dot;
pub(crate) mod passes;
