//! LoRA adapters as PEFT lays them on disk, and what each program that loads them asks for.
//!
//! An adapter for a weight `[out, in]` is `lora_A` `[r, in]` and `lora_B` `[out, r]`; the served weight is
//! `W + (lora_alpha / r) · lora_B · lora_A`. What Trephine writes is the portable subset that PEFT, vLLM, SGLang and
//! llama.cpp all load; [`rules`] states it as checks. [`PeftAdapter`] reads whatever adapter there is.

mod assemble;
mod config;
mod factor_type;
mod names;
mod peft;
pub mod rules;
mod sanitize;
mod stacks;

pub use assemble::{Piece, ShardNames, assemble};
pub use config::{AdapterConfig, write_config};
pub use factor_type::FactorType;
pub use names::{
    Keys, Place, expert_of, expert_of_stack, experts_of, fused_siblings, group_of, kind_of, place_of,
};
pub use peft::{Extra, ExtraKind, Factors, Fault, PeftAdapter, PeftConfig, PeftModule, Problem, Targets};
pub use stacks::{ModuleFactors, read_factors};

pub use sanitize::{Completed, Pruned, RECORD, Refitted, Sanitized, Sanitizing, check, sanitize};

/// File name of the adapter's weights.
pub const WEIGHTS: &str = "adapter_model.safetensors";

/// File name of the adapter's config.
pub const CONFIG: &str = "adapter_config.json";
