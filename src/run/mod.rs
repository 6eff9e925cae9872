//! The life of a run: its parts, its attempts, its heartbeat and its log.

pub(crate) mod attempt;
pub(crate) mod heartbeat;
pub(crate) mod log;
pub(crate) mod part_id;
pub(crate) mod partition;
pub use self::attempt::Work;
pub use self::heartbeat::Life;
pub use self::part_id::{Part, PartChoice};
pub use self::partition::Split;
