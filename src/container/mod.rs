//! File containers: the headers of safetensors and GGUF, and their writers.

pub(crate) mod gguf;
pub(crate) mod gguf_writer;
pub mod safetensors;
