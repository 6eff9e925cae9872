//! The base's modules by the names that a program which loads an adapter gives them, and what kind they are of.
//!
//! # What falls short
//! Every architecture that the pinned transformers can build in a tiny form was extracted, loaded with PEFT and merged.
//! These are the models of which an adapter does not act as a whole there. `extract` and `probe --base` say so.
//!
//! - Nemotron-H, Ernie 4.5-VL-MoE: single experts have no effect. PEFT makes stacks of single keys only for experts
//!   with a gate, and only where all of a layer's experts are one stack.
//! - Llama 4, JetMoE, DBRX, Step-3.7, Inkling with its towers: experts are left out. Their stacks are transposed,
//!   interleaved, or gate and up lie apart; PEFT has no keys for them.
//! - Kimi-K2.5, Step-3.7: `q`, `k` and `v` of the vision tower are left out. The model has their rows in another order
//!   than the files.
//! - Mamba, Mamba 2, Falcon-Mamba, Falcon-H1, Nemotron-H: `out_proj` is left out. PEFT refuses an adapter with one.
//! - Zamba, Zamba 2: the block that layers share acts in the first of them alone, until the adapter is merged. PEFT
//!   wraps each layer's alias by itself.
//! - PP-FormulaNet: PEFT refuses the class.

pub(crate) mod base_modules;
pub(crate) mod peft_targets;
pub(crate) mod targets;
pub use self::base_modules::{BaseModule, BaseModules};
pub use self::peft_targets::PeftTargets;
