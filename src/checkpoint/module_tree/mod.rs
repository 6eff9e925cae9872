//! The modules that transformers makes of a checkpoint: what it calls them, and what kind they are of. Both are tables
//! of facts that `scripts/export_renames.py` exports from a pinned version.

pub(crate) mod kinds;
pub(crate) mod renames;
pub(crate) mod table;
pub use self::kinds::ModuleKind;
pub use self::renames::{ModuleTree, Origin};
pub use self::table::{ExpertConversion, FusedExperts};
