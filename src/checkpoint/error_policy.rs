//! What is wrong with a checkpoint: opening stops at the first of it, inspecting keeps it all and goes on with what is left.

use crate::{Error, Result};

/// What to do with an error on the way.
#[derive(Debug)]
pub(crate) enum Faults {
    /// Hand it up.
    Stop,
    /// Keep it, and go on.
    Keep(Vec<Error>),
}

impl Faults {
    /// Meets an error.
    pub(crate) fn meet(&mut self, error: Error) -> Result<()> {
        match self {
            Faults::Stop => Err(error),
            Faults::Keep(kept) => {
                kept.push(error);
                Ok(())
            }
        }
    }

    /// The value of a result, or nothing where its error was kept.
    pub(crate) fn take<T>(&mut self, result: Result<T>) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) => self.meet(error).map(|()| None),
        }
    }
}
