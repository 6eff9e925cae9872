//! What attempts leave in the output folder, and what a further one takes over from them.

pub(crate) mod attempt;
pub(crate) mod completed;
pub(crate) mod gather;
pub(crate) mod recorder;
pub(crate) mod status;
pub use self::completed::{Completed, Finished};
pub use self::recorder::Recorder;
pub use self::status::{AttemptState, AttemptStatus, RunState, Seen, Status, status};
