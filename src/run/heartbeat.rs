//! A sign of life in the folder of an attempt, so that others can tell from the files alone how far it is.
//!
//! The file is for people and for `status`: nothing that decides a byte ever looks at it, and it is not synced. A process
//! that is killed leaves its last word, which then grows old.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::commands::extract::output::manifest::{LeftOut, ModuleRecord};
use crate::commands::extract::plan::{Plan, PlannedLeftover, PlannedModule};
use crate::pipeline::progress::Progress;

/// The file.
pub const HEARTBEAT: &str = "heartbeat.json";

/// What it is called until it is whole.
pub const HEARTBEAT_DRAFT: &str = ".tmp-heartbeat";

/// How often it is written.
const EVERY: Duration = Duration::from_secs(10);

/// What an attempt is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// At work when it last wrote.
    Running,
    /// Its share is finished.
    Done,
    /// It met an error.
    Failed,
    /// A signal ended it.
    Stopped,
}

/// One sign of life.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Beat {
    /// What it is at.
    pub condition: Condition,
    /// The error that it met.
    pub error: Option<String>,
    /// Seconds since it began.
    pub seconds: f64,
    /// Modules it has finished.
    pub modules: usize,
    /// Bytes of tensors it has read.
    pub bytes: u64,
    /// What it has finished by the cost model, in millions of floating-point operations.
    pub cost: u64,
}

/// The signs of life of this process's attempt.
#[derive(Debug)]
pub struct Life {
    path: PathBuf,
    started: Instant,
    beat: Mutex<Beat>,
    ended: Condvar,
}

impl Life {
    fn new(attempt: &Path) -> Life {
        let beat =
            Beat { condition: Condition::Running, error: None, seconds: 0.0, modules: 0, bytes: 0, cost: 0 };
        Life {
            path: attempt.join(HEARTBEAT),
            started: Instant::now(),
            beat: Mutex::new(beat),
            ended: Condvar::new(),
        }
    }

    fn beat(&self) -> MutexGuard<'_, Beat> {
        self.beat.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes `beat` down. Whether that succeeds changes nothing for the run.
    fn write(&self, beat: &mut Beat) {
        beat.seconds = self.started.elapsed().as_secs_f64();
        let new = self.path.with_file_name(HEARTBEAT_DRAFT);
        if let Ok(json) = serde_json::to_vec(beat) {
            let _ = fs::write(&new, json).and_then(|()| fs::rename(&new, &self.path));
        }
    }

    /// The last word of this attempt; further ones are not heard.
    fn end(&self, condition: Condition, error: Option<String>) {
        let mut beat = self.beat();
        if beat.condition == Condition::Running {
            (beat.condition, beat.error) = (condition, error);
            self.write(&mut beat);
        }
        self.ended.notify_all();
    }

    /// A signal is about to end this process: says so, for whoever looks.
    pub fn stopped(&self) {
        self.end(Condition::Stopped, None);
    }
}

/// The file by the name of [`HEARTBEAT`] in an attempt's folder, and how long ago it was written by the clocks of the
/// file's machine and of this one.
pub fn last_beat(attempt: &Path) -> Option<(Beat, Duration)> {
    let path = attempt.join(HEARTBEAT);
    let beat = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
    let written = fs::metadata(&path).and_then(|data| data.modified()).ok()?;
    Some((beat, written.elapsed().unwrap_or_default()))
}

/// Passes a run's progress on, and writes signs of life.
pub struct Living<'a> {
    life: Arc<Life>,
    progress: &'a dyn Progress,
    costs: HashMap<String, u64>,
    writer: Option<JoinHandle<()>>,
}

impl<'a> Living<'a> {
    /// Begins to write into the folder of an attempt at `plan`.
    pub fn begin(attempt: &Path, plan: &Plan, progress: &'a dyn Progress) -> Living<'a> {
        let modules = plan.modules.iter().map(|m| (m.name.clone(), PlannedModule::cost(m)));
        let compared = plan.not_represented.iter().map(|l| (l.key(), PlannedLeftover::cost(l)));
        let life = Arc::new(Life::new(attempt));
        // A signal from here on has the last word.
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
        // A system that has no thread to spare gets no signs of life.
        let writer = thread::Builder::new().name("heartbeat".into()).spawn(beat).ok();
        Living { life, progress, costs: modules.chain(compared).collect(), writer }
    }

    /// Ends with what the run came to.
    pub fn end<T>(self, result: crate::Result<T>) -> crate::Result<T> {
        match &result {
            Ok(_) => self.life.end(Condition::Done, None),
            Err(error) => self.life.end(Condition::Failed, Some(error.to_string())),
        }
        result
    }

    fn finished(&self, key: &str, modules: usize) {
        let mut beat = self.life.beat();
        beat.modules += modules;
        beat.cost += self.costs.get(key).copied().unwrap_or(0);
    }
}

impl Drop for Living<'_> {
    fn drop(&mut self) {
        self.life.end(Condition::Failed, None);
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

impl Progress for Living<'_> {
    fn begin(&self, modules: usize, bytes: u64, done_modules: usize, done_bytes: u64) {
        self.progress.begin(modules, bytes, done_modules, done_bytes);
    }

    fn read(&self, bytes: u64) {
        self.life.beat().bytes += bytes;
        self.progress.read(bytes);
    }

    fn module(&self, record: &ModuleRecord, took: Duration) {
        self.finished(&record.name, 1);
        self.progress.module(record, took);
    }

    fn compared(&self, left_out: &LeftOut) {
        self.finished(&left_out.key(), 0);
        self.progress.compared(left_out);
    }

    fn journaled(&self) {
        self.progress.journaled();
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
    use super::*;

    #[test]
    fn the_last_word_stands() {
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
