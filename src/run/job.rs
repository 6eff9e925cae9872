//! The interface between a command and the engine that runs it.

use std::fmt::Debug;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::delta::record::{Side, TensorRecord};
use crate::lora::write::shard;
use crate::run::attempts::completed::Completed;
use crate::run::attempts::recorder::Recorder;
use crate::run::identity::RunIdentity;
use crate::run::layout::Layout;
use crate::run::parts::partition::Share;
use crate::run::progress::Progress;
use crate::run::unit::{PlannedUnit, Unit, UnitId};

/// One run of one command: its units of work, and how to do a unit, load it and write it to the output.
///
/// A job is planned before the [engine](super::Engine) gets it. It never reads journals, locks, parts or earlier runs.
pub trait Job: Sync {
    /// What the journal records of a finished unit, in addition to the digests of its result and of the tensors
    /// it read.
    type Record: Serialize + DeserializeOwned + Clone + PartialEq + Debug;

    /// A finished unit, loaded.
    type Done;

    /// The record of the run in the finished folder.
    type Output: RunOutput;

    /// Everything that determines the output.
    fn identity(&self) -> &RunIdentity;

    /// The files of the output folder.
    fn layout(&self) -> &Layout;

    /// The units of work, each once.
    fn units(&self) -> &[PlannedUnit];

    /// The locations of the inputs, as given on the command line.
    fn places(&self) -> Vec<(Side, String)>;

    /// The checkpoint with this role; `None` for an input whose identity covers all of its content.
    fn checkpoint(&self, side: Side) -> Option<&Checkpoint>;

    /// Looks whether all that is read is as it was when it was opened: before finished work is recorded, and before
    /// the output is written.
    ///
    /// # Errors
    /// An input that was written to since.
    fn check_inputs(&self) -> Result<()> {
        let inputs = self.identity().inputs.keys();
        inputs.filter_map(|side| self.checkpoint(*side)).try_for_each(Checkpoint::check_unchanged)
    }

    /// Peak size of the output folder in bytes.
    fn disk_bytes(&self) -> u64;

    /// What to do when the disk has no room for it.
    fn room_hint(&self) -> &'static str {
        "make room, or give another --out"
    }

    /// A line of the log about how the work is run.
    fn described(&self) -> String;

    /// The file name of a unit's result in its attempt's folder, where it has one.
    fn result_name(&self, unit: &UnitId) -> String {
        shard::file_name(&unit.name)
    }

    /// The name of a unit for people.
    fn unit_title(&self, unit: &UnitId) -> String {
        unit.name.to_string()
    }

    /// Loads a finished unit whose result, if it has one, is the file `result`. On an error the unit is done again.
    ///
    /// # Errors
    /// A result that is missing or differs from what was written.
    fn load(&self, unit: Unit<Self::Record>, result: &Path) -> Result<Self::Done>;

    /// Does the units of `share` that are not done according to `recorder`, and records each with it.
    ///
    /// # Errors
    /// The first error of any stage; finished units are kept.
    fn work(
        &self,
        share: &Share,
        recorder: &mut Recorder<'_, Self::Record, Self::Done>,
        progress: &dyn Progress,
    ) -> Result<()>;

    /// Writes the output once every unit is done, the checksums last.
    ///
    /// # Errors
    /// A result that differs from what the journal recorded, or a failing disk. The results stay, so the same
    /// command continues.
    fn finish(
        &self,
        identity: &RunIdentity,
        done: &Completed<Self::Done>,
        progress: &dyn Progress,
    ) -> Result<Self::Output>;
}

/// The record of a finished run: the JSON file in its folder that says how the output was made.
pub trait RunOutput: DeserializeOwned {
    /// The identity of the run that made it.
    fn identity(&self) -> RunIdentity;

    /// The tensors that were read for it.
    fn tensors(&self) -> &[TensorRecord];
}
