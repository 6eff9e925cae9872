//! The state behind an attempt's heartbeat, and the file that it is written to, beside the journal.

use crate::durable::inside;
use crate::run::layout::{HEARTBEAT, HEARTBEAT_DRAFT};
use crate::storage::regular_file;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The condition of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Condition {
    /// Running at its last heartbeat.
    Running,
    /// Its share is finished.
    Done,
    /// It failed with an error.
    Failed,
    /// A signal ended it.
    Stopped,
}

/// One heartbeat.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Beat {
    /// The condition of the attempt.
    pub condition: Condition,
    /// The error with which it failed.
    pub error: Option<String>,
    /// Seconds since it began.
    pub seconds: f64,
    /// Modules it has finished.
    pub modules: usize,
    /// Bytes of tensors it has read.
    pub bytes: u64,
    /// The cost of the finished work by the cost model, in millions of floating-point operations.
    pub cost: u64,
}

/// The heartbeat of this process's attempt.
#[derive(Debug)]
pub struct Life {
    path: PathBuf,
    started: Instant,
    beat: Mutex<Beat>,
    pub(crate) ended: Condvar,
}

impl Life {
    pub(crate) fn new(attempt: &Path) -> Life {
        let beat =
            Beat { condition: Condition::Running, error: None, seconds: 0.0, modules: 0, bytes: 0, cost: 0 };
        Life {
            path: attempt.join(HEARTBEAT),
            started: Instant::now(),
            beat: Mutex::new(beat),
            ended: Condvar::new(),
        }
    }

    pub(crate) fn beat(&self) -> MutexGuard<'_, Beat> {
        self.beat.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes `beat` to the file. A failure to write does not affect the run.
    pub(crate) fn write(&self, beat: &mut Beat) {
        beat.seconds = self.started.elapsed().as_secs_f64();
        let new = self.path.with_file_name(HEARTBEAT_DRAFT);
        if let Ok(json) = serde_json::to_vec(beat) {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
            let written = inside::open(&new, flags).and_then(|mut file| file.write_all(&json));
            let _ = written.and_then(|()| fs::rename(&new, &self.path));
        }
    }

    /// Writes the final heartbeat of this attempt; later calls change nothing.
    pub(crate) fn end(&self, condition: Condition, error: Option<String>) {
        let mut beat = self.beat();
        if beat.condition == Condition::Running {
            (beat.condition, beat.error) = (condition, error);
            self.write(&mut beat);
        }
        self.ended.notify_all();
    }

    /// Records that a signal is about to end this process.
    pub fn stopped(&self) {
        self.end(Condition::Stopped, None);
    }
}

/// The last heartbeat in an attempt's folder, and its age by the clocks of the file's machine and of this one.
pub fn last_beat(attempt: &Path) -> Option<(Beat, Duration)> {
    let path = attempt.join(HEARTBEAT);
    let beat = serde_json::from_slice(&regular_file::read(&path).ok()?).ok()?;
    let written = fs::metadata(&path).and_then(|data| data.modified()).ok()?;
    Some((beat, written.elapsed().unwrap_or_default()))
}

/// An attempt without a heartbeat for this long counts as lost. It covers several heartbeats and the cache delay of a
/// network file system.
pub const SILENT: Duration = Duration::from_secs(90);
