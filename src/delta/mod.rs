//! The difference of two checkpoints: selection and pairing of modules, and the rows of `tuned - base` as a stream.

pub(crate) mod difference;
pub(crate) mod module_record;
pub(crate) mod operand;
pub(crate) mod options;
pub(crate) mod pair;
pub(crate) mod prefix_map;
pub(crate) mod recomputed;
pub(crate) mod record;
pub(crate) mod remarks;
pub(crate) mod rescaling;
pub(crate) mod select;
pub(crate) mod tensor_digests;
pub use self::module_record::{ModuleRecord, Quality, ServedError};
pub use self::options::{NonFinite, RoundBase};
pub use self::pair::{Leftover, Pair};
pub use self::prefix_map::Renaming;
pub use self::record::{LeftOut, Reason, Side, Source, TensorRecord};
pub use self::rescaling::Rescaling;
pub use self::select::Selection;
