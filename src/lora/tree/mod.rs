//! The base's modules by the names that a program which loads an adapter gives them, and what kind they are of.
//!
//! # What falls short
//! Every architecture that the pinned transformers can build in a tiny form was extracted, loaded with PEFT and merged.
//! These are the models of which an adapter does not act as a whole there. `extract` and `probe --base` say so.
//!
//! - Inkling with its towers: experts, and the dense layers before them, are left out. Its files have the rows of gate
//!   and up by turns, the model has them one after the other. Base and tuned have to be in one layout.
//! - Kimi-K2.5, Step-3.7: `q`, `k` and `v` of the vision tower are left out. The model has their rows in another order
//!   than the files.
//! - Mamba, Mamba 2, Falcon-Mamba, Falcon-H1, Nemotron-H: `out_proj` is left out. PEFT refuses an adapter with one.
//! - Zamba, Zamba 2: the block that layers share acts in the first of them alone, until the adapter is merged
//!   (`limits`).
//! - PP-FormulaNet: PEFT refuses the class.

pub(crate) mod base_modules;
pub(crate) mod limits;
pub(crate) mod peft_targets;
pub(crate) mod targets;
pub use self::base_modules::{BaseModule, BaseModules};
pub use self::peft_targets::PeftTargets;
