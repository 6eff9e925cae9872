//! The heartbeat in the folder of an attempt, from which others can tell its progress.
//!
//! The file is for people and for `status`: nothing that determines a byte of the output reads it, and it is not
//! synced. A killed process leaves its last heartbeat, which then ages.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::delta::module_record::ModuleRecord;
use crate::delta::record::LeftOut;
use crate::run::life::{Condition, Life};
use crate::run::progress::Progress;
use crate::run::unit::{PlannedUnit, UnitId, UnitKind};

/// The interval between two heartbeats.
const EVERY: Duration = Duration::from_secs(10);

/// Forwards a run's progress, and writes the heartbeat.
pub struct Heartbeat<'a> {
    life: Arc<Life>,
    progress: &'a dyn Progress,
    costs: HashMap<UnitId, u64>,
    writer: Option<JoinHandle<()>>,
}

impl<'a> Heartbeat<'a> {
    /// Starts the heartbeat in the folder `attempt`, which works on `units`.
    pub fn begin(attempt: &Path, units: &[PlannedUnit], progress: &'a dyn Progress) -> Heartbeat<'a> {
        let life = Arc::new(Life::new(attempt));
        // From here on a signal writes the last heartbeat.
        progress.alive(&life);
        life.write(&mut life.beat());
        let own = Arc::clone(&life);
        let beat = move || {
            let mut beat = own.beat();
            while beat.condition == Condition::Running {
                beat = own.ended.wait_timeout(beat, EVERY).unwrap_or_else(PoisonError::into_inner).0;
                if beat.condition == Condition::Running {
                    own.write(&mut beat);
                }
            }
        };
        // If the system cannot give a thread, there is no heartbeat.
        let writer = thread::Builder::new().name("heartbeat".into()).spawn(beat).ok();
        let costs = units.iter().map(|unit| (unit.id.clone(), unit.cost)).collect();
        Heartbeat { life, progress, costs, writer }
    }

    /// Ends the heartbeat with the run's result, and returns that.
    pub fn end<T>(self, result: crate::Result<T>) -> crate::Result<T> {
        match &result {
            Ok(_) => self.life.end(Condition::Done, None),
            Err(error) => self.life.end(Condition::Failed, Some(error.to_string())),
        }
        result
    }

    /// Counts a finished unit.
    pub fn finished(&self, id: &UnitId) {
        let mut beat = self.life.beat();
        beat.modules += usize::from(id.kind != UnitKind::Compared);
        beat.cost += self.costs.get(id).copied().unwrap_or(0);
    }
}

impl Drop for Heartbeat<'_> {
    fn drop(&mut self) {
        self.life.end(Condition::Failed, None);
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

impl Progress for Heartbeat<'_> {
    fn begin(&self, modules: usize, bytes: u64, done_modules: usize, done_bytes: u64) {
        self.progress.begin(modules, bytes, done_modules, done_bytes);
    }

    fn read(&self, bytes: u64) {
        self.life.beat().bytes += bytes;
        self.progress.read(bytes);
    }

    fn module(&self, record: &ModuleRecord, took: Duration) {
        self.progress.module(record, took);
    }

    fn compared(&self, left_out: &LeftOut) {
        self.progress.compared(left_out);
    }

    fn analyzed(&self, name: &str, took: Duration) {
        self.progress.analyzed(name, took);
    }

    fn journaled(&self) {
        self.progress.journaled();
    }

    fn begin_files(&self, files: usize, bytes: u64, done_files: usize, done_bytes: u64) {
        self.progress.begin_files(files, bytes, done_files, done_bytes);
    }

    fn written(&self, bytes: u64) {
        self.life.beat().bytes += bytes;
        self.progress.written(bytes);
    }

    fn file(&self, name: &str, took: Duration) {
        self.progress.file(name, took);
    }

    fn note(&self, text: &str) {
        self.progress.note(text);
    }

    fn assembling(&self) {
        self.progress.assembling();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::run::layout::HEARTBEAT;
    use crate::run::life::last_beat;

    #[test]
    fn the_final_heartbeat_is_not_overwritten() {
        let home = tempfile::tempdir().unwrap();
        let life = Life::new(home.path());
        assert!(last_beat(home.path()).is_none());
        life.write(&mut life.beat());
        assert_eq!(last_beat(home.path()).unwrap().0.condition, Condition::Running);
        life.beat().bytes = 7;
        life.stopped();
        life.end(Condition::Failed, Some("too late".into()));
        let (beat, ago) = last_beat(home.path()).unwrap();
        assert_eq!((beat.condition, beat.error, beat.bytes), (Condition::Stopped, None, 7));
        assert!(ago < Duration::from_secs(60));
        fs::write(home.path().join(HEARTBEAT), "{").unwrap();
        assert!(last_beat(home.path()).is_none());
    }
}
