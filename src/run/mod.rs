//! The life of a run: its parts, its attempts, its heartbeat and its log.

pub(crate) mod heartbeat;
pub(crate) mod identity;
pub(crate) mod layout;
pub(crate) mod life;
pub(crate) mod log;
pub(crate) mod part_id;
pub(crate) mod progress;
pub use self::identity::simd_level;
pub use self::layout::{LOG, STATE};
pub use self::life::Life;
pub use self::part_id::{Part, PartChoice};
pub use self::progress::{Progress, Silent};
