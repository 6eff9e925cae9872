//! LoRA adapters in PEFT's format, and what each program that loads them requires.
//!
//! An adapter for a weight `[out, in]` is `lora_A` `[r, in]` and `lora_B` `[out, r]`; the served weight is
//! `W + (lora_alpha / r) · lora_B · lora_A`. Trephine writes the portable subset that PEFT, vLLM, SGLang and llama.cpp
//! all load; [`rules`] states it as checks. [`PeftAdapter`](read::PeftAdapter) reads any LoRA adapter.

pub(crate) mod config;
pub(crate) mod factor_dtype;
pub(crate) mod loader;
pub(crate) mod names;
pub mod read;
pub mod rules;
pub mod tree;
pub mod write;
pub use self::config::{AdapterConfig, write_config};
pub use self::factor_dtype::FactorType;
pub use self::loader::Loader;
pub use self::names::{
    Keys, Place, expert_of, expert_of_stack, experts_of, fused_siblings, group_of, kind_of, place_of,
};

/// File name of the adapter's weights.
pub const WEIGHTS: &str = "adapter_model.safetensors";

/// File name of the adapter's config.
pub const CONFIG: &str = "adapter_config.json";
