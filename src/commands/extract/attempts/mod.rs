//! What attempts leave in the output folder, and what a further one takes over from them.

pub(crate) mod attempt;
pub(crate) mod completed;
pub(crate) mod entry;
pub(crate) mod run_dir;
pub(crate) mod status;
