//! What a command says of its work, so that the engine can run it.

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

/// One run of one command: what is to be done, and how a unit of it is done, recognized and made part of the output.
///
/// A job is planned before the [engine](super::Engine) sees it. It never looks at journals, locks, parts or earlier runs.
pub trait Job: Sync {
    /// What the journal records of a finished unit, beside the digest of its result and of what was read for it.
    type Record: Serialize + DeserializeOwned + Clone + PartialEq + Debug;

    /// A finished unit, loaded.
    type Done;

    /// What the finished folder says of the run.
    type Output: RunOutput;

    /// Everything that determines the output.
    fn identity(&self) -> &RunIdentity;

    /// The files of the output folder.
    fn layout(&self) -> &Layout;

    /// The work, each unit once.
    fn units(&self) -> &[PlannedUnit];

    /// Where the inputs lie, as they were given.
    fn places(&self) -> Vec<(Side, String)>;

    /// The checkpoint that is this to the run; `None` for an input that its identity holds by all of its content.
    fn checkpoint(&self, side: Side) -> Option<&Checkpoint>;

    /// Looks whether all that is read is as it was when it was opened: before finished work is recorded, and before the output is
    /// written.
    ///
    /// # Errors
    /// An input that was written to since.
    fn check_inputs(&self) -> Result<()> {
        let inputs = self.identity().inputs.keys();
        inputs.filter_map(|side| self.checkpoint(*side)).try_for_each(Checkpoint::check_unchanged)
    }

    /// Bytes that the output folder takes at its fullest.
    fn disk_bytes(&self) -> u64;

    /// What to do where the disk has no room for that.
    fn room_hint(&self) -> &'static str {
        "make room, or give another --out"
    }

    /// A line of the log about how the work is run.
    fn described(&self) -> String;

    /// The name of a unit's result in its attempt's folder, where it has one.
    fn result_name(&self, unit: &UnitId) -> String {
        shard::file_name(&unit.name)
    }

    /// What a unit is called where people read it.
    fn unit_title(&self, unit: &UnitId) -> String {
        unit.name.clone()
    }

    /// Loads a finished unit, whose result (if it has one) is the file `result`. An error means that the unit is done
    /// again.
    ///
    /// # Errors
    /// A result that is missing, or is not what was written.
    fn load(&self, unit: Unit<Self::Record>, result: &Path) -> Result<Self::Done>;

    /// Does the units of `share` that `recorder` has not seen done, and hands each to it.
    ///
    /// # Errors
    /// The first that any stage met; finished units stay safe.
    fn work(
        &self,
        share: &Share,
        recorder: &mut Recorder<'_, Self::Record, Self::Done>,
        progress: &dyn Progress,
    ) -> Result<()>;

    /// Writes the output, every unit of which is done, the checksums last.
    ///
    /// # Errors
    /// A result that is not what the journal said, or a failing disk. The results stay, so the same command continues.
    fn finish(
        &self,
        identity: &RunIdentity,
        done: &Completed<Self::Done>,
        progress: &dyn Progress,
    ) -> Result<Self::Output>;
}

/// The record of a finished run: the JSON file in its folder that tells how the output was made.
pub trait RunOutput: DeserializeOwned {
    /// The identity of the run that made it.
    fn identity(&self) -> RunIdentity;

    /// The tensors that were read for it.
    fn tensors(&self) -> &[TensorRecord];
}
