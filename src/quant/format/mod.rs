//! One file per family of quantized formats. A new format is a file here and a line in `registry.rs`.

pub(crate) mod auto_round;
pub(crate) mod bitsandbytes;
pub(crate) mod block_fp8;
pub(crate) mod compressed;
pub(crate) mod dense;
pub(crate) mod fp8;
pub(crate) mod gguf;
pub(crate) mod gptq_awq;
pub(crate) mod llm_int8;
pub(crate) mod mlx;
pub(crate) mod modelopt;
pub(crate) mod mxfp4;
pub(crate) mod quanto;
pub(crate) mod targets;
pub use self::block_fp8::BlockFp8;
pub use self::dense::{Dense, to_f32};
pub use self::gguf::{GgmlType, Gguf, Layout};
