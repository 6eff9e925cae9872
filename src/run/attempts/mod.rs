//! Attempts at a run: what each leaves in the output folder, and what a later one takes over.

pub(crate) mod attempt;
pub(crate) mod completed;
pub(crate) mod gather;
pub(crate) mod recorder;
pub(crate) mod status;
pub use self::completed::{Completed, Finished};
pub use self::recorder::Recorder;
pub use self::status::{AttemptState, AttemptStatus, RunState, Seen, Status, status};
