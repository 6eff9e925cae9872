//! Reading checkpoints and decoding quantized formats, against the reference libraries.

#[path = "../common/mod.rs"]
mod common;

mod checkpoint;
mod checkpoint_bad;
mod checkpoint_files;
mod encode;
mod fuzz_corpus;
mod quant;
mod quant_formats;
mod round_to_nearest;
mod seams;
