//! Numbers as formats store them: 8-bit floats, codes, and the rounding of f32 to the output's type.

pub(crate) mod code_type;
pub(crate) mod e4m3;
pub(crate) mod e5m2;
pub(crate) mod e8m0;
pub(crate) mod rounding;
pub use self::e4m3::E4M3;
pub use self::rounding::{non_finite, round_to_bf16, to_bytes};
