//! The base's modules by the names that a program which loads an adapter gives them, and what kind they are of.

pub(crate) mod base_modules;
pub(crate) mod kinds;
pub(crate) mod renames;
pub(crate) mod targets;
pub use self::base_modules::{BaseModule, BaseModules};
pub use self::kinds::ModuleKind;
pub use self::renames::{FusedExperts, ModuleTree, Origin};
