//! Whole checkpoints written, streaming: a quantized one as a dense one (the *bridge*), or one with an adapter merged.
//!
//! ```text
//! threads:  map ─ dequantize ─ (+ scale · B·A) ─ round ──▶ in the order of the file ──▶ one writer ─ blake3 ─ sync ─ rename
//! ```
//! A folder is written file by file, each once and from front to back, and each is safe on disk before the journal says so: a
//! run that is killed goes on with the next file and ends with the same bytes. Configs, the tokenizer and other files come
//! after the weights, the index after those, and the checksums last: only they make the folder whole.
//!
//! What is stored dense is copied bit for bit, in whatever type it has; the option `dtype` is that of the weights that are
//! computed. That is what the converters that work on files do, compressed-tensors' among them. (transformers casts all of a
//! model to one type when it loads it.)

mod dequantize;
mod files;
mod layout;
mod merge;
mod produce;
mod product;
mod record;
mod run;
mod state;
mod target;

pub use dequantize::{Dequantization, dequantize};
pub use layout::DEFAULT_SHARD_SIZE;
pub use merge::{Merge, merge};
pub use record::{CONVERSION, Conversion, Outcome};
