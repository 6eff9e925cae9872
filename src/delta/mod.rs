//! The difference of two checkpoints: which modules are selected and paired, and the rows of `tuned - base` as a stream.

pub(crate) mod difference;
pub(crate) mod pair;
pub(crate) mod prefix_map;
pub(crate) mod select;
pub(crate) mod tensor_digests;
pub use self::pair::{Leftover, Pair};
pub use self::prefix_map::Renaming;
pub use self::select::Selection;
