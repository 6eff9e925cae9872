//! How far a run is, split or not, from its files alone.
//!
//! What is done is what the journals say. Whether an attempt is at work can only be guessed from its last sign of life: its
//! [heartbeat](super::life), and how long ago it was written by the clocks of two machines and through the caches of a
//! network file system.

use crate::run::life::SILENT;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::commands::extract::attempts::attempt;
use crate::commands::extract::attempts::attempt::{Attempt, Work};
use crate::commands::extract::attempts::entry::Entry;
use crate::commands::extract::output::existing::manifest;
use crate::commands::extract::output::files::FILES;
use crate::run::layout::STATE;
use crate::run::layout::STATE_HAS_NOTHING;
use crate::run::life::{Beat, Condition, last_beat};
use crate::run::part_id::Part;
use crate::{Error, Result};

/// What a run is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// The adapter is whole.
    Assembled,
    /// Every unit of work is done; it is to be assembled.
    Complete,
    /// Someone seems to be at work.
    Running,
    /// Work is left, and no one seems to be at it.
    Idle,
}

/// What an attempt seems to be at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptState {
    /// Its heartbeat is fresh.
    Running,
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
    pub fn last(attempts: &[Attempt], part: Option<Part>) -> Option<Seen> {
        let of_it = attempts.iter().filter_map(|attempt| Some((attempt, attempt.how.as_ref()?)));
        let (attempt, how) = of_it.filter(|(_, how)| how.part == part).max_by_key(|(_, how)| how.started)?;
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
    /// Modules that it has finished, by its journal.
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
    /// Modules that are done, each once.
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
    if out.join(FILES[5]).exists() {
        let manifest = manifest(out)?;
        let (modules, compared) = (manifest.modules.len(), manifest.not_represented.len());
        let total = Work { modules, compared, ..Work::default() };
        return Ok(Status {
            state: RunState::Assembled,
            modules,
            compared,
            total: Some(total),
            ..Status::blank(out)
        });
    }
    if !out.join(STATE).is_dir() {
        return Err(Error::decide(STATE_HAS_NOTHING).path(out).hint("is it the folder that --out named?"));
    }
    let attempts = attempt::all(out)?;
    let mut status = Status { attempts: attempts.iter().map(one).collect(), ..Status::blank(out) };
    let hows = || attempts.iter().filter_map(|attempt| attempt.how.as_ref());
    let latest = hows().filter(|how| how.part.is_some()).max_by_key(|how| how.started);
    status.total = hows().max_by_key(|how| how.started).map(|how| how.run);
    status.parts = latest.and_then(|how| how.part).map(Part::of);
    let begun: BTreeSet<usize> = hows()
        .filter_map(|how| how.part)
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

impl Status {
    fn blank(out: &Path) -> Status {
        Status {
            out: out.to_owned(),
            state: RunState::Idle,
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
    fn count(&mut self, attempts: &[Attempt]) {
        let compared: HashSet<String> = entries(attempts)
            .filter_map(|entry| match entry {
                Entry::Compared { left_out, .. } => Some(left_out.key()),
                _ => None,
            })
            .collect();
        let modules = modules(attempts);
        (self.modules, self.compared) = (modules.len(), compared.len());
        self.shard_bytes = modules.values().sum();
        self.read_bytes = self.attempts.iter().map(|attempt| attempt.read_bytes).sum();
    }
}

fn entries(attempts: &[Attempt]) -> impl Iterator<Item = &Entry> {
    attempts.iter().flat_map(|attempt| &attempt.done)
}

/// The finished modules by the journals' word, each once, and the length of its shard.
fn modules(attempts: &[Attempt]) -> HashMap<&str, u64> {
    let module = |entry| match entry {
        &Entry::Module { ref name, bytes, .. } => Some((name.as_str(), bytes)),
        _ => None,
    };
    entries(attempts).filter_map(module).collect()
}

/// Bytes of the shards of all finished modules, by the journals' word.
pub fn shard_bytes(attempts: &[Attempt]) -> u64 {
    modules(attempts).values().sum()
}

fn one(attempt: &Attempt) -> AttemptStatus {
    let last = last_beat(&attempt.folder);
    let state = AttemptState::of(last.as_ref());
    let how = attempt.how.as_ref();
    let left = how.zip(last.as_ref()).and_then(|(how, (beat, ago))| {
        let share = beat.cost as f64 / how.ahead.cost.max(1) as f64;
        let left = beat.seconds * (1.0 / share - 1.0) - ago.as_secs_f64();
        (state == AttemptState::Running && beat.cost > 0).then_some(left.max(0.0))
    });
    AttemptStatus {
        part: how.and_then(|how| how.part),
        host: how.map(|how| how.host.clone()),
        process: how.map(|how| how.process),
        started: how.map(|how| how.started),
        state,
        error: last.as_ref().and_then(|(beat, _)| beat.error.clone()),
        heard: last.as_ref().map(|(_, ago)| ago.as_secs_f64()),
        modules: modules(std::slice::from_ref(attempt)).len(),
        ahead: how.map(|how| how.ahead),
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
        assert_eq!(state(Condition::Running, 20), AttemptState::Running);
        assert_eq!(state(Condition::Running, 91), AttemptState::Lost);
        assert_eq!(state(Condition::Done, 1_000_000), AttemptState::Done);
        assert_eq!(state(Condition::Stopped, 91), AttemptState::Stopped);
        assert_eq!(AttemptState::of(None), AttemptState::Lost);
    }
}
