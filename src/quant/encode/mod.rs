//! Quantizing: block FP8 and INT4 by round-to-nearest.

pub(crate) mod fp8;
pub(crate) mod int4;
pub(crate) mod requantize;
pub use self::fp8::{FP8_BLOCK, encode_block_fp8, to_e4m3};
pub use self::int4::encode_int4;
pub use self::requantize::RoundToNearest;
