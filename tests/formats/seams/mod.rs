//! A trial of each seam: what a newcomer writes for one more quantized format, source of bytes or output format,
//! and the suite that any such implementation has to pass. The seam of factorizations is in
//! `tests/numerics/backends.rs`.

mod format;
mod source;
mod writer;

#[cfg(feature = "remote")]
#[allow(dead_code)]
#[path = "../../remote/server.rs"]
mod server;
