//! The progress of a run, split or not, from its files alone.
//!
//! The journals say what is done. Whether an attempt is running can only be guessed from its last
//! [heartbeat](super::heartbeat) and the age of that, which depends on the clocks of two machines and on the caches of
//! a network file system.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::durable::checksums::Checksums;
use crate::run::attempts::attempt;
use crate::run::attempts::attempt::{Attempt, result_bytes};
use crate::run::folder::{STATE_HAS_NOTHING, is_finished};
use crate::run::layout::{LONGEST_RECORD, RECORDS, STATE};
use crate::run::life::{Beat, Condition, SILENT, last_beat};
use crate::run::parts::part_id::Part;
use crate::run::unit::{AnyRecord, UnitId, UnitKind, Work};
use crate::storage::regular_file;
use crate::{Error, Result};

/// The state of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RunState {
    /// The output is complete.
    Assembled,
    /// Every unit of work is done; the output is not assembled yet.
    Complete,
    /// An attempt appears to be running.
    Running,
    /// Work is left, and no attempt appears to be running.
    Idle,
}

/// The apparent state of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum AttemptState {
    /// Its heartbeat is fresh.
    Running,
    /// It finished its share.
    Done,
    /// It failed with an error.
    Failed,
    /// A signal ended it.
    Stopped,
    /// Its heartbeat is old: it was killed, or its machine is lost.
    Lost,
}

impl AttemptState {
    /// The word for tables.
    pub fn word(self) -> &'static str {
        match self {
            AttemptState::Running => "running",
            AttemptState::Done => "done",
            AttemptState::Failed => "failed",
            AttemptState::Stopped => "stopped",
            AttemptState::Lost => "lost",
        }
    }

    fn of(beat: Option<&(Beat, Duration)>) -> AttemptState {
        match beat {
            Some((beat, ago)) => match beat.condition {
                Condition::Running if *ago < SILENT => AttemptState::Running,
                Condition::Running => AttemptState::Lost,
                Condition::Done => AttemptState::Done,
                Condition::Failed => AttemptState::Failed,
                Condition::Stopped => AttemptState::Stopped,
            },
            None => AttemptState::Lost,
        }
    }
}

/// The last heartbeat of a part.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Seen {
    /// The machine.
    pub host: String,
    /// Its apparent state.
    pub state: AttemptState,
    /// Age of the heartbeat in seconds.
    pub heard: Option<f64>,
}

impl Seen {
    /// The heartbeat of the last attempt at `part`.
    pub fn last<R>(attempts: &[Attempt<R>], part: Option<Part>) -> Option<Seen> {
        let of_it = attempts.iter().filter_map(|attempt| Some((attempt, attempt.info.as_ref()?)));
        let (attempt, info) =
            of_it.filter(|(_, info)| info.part == part).max_by_key(|(_, info)| info.started)?;
        let beat = last_beat(&attempt.folder);
        let state = AttemptState::of(beat.as_ref());
        Some(Seen { host: info.host.clone(), state, heard: beat.map(|(_, ago)| ago.as_secs_f64()) })
    }
}

/// The status of one attempt.
#[derive(Clone, Debug, Serialize)]
pub struct AttemptStatus {
    /// Which part; `None` for everything that was missing.
    pub part: Option<Part>,
    /// The machine.
    pub host: Option<String>,
    /// The process ID there.
    pub process: Option<u32>,
    /// When it began, in seconds since 1970 by its machine's clock.
    pub started: Option<u64>,
    /// Its apparent state.
    pub state: AttemptState,
    /// The error with which it failed.
    pub error: Option<String>,
    /// Age of its last heartbeat in seconds.
    pub heard: Option<f64>,
    /// Units that it has finished according to its journal, without comparisons.
    pub modules: usize,
    /// The work ahead of it when it began.
    pub ahead: Option<Work>,
    /// Bytes of tensors it had read at its last heartbeat.
    pub read_bytes: u64,
    /// Its running time at its last heartbeat, in seconds.
    pub seconds: f64,
    /// Estimated time left in seconds, extrapolated from the cost of the finished units.
    pub seconds_left: Option<f64>,
}

/// The status of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Its output folder.
    pub out: PathBuf,
    /// Its state.
    pub state: RunState,
    /// The command, where it is known.
    pub command: Option<String>,
    /// What is counted as modules: `module` or `file`.
    pub unit: UnitKind,
    /// Units that are done, each counted once.
    pub modules: usize,
    /// Comparisons that are done.
    pub compared: usize,
    /// The whole run, where it is known.
    pub total: Option<Work>,
    /// Bytes of the shards of the finished modules.
    pub shard_bytes: u64,
    /// Bytes of tensors that all attempts have read by their heartbeats, including those for work that was lost.
    pub read_bytes: u64,
    /// The number of parts of the latest split.
    pub parts: Option<usize>,
    /// Those of the parts that have not started.
    pub not_begun: Vec<usize>,
    /// Estimated time left of the slowest running attempt; work that no attempt is doing is not included.
    pub seconds_left: Option<f64>,
    /// All attempts, running or not.
    pub attempts: Vec<AttemptStatus>,
}

/// Reads the status of the run in `out`.
///
/// # Errors
/// A folder that holds no run; a file that cannot be read.
pub fn status(out: &Path) -> Result<Status> {
    if is_finished(out) {
        return assembled(out);
    }
    if !out.join(STATE).is_dir() {
        return Err(Error::decide(STATE_HAS_NOTHING).path(out).hint("is it the folder that --out named?"));
    }
    let attempts = attempt::all::<AnyRecord>(out)?;
    let mut status = Status { attempts: attempts.iter().map(one).collect(), ..Status::blank(out) };
    let infos = || attempts.iter().filter_map(|attempt| attempt.info.as_ref());
    let latest = infos().filter(|info| info.part.is_some()).max_by_key(|info| info.started);
    status.total = infos().max_by_key(|info| info.started).map(|info| info.run);
    status.parts = latest.and_then(|info| info.part).map(Part::of);
    let begun: BTreeSet<usize> = infos()
        .filter_map(|info| info.part)
        .filter(|part| Some(part.of()) == status.parts)
        .map(Part::index)
        .collect();
    status.not_begun = (1..=status.parts.unwrap_or(0)).filter(|part| !begun.contains(part)).collect();
    status.count(&attempts);
    let running = || status.attempts.iter().filter(|attempt| attempt.state == AttemptState::Running);
    let complete =
        status.total.is_some_and(|all| (all.modules, all.compared) == (status.modules, status.compared));
    status.state = match running().next() {
        _ if complete => RunState::Complete,
        Some(_) => RunState::Running,
        None => RunState::Idle,
    };
    let left: Option<Vec<f64>> = running().map(|attempt| attempt.seconds_left).collect();
    status.seconds_left = left.and_then(|left| left.into_iter().reduce(f64::max));
    Ok(status)
}

/// The lists of a record that are counted. Their entries are read past, and take no memory.
#[derive(Deserialize)]
struct Counts {
    #[serde(default)]
    modules: Option<Vec<IgnoredAny>>,
    #[serde(default)]
    not_represented: Option<Vec<IgnoredAny>>,
}

/// The status of a complete folder, from its record.
fn assembled(out: &Path) -> Result<Status> {
    let Some(name) = RECORDS.into_iter().find(|record| out.join(record).is_file()) else {
        return Err(Error::decide("the folder holds checksums, but no run's")
            .path(out)
            .hint("give the folder that --out named"));
    };
    let path = out.join(name);
    let failed = |e| Error::unexpected("cannot read the record of the run").path(&path).because(e);
    let record: Counts = serde_json::from_slice(
        &regular_file::read_within(&path, LONGEST_RECORD).map_err(failed)?,
    )
    .map_err(|e| Error::input("the record of the finished run cannot be read").path(&path).because(e))?;
    let (unit, modules) = match record.modules.map(|list| list.len()) {
        Some(modules) => (UnitKind::Module, modules),
        None => {
            let sums = Checksums::read(out)?;
            let is_weights = |name: &str| name.ends_with(".safetensors");
            (UnitKind::File, sums.entries().iter().filter(|entry| is_weights(&entry.name)).count())
        }
    };
    let compared = record.not_represented.map_or(0, |list| list.len());
    let total = Some(Work { modules, compared, ..Work::default() });
    Ok(Status { state: RunState::Assembled, unit, modules, compared, total, ..Status::blank(out) })
}

impl Status {
    fn blank(out: &Path) -> Status {
        Status {
            out: out.to_owned(),
            state: RunState::Idle,
            command: None,
            unit: UnitKind::Module,
            modules: 0,
            compared: 0,
            total: None,
            shard_bytes: 0,
            read_bytes: 0,
            parts: None,
            not_begun: Vec::new(),
            seconds_left: None,
            attempts: Vec::new(),
        }
    }

    /// Counts the units that the journals report as done, each once.
    fn count(&mut self, attempts: &[Attempt<AnyRecord>]) {
        let done: HashSet<&UnitId> =
            attempts.iter().flat_map(|attempt| &attempt.units).map(|unit| &unit.id).collect();
        self.compared = done.iter().filter(|id| id.kind == UnitKind::Compared).count();
        self.modules = done.len() - self.compared;
        self.command =
            attempts.iter().find_map(|attempt| attempt.identity.as_ref()).map(|i| i.command.clone());
        if done.iter().any(|id| id.kind == UnitKind::File) {
            self.unit = UnitKind::File;
        }
        self.shard_bytes = result_bytes(attempts);
        self.read_bytes = self.attempts.iter().map(|attempt| attempt.read_bytes).sum();
    }
}

fn one(attempt: &Attempt<AnyRecord>) -> AttemptStatus {
    let last = last_beat(&attempt.folder);
    let state = AttemptState::of(last.as_ref());
    let info = attempt.info.as_ref();
    let left = info.zip(last.as_ref()).and_then(|(info, (beat, ago))| {
        let share = beat.cost as f64 / info.ahead.cost.max(1) as f64;
        let left = beat.seconds * (1.0 / share - 1.0) - ago.as_secs_f64();
        (state == AttemptState::Running && beat.cost > 0).then_some(left.max(0.0))
    });
    let done: HashSet<&UnitId> = attempt.units.iter().map(|unit| &unit.id).collect();
    AttemptStatus {
        part: info.and_then(|info| info.part),
        host: info.map(|info| info.host.clone()),
        process: info.map(|info| info.process),
        started: info.map(|info| info.started),
        state,
        error: last.as_ref().and_then(|(beat, _)| beat.error.clone()),
        heard: last.as_ref().map(|(_, ago)| ago.as_secs_f64()),
        modules: done.iter().filter(|id| id.kind != UnitKind::Compared).count(),
        ahead: info.map(|info| info.ahead),
        read_bytes: last.as_ref().map_or(0, |(beat, _)| beat.bytes),
        seconds: last.as_ref().map_or(0.0, |(beat, _)| beat.seconds),
        seconds_left: left,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_running_attempt_counts_as_lost_when_silent() {
        let beat = |condition| Beat { condition, error: None, seconds: 1.0, modules: 0, bytes: 0, cost: 0 };
        let state = |condition, ago| AttemptState::of(Some(&(beat(condition), Duration::from_secs(ago))));
        assert_eq!(state(Condition::Running, 20), AttemptState::Running);
        assert_eq!(state(Condition::Running, 91), AttemptState::Lost);
        assert_eq!(state(Condition::Done, 1_000_000), AttemptState::Done);
        assert_eq!(state(Condition::Stopped, 91), AttemptState::Stopped);
        assert_eq!(AttemptState::of(None), AttemptState::Lost);
    }
}
