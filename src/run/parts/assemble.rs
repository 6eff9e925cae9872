//! Assembly of a split run: checks that every unit is there exactly once and from one run, or lists what is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value};

use crate::delta::record::Side;
use crate::durable::atomic_file;
use crate::durable::lock::Lock;
use crate::pipeline::options::RunOptions;
use crate::run::attempts::attempt;
use crate::run::attempts::attempt::{Attempt, AttemptInfo, result_bytes};
use crate::run::attempts::completed::Completed;
use crate::run::attempts::gather::{at_work, damages, gather};
use crate::run::attempts::status::Seen;
use crate::run::engine::{Ended, Engine, simd_levels};
use crate::run::folder::{self as run_folder, STATE_HAS_NOTHING};
use crate::run::identity::{RunIdentity, changed, simd_level};
use crate::run::job::{Job, RunOutput};
use crate::run::layout::{RECORDS, STATE};
use crate::run::parts::part_id::Part;
use crate::run::parts::partition::{Partition, Share};
use crate::run::parts::rerun_command::rerun_command;
use crate::run::unit::{AnyRecord, PlannedUnit, UnitKind, Work};
use crate::{Error, Result};

/// What to assemble, and how.
#[derive(Clone, Debug)]
pub struct Assembly {
    /// The output folder of the run.
    pub out: PathBuf,
    /// Whether to do the missing work here.
    pub finish: bool,
    /// Locations of inputs that differ from those of the parts.
    pub places: BTreeMap<Side, String>,
    /// Threads, memory and the other options that do not change the output.
    pub running: RunOptions,
}

/// The outcome of an assembly. `O` is the outcome of the command's run.
#[derive(Debug)]
pub enum Assembled<O> {
    /// The output is complete.
    Done(O),
    /// Something is missing; nothing was changed.
    Missing(Missing),
}

impl<O> Assembled<O> {
    /// Maps the outcome of the command's run.
    pub fn map<P>(self, end: impl FnOnce(O) -> P) -> Assembled<P> {
        match self {
            Assembled::Done(done) => Assembled::Done(end(done)),
            Assembled::Missing(missing) => Assembled::Missing(missing),
        }
    }
}

/// The missing work.
#[derive(Clone, Debug, Serialize)]
pub struct Missing {
    /// The output folder.
    pub out: PathBuf,
    /// What is counted as modules: `module` or `file`.
    pub unit: UnitKind,
    /// Units of the whole run.
    pub run_modules: usize,
    /// The missing ones.
    pub modules: Vec<String>,
    /// Tensors whose comparison is missing.
    pub compared: Vec<String>,
    /// The parts that they belong to.
    pub parts: Vec<MissingPart>,
}

/// A part that is not finished.
#[derive(Clone, Debug, Serialize)]
pub struct MissingPart {
    /// Which part; `None` for a run that was not split.
    pub part: Option<Part>,
    /// How many units of its share are missing.
    pub modules: usize,
    /// How many comparisons of its share are missing.
    pub compared: usize,
    /// Its last heartbeat.
    pub seen: Option<Seen>,
    /// The command that does the missing work.
    pub command: String,
}

/// The state of a run, as recorded in its folder.
#[derive(Debug)]
#[non_exhaustive]
pub enum Recorded {
    /// The output is complete; this is the name of its record.
    Finished(&'static str),
    /// Work is left to do or to assemble.
    Begun(Box<Begun>),
}

impl Recorded {
    /// The command of the run.
    pub fn command(&self) -> &str {
        match self {
            Recorded::Begun(begun) => &begun.identity.command,
            Recorded::Finished("extraction.json") => "extract",
            Recorded::Finished("conversion.json") => "dequantize",
            Recorded::Finished("analysis.json") => "analyze",
            Recorded::Finished("fidelity.json") => "fidelity",
            Recorded::Finished(_) => "sanitize",
        }
    }
}

/// A run that has begun, as recorded by its attempts.
#[derive(Clone, Debug)]
pub struct Begun {
    /// Its identity, with the SIMD levels of all attempts.
    pub identity: RunIdentity,
    /// How and where the latest attempt ran, where that can be read.
    pub info: Option<AttemptInfo>,
}

/// Reads the run that `assembly` names.
///
/// # Errors
/// A folder without a run; attempts at different runs.
pub fn recorded(assembly: &Assembly) -> Result<Recorded> {
    let out = &assembly.out;
    if run_folder::is_finished(out) {
        let record = RECORDS.into_iter().find(|record| out.join(record).is_file());
        return record.map(Recorded::Finished).ok_or_else(|| {
            Error::decide("the folder holds checksums, but no run's")
                .path(out)
                .hint("give the folder that --out named")
        });
    }
    if !out.join(STATE).is_dir() {
        return Err(Error::decide(STATE_HAS_NOTHING).path(out).hint("is it the folder that --out named?"));
    }
    let (attempts, _) = with_work(attempt::all::<AnyRecord>(out)?);
    let identity = check_one_run(&attempts, assembly)?;
    if identity.trephine != env!("CARGO_PKG_VERSION") {
        let text =
            format!("it was made by version {}, this is {}", identity.trephine, env!("CARGO_PKG_VERSION"));
        return Err(changed(out, &text));
    }
    let infos = attempts.into_iter().filter_map(|attempt| attempt.info);
    let info = infos.max_by_key(|info| info.started);
    Ok(Recorded::Begun(Box::new(Begun { identity, info })))
}

/// Checks a folder that is complete already, and removes what an unfinished run has left in it.
///
/// # Errors
/// A file that was removed or damaged since.
pub fn finished<O: RunOutput>(
    assembly: &Assembly,
    record: &str,
    files: &[&str],
    log: Option<&str>,
) -> Result<O> {
    let out = &assembly.out;
    let lock = Lock::acquire_where_there_is_one(out)?;
    let output = run_folder::read_record(out, record)
        .and_then(|output| run_folder::check_whole(out, files.iter().copied(), log).map(|()| output));
    match output {
        Ok(output) => {
            run_folder::tidy(lock, out, log, assembly.running.keep_shards)?;
            Ok(output)
        }
        // Leave the folder as it was.
        Err(error) => lock.remove().and(Err(error)),
    }
}

impl Begun {
    /// The location of an input: as given to the assembly, or as recorded.
    ///
    /// # Errors
    /// A location that is neither given nor recorded.
    pub fn place(&self, assembly: &Assembly, side: Side) -> Result<String> {
        self.places(assembly, side)?.into_iter().next().ok_or_else(|| unknown(assembly, side))
    }

    /// The location of an optional input; `None` where the run does not have it.
    ///
    /// # Errors
    /// The run has the input, and its location is neither given nor recorded.
    pub fn place_if_any(&self, assembly: &Assembly, side: Side) -> Result<Option<String>> {
        let is_read = self.identity.inputs.contains_key(&side) || assembly.places.contains_key(&side);
        is_read.then(|| self.place(assembly, side)).transpose()
    }

    fn places(&self, assembly: &Assembly, side: Side) -> Result<Vec<String>> {
        if let Some(given) = assembly.places.get(&side) {
            return Ok(vec![given.clone()]);
        }
        let places = self.info.as_ref().and_then(|info| info.places.get(&side));
        places.cloned().ok_or_else(|| unknown(assembly, side))
    }

    /// The options of the run.
    ///
    /// # Errors
    /// Options that this version cannot read.
    pub fn options<T: serde::de::DeserializeOwned>(&self, assembly: &Assembly) -> Result<T> {
        serde_json::from_value(Value::Object(self.identity.options.clone()))
            .map_err(|e| Error::input("the options of the run cannot be read").path(&assembly.out).because(e))
    }

    /// The run options for this machine.
    pub fn running(&self, assembly: &Assembly) -> RunOptions {
        // An assembly that computes nothing needs no memory budget.
        let memory = if assembly.finish { assembly.running.memory } else { u64::MAX / 2 };
        RunOptions { memory, overwrite: false, ..assembly.running.clone() }
    }
}

fn unknown(assembly: &Assembly, side: Side) -> Error {
    Error::decide(format!("the location of the {} was not recorded, or cannot be read", side.phrase()))
        .path(&assembly.out)
        .hint(format!("give --{}", side.flag()))
}

impl<J: Job> Engine<'_, J> {
    /// Assembles the output of a run whose parts have finished. The bytes are those of an unsplit run. `defaults` are
    /// the command's default options.
    ///
    /// # Errors
    /// Two parts with different bytes for a unit; inputs that have changed; a result that was damaged meanwhile; a
    /// failing disk.
    pub fn assemble(
        &self,
        begun: &Begun,
        finish: bool,
        defaults: &Map<String, Value>,
    ) -> Result<Assembled<Ended<J::Output>>> {
        let (out, units) = (self.out, self.job.units());
        let lock = Lock::acquire_where_there_is_one(out)?;
        atomic_file::remove_leftovers(out)?;
        let (attempts, passed_over) = with_work(attempt::all(out)?);
        passed_over.iter().chain(&damages(&attempts).collect::<Vec<_>>()).for_each(|n| self.progress.note(n));
        if let Some(text) = self.job.identity().difference(&begun.identity, true) {
            return Err(changed(out, &text));
        }
        let mut identity = RunIdentity { simd: begun.identity.simd.clone(), ..self.job.identity().clone() };
        let mut notes = Vec::new();
        let mut done = gather(self.job, out, &attempts, &|_| true, &mut notes)?;
        notes.iter().for_each(|note| self.progress.note(note));
        let missing = self.missing(&done, &attempts, begun, defaults)?;
        if !missing.parts.is_empty() {
            if !finish {
                return Ok(Assembled::Missing(missing));
            }
            at_work(&attempts).for_each(|note| self.progress.note(&note));
            let here = self.identity_here(&identity)?;
            done = self.attempt(&here, None, &Share::whole(units), done, result_bytes(&attempts))?;
            identity.simd = identity.simd.zip(here.simd).map(|(a, b)| simd_levels([a.as_str(), &b]));
        }
        let output = self.finish(&identity, &done)?;
        self.log()?.line(&format!("assembled from {} attempts", attempts.len()));
        run_folder::tidy(lock, out, self.job.layout().log, self.keeps_results())?;
        Ok(Assembled::Done(Ended { output, was_done: false }))
    }

    /// The identity with which this machine's own journal begins, where it does work of the run.
    fn identity_here(&self, identity: &RunIdentity) -> Result<RunIdentity> {
        let simd = identity.simd.as_ref().map(|_| simd_level().to_owned());
        let here = RunIdentity { simd, ..identity.clone() };
        match here.difference(identity, self.running.other_simd) {
            Some(text) => Err(changed(self.out, &text)),
            None => Ok(here),
        }
    }

    /// The units of the job that are not in `done`, grouped by the part that they belong to.
    fn missing(
        &self,
        done: &Completed<J::Done>,
        attempts: &[Attempt<J::Record>],
        begun: &Begun,
        defaults: &Map<String, Value>,
    ) -> Result<Missing> {
        // Use the latest split: the run may have been split in different ways.
        let infos = attempts.iter().filter_map(|attempt| attempt.info.as_ref());
        let latest = infos.filter(|info| info.part.is_some()).max_by_key(|info| info.started);
        let parts = latest.and_then(|info| info.part).map(Part::of);
        let partition = Partition::of(self.job.units(), parts.unwrap_or(1));
        let mut by_part: BTreeMap<usize, Vec<&PlannedUnit>> = BTreeMap::new();
        let missing = || self.job.units().iter().filter(|unit| !done.contains(&unit.id));
        for unit in missing() {
            by_part.entry(partition.part_of(&unit.id).unwrap_or(1)).or_default().push(unit);
        }
        let names = |compared: bool| {
            let chosen = missing().filter(|unit| (unit.id.kind == UnitKind::Compared) == compared);
            chosen.map(|unit| self.job.unit_title(&unit.id)).collect()
        };
        let part = |(index, units): (usize, Vec<&PlannedUnit>)| {
            let part = parts.map(|parts| Part::new(index, parts)).transpose()?;
            let Work { modules, compared, .. } = Work::of(units);
            let command = begun.info.as_ref();
            let command = command.map(|info| rerun_command(&begun.identity, info, defaults, self.out, part));
            let (seen, command) = (Seen::last(attempts, part), command.unwrap_or_default());
            Ok(MissingPart { part, modules, compared, seen, command })
        };
        Ok(Missing {
            out: self.out.to_owned(),
            unit: self.kind(),
            run_modules: Work::of(self.job.units()).modules,
            modules: names(false),
            compared: names(true),
            parts: by_part.into_iter().map(part).collect::<Result<_>>()?,
        })
    }
}

/// The attempts that count, and notes on the others. An attempt that has finished nothing and belongs to a different
/// run is ignored.
fn with_work<R>(attempts: Vec<Attempt<R>>) -> (Vec<Attempt<R>>, Vec<String>) {
    let (worked, idle): (Vec<_>, Vec<_>) =
        attempts.into_iter().partition(|attempt| !attempt.units.is_empty());
    if worked.is_empty() {
        return (idle, Vec::new());
    }
    let is_of_it = |attempt: &Attempt<R>| match (&attempt.identity, &worked[0].identity) {
        (Some(identity), Some(first)) => identity.difference(first, true).is_none(),
        _ => true,
    };
    let (same, other): (Vec<_>, Vec<_>) = idle.into_iter().partition(is_of_it);
    let note = |attempt: &Attempt<R>| {
        format!("{} belongs to a different run and has done nothing: it is ignored", attempt.name())
    };
    let notes = other.iter().map(note).collect();
    (worked.into_iter().chain(same).collect(), notes)
}

/// The identity that all attempts share.
///
/// # Errors
/// No attempt; attempts at different runs, or with different instruction sets where that is not allowed.
fn check_one_run<R>(attempts: &[Attempt<R>], assembly: &Assembly) -> Result<RunIdentity> {
    let begun = || attempts.iter().filter_map(|attempt| Some((attempt, attempt.identity.as_ref()?)));
    let Some((first, expected)) = begun().next() else {
        return Err(Error::found("no part has begun, or its journal cannot be read")
            .path(&assembly.out)
            .hint("run the parts first: the command with --part I/N"));
    };
    let mut levels: BTreeSet<&str> = expected.simd.as_deref().into_iter().collect();
    for (other, identity) in begun().skip(1) {
        if let Some(text) = identity.difference(expected, true) {
            let what = format!("{} and {} belong to different runs: {text}", first.name(), other.name());
            let hint = format!(
                "remove the folder of the wrong one, {} or {}",
                first.folder.display(),
                other.folder.display()
            );
            return Err(Error::decide(what).path(&assembly.out).hint(hint));
        }
        if identity.simd != expected.simd && !assembly.running.other_simd {
            let [a, b] = [(first, expected), (other, identity)].map(|(attempt, identity)| {
                format!("{} with {}", attempt.name(), identity.simd.as_deref().unwrap_or("none"))
            });
            let what = format!("the parts ran with different vector instructions: {a}, {b}");
            let hint = "--other-simd continues, but the bytes may differ from those of one machine";
            return Err(Error::decide(what).path(&assembly.out).hint(hint));
        }
        levels.extend(identity.simd.as_deref());
    }
    let simd = (!levels.is_empty()).then(|| simd_levels(levels));
    Ok(RunIdentity { simd, ..expected.clone() })
}

/// Whether `path` is the folder of a run, finished or not.
pub fn holds_run(path: &Path) -> bool {
    run_folder::is_finished(path) || path.join(STATE).is_dir()
}
