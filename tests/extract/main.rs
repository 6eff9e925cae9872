//! What `extract` writes, and what it refuses.

#[path = "../formats/checkpoint_files/mod.rs"]
mod checkpoint_files;
#[path = "../common/mod.rs"]
mod common;

mod adapter;
mod bad_input;
mod calibrated;
mod folded;
mod gguf;
mod layouts;
mod loaders;
mod module_trees;
mod moe;
mod moe_merge;
mod quantized;
mod ranks;
mod senseless;
mod summary;
