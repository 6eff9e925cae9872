//! The policy for errors in a checkpoint: opening stops at the first one; inspecting keeps them all and continues.

use crate::{Error, Result};

/// What to do with an error.
#[derive(Debug)]
pub(crate) enum Faults {
    /// Return it.
    Stop,
    /// Keep it and continue.
    Keep(Vec<Error>),
}

impl Faults {
    /// Returns or keeps an error.
    pub(crate) fn meet(&mut self, error: Error) -> Result<()> {
        match self {
            Faults::Stop => Err(error),
            Faults::Keep(kept) => {
                kept.push(error);
                Ok(())
            }
        }
    }

    /// The value of a result, or `None` where its error was kept.
    pub(crate) fn take<T>(&mut self, result: Result<T>) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) => self.meet(error).map(|()| None),
        }
    }
}
