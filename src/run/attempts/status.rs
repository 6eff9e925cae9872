//! How far a run is, split or not, from its files alone.
//!
//! What is done is what the journals say. Whether an attempt is at work can only be guessed from its last sign of life: its
//! [heartbeat](super::heartbeat), and how long ago it was written by the clocks of two machines and through the caches of a
//! network file system.

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

/// What a run is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// The output is whole.
    Assembled,
    /// Every unit of work is done; it is to be assembled.
    Complete,
    /// Someone seems to be at work.
    RunOptions,
    /// Work is left, and no one seems to be at it.
    Idle,
}

/// What an attempt seems to be at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptState {
    /// Its heartbeat is fresh.
    RunOptions,
    /// It finished its share.
    Done,
    /// It met an error.
    Failed,
    /// A signal ended it.
    Stopped,
    /// It has been silent for long: killed, or its machine is lost.
    Lost,
}

impl AttemptState {
    /// In a word, for tables.
    pub fn word(self) -> &'static str {
        match self {
            AttemptState::RunOptions => "running",
            AttemptState::Done => "done",
            AttemptState::Failed => "failed",
            AttemptState::Stopped => "stopped",
            AttemptState::Lost => "lost",
        }
    }

    fn of(beat: Option<&(Beat, Duration)>) -> AttemptState {
        match beat {
            Some((beat, ago)) => match beat.condition {
                Condition::RunOptions if *ago < SILENT => AttemptState::RunOptions,
                Condition::RunOptions => AttemptState::Lost,
                Condition::Done => AttemptState::Done,
                Condition::Failed => AttemptState::Failed,
                Condition::Stopped => AttemptState::Stopped,
            },
            None => AttemptState::Lost,
        }
    }
}

/// The last sign of life of a part.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Seen {
    /// The machine.
    pub host: String,
    /// What it seems to be at.
    pub state: AttemptState,
    /// How long ago it wrote, in seconds.
    pub heard: Option<f64>,
}

impl Seen {
    /// Of the last attempt at `part`.
    pub fn last<R>(attempts: &[Attempt<R>], part: Option<Part>) -> Option<Seen> {
        let of_it = attempts.iter().filter_map(|attempt| Some((attempt, attempt.info.as_ref()?)));
        let (attempt, how) =
            of_it.filter(|(_, info)| info.part == part).max_by_key(|(_, info)| info.started)?;
        let beat = last_beat(&attempt.folder);
        let state = AttemptState::of(beat.as_ref());
        Some(Seen { host: how.host.clone(), state, heard: beat.map(|(_, ago)| ago.as_secs_f64()) })
    }
}

/// One attempt.
#[derive(Clone, Debug, Serialize)]
pub struct AttemptStatus {
    /// Which part; absent for all that was missing.
    pub part: Option<Part>,
    /// The machine.
    pub host: Option<String>,
    /// The process there.
    pub process: Option<u32>,
    /// When it began, in seconds since 1970 by its machine's clock.
    pub started: Option<u64>,
    /// What it seems to be at.
    pub state: AttemptState,
    /// The error that it met.
    pub error: Option<String>,
    /// How long ago it gave a sign of life, in seconds.
    pub heard: Option<f64>,
    /// Units that it has finished, by its journal, comparisons aside.
    pub modules: usize,
    /// What it had to do when it began.
    pub ahead: Option<Work>,
    /// Bytes of tensors it had read at its last sign of life.
    pub read_bytes: u64,
    /// How long it had worked by then, in seconds.
    pub seconds: f64,
    /// How long it will take if it goes on so, in seconds: an estimate, by the cost of what is done.
    pub seconds_left: Option<f64>,
}

/// A run.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Its output folder.
    pub out: PathBuf,
    /// What it is at.
    pub state: RunState,
    /// The command, where it is known.
    pub command: Option<String>,
    /// What is counted as modules: `module` or `file`.
    pub unit: UnitKind,
    /// Units that are done, each once.
    pub modules: usize,
    /// Comparisons that are done.
    pub compared: usize,
    /// The whole run, where it is known.
    pub total: Option<Work>,
    /// Bytes of the shards of the finished modules.
    pub shard_bytes: u64,
    /// Bytes of tensors that all attempts have read, as they told; what was read for work that was lost counts too.
    pub read_bytes: u64,
    /// How many parts it was split into last.
    pub parts: Option<usize>,
    /// Those of them that have not begun any work.
    pub not_begun: Vec<usize>,
    /// The longest that any attempt at work will take, an estimate; work that no one is at is not in it.
    pub seconds_left: Option<f64>,
    /// Who works or has worked on it.
    pub attempts: Vec<AttemptStatus>,
}

/// Reads how far the run in `out` is.
///
/// # Errors
/// A folder that holds no run; what cannot be read.
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
    let running = || status.attempts.iter().filter(|attempt| attempt.state == AttemptState::RunOptions);
    let complete =
        status.total.is_some_and(|all| (all.modules, all.compared) == (status.modules, status.compared));
    status.state = match running().next() {
        _ if complete => RunState::Complete,
        Some(_) => RunState::RunOptions,
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

/// A folder that is whole, by the record in it.
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

    /// What the journals say is done, each unit once.
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
        (state == AttemptState::RunOptions && beat.cost > 0).then_some(left.max(0.0))
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
    fn silence_is_loss_only_for_who_was_at_work() {
        let beat = |condition| Beat { condition, error: None, seconds: 1.0, modules: 0, bytes: 0, cost: 0 };
        let state = |condition, ago| AttemptState::of(Some(&(beat(condition), Duration::from_secs(ago))));
        assert_eq!(state(Condition::RunOptions, 20), AttemptState::RunOptions);
        assert_eq!(state(Condition::RunOptions, 91), AttemptState::Lost);
        assert_eq!(state(Condition::Done, 1_000_000), AttemptState::Done);
        assert_eq!(state(Condition::Stopped, 91), AttemptState::Stopped);
        assert_eq!(AttemptState::of(None), AttemptState::Lost);
    }
}
