//! Signs of life of an attempt, as a file beside its journal.

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

/// What an attempt is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// At work when it last wrote.
    RunOptions,
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
    pub(crate) ended: Condvar,
}

impl Life {
    pub(crate) fn new(attempt: &Path) -> Life {
        let beat = Beat {
            condition: Condition::RunOptions,
            error: None,
            seconds: 0.0,
            modules: 0,
            bytes: 0,
            cost: 0,
        };
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

    /// Writes `beat` down. Whether that succeeds changes nothing for the run.
    pub(crate) fn write(&self, beat: &mut Beat) {
        beat.seconds = self.started.elapsed().as_secs_f64();
        let new = self.path.with_file_name(HEARTBEAT_DRAFT);
        if let Ok(json) = serde_json::to_vec(beat) {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
            let written = inside::open(&new, flags).and_then(|mut file| file.write_all(&json));
            let _ = written.and_then(|()| fs::rename(&new, &self.path));
        }
    }

    /// The last word of this attempt; further ones are not heard.
    pub(crate) fn end(&self, condition: Condition, error: Option<String>) {
        let mut beat = self.beat();
        if beat.condition == Condition::RunOptions {
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
    let beat = serde_json::from_slice(&regular_file::read(&path).ok()?).ok()?;
    let written = fs::metadata(&path).and_then(|data| data.modified()).ok()?;
    Some((beat, written.elapsed().unwrap_or_default()))
}

/// After so long without a sign of life an attempt counts as lost. Several heartbeats, and what a network file system
/// may keep in its caches.
pub const SILENT: Duration = Duration::from_secs(90);
