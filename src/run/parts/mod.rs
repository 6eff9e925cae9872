//! Split runs: which part does which unit, and how the parts become one output.

pub mod assemble;
pub(crate) mod part_id;
pub(crate) mod partition;
pub(crate) mod rerun_command;
pub use self::assemble::{Assembled, Assembly, Begun, Missing, MissingPart, Recorded};
pub use self::part_id::{Part, PartChoice};
pub use self::partition::{Partition, Share};
