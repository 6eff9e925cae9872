//! Each family of formats: what it reads from its config, and what it refuses by name.

mod bitsandbytes;
mod columns;
mod compressed;
mod experts;
mod fp8;
mod gguf;
