//! The base's modules by the names that a program which loads an adapter gives them, and what kind they are of.

pub(crate) mod base_modules;
pub(crate) mod peft_targets;
pub(crate) mod targets;
pub use self::base_modules::{BaseModule, BaseModules};
pub use self::peft_targets::PeftTargets;
