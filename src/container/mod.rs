//! File containers: safetensors and GGUF headers, and the writer of safetensors files.

pub(crate) mod gguf;
pub mod safetensors;
