//! The only writer of an attempt's journal. A unit counts as finished when its record is on the disk.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Result;
use crate::durable::journal::Journal;
use crate::run::attempts::completed::Completed;
use crate::run::heartbeat::Heartbeat;
use crate::run::log::Log;
use crate::run::unit::{JournalEntry, Unit, UnitId};

/// Records the finished units of one attempt. `R` is the journal's record of a unit, `D` the loaded unit.
pub struct Recorder<'a, R, D> {
    pub(crate) results: PathBuf,
    pub(crate) journal: Journal<JournalEntry<R>>,
    pub(crate) done: Completed<D>,
    pub(crate) living: &'a Heartbeat<'a>,
    pub(crate) log: &'a Log,
    /// Fails where an input is no longer what it was.
    pub(crate) check_inputs: &'a dyn Fn() -> Result<()>,
}

impl<R: Serialize + DeserializeOwned, D> Recorder<'_, R, D> {
    /// The folder for the results of units.
    pub fn results(&self) -> &Path {
        &self.results
    }

    /// Whether a unit was done by an earlier attempt or has been recorded by this one.
    pub fn is_done(&self, id: &UnitId) -> bool {
        self.done.contains(id)
    }

    /// Records a unit whose result, if it has one, is safe on the disk as `result`.
    ///
    /// # Errors
    /// An input that was written to meanwhile: the result is of neither state, and is not recorded. A journal that
    /// cannot be written to.
    pub fn record(&mut self, unit: Unit<R>, result: PathBuf, done: D) -> Result<()> {
        (self.check_inputs)()?;
        let (id, written) = (unit.id.clone(), unit.written);
        self.journal.append(&JournalEntry::from(unit))?;
        self.living.finished(&id);
        self.done.insert(id, result, written, done);
        Ok(())
    }

    /// The attempt's log.
    pub fn log(&self) -> &Log {
        self.log
    }
}
