//! From the parts of a run to its adapter: every module exactly once, all of one run, or a list of what is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::commands::extract::attempts::attempt;
use crate::commands::extract::attempts::attempt::{Attempt, How};
use crate::commands::extract::attempts::completed;
use crate::commands::extract::attempts::completed::Finished;
use crate::commands::extract::attempts::status::Seen;
use crate::commands::extract::options::Extraction;
use crate::commands::extract::output::existing::whole;
use crate::commands::extract::output::files::FILES;
use crate::commands::extract::output::summary::Outcome;
use crate::commands::extract::output::write;
use crate::commands::extract::part::Task;
use crate::commands::extract::partition::Split;
use crate::commands::extract::plan::{Inputs, Plan};
use crate::commands::extract::rerun_command::extract_command;
use crate::commands::extract::run_identity::Begin;
use crate::delta::record::Side;
use crate::durable::atomic_file;
use crate::durable::lock::Lock;
use crate::pipeline::options::Running;
use crate::run::identity;
use crate::run::layout::STATE;
use crate::run::layout::STATE_HAS_NOTHING;
use crate::run::log::Log;
use crate::run::part_id::Part;
use crate::run::progress::Progress;
use crate::{Error, Result};

/// What to assemble, and how.
#[derive(Clone, Debug)]
pub struct Assembly {
    /// The output folder of the run.
    pub out: PathBuf,
    /// Do here what is missing.
    pub finish: bool,
    /// Where the base lies, if not where the parts found it.
    pub base: Option<String>,
    /// Where the tuned checkpoint lies.
    pub tuned: Option<String>,
    /// Where the one that will serve the adapter lies.
    pub served: Option<String>,
    /// How the work is run.
    pub running: Running,
}

/// What came of it.
#[derive(Debug)]
pub enum Assembled {
    /// The adapter is whole.
    Done(Box<Outcome>),
    /// Something is missing; nothing was changed.
    Missing(Missing),
}

/// What no one has done.
#[derive(Clone, Debug, Serialize)]
pub struct Missing {
    /// The output folder.
    pub out: PathBuf,
    /// Modules of the whole run.
    pub run_modules: usize,
    /// The missing ones.
    pub modules: Vec<String>,
    /// Tensors that were to be compared.
    pub compared: Vec<String>,
    /// Whose they are.
    pub parts: Vec<MissingPart>,
}

/// A part that is not finished.
#[derive(Clone, Debug, Serialize)]
pub struct MissingPart {
    /// Which; `None` for a run that was not split.
    pub part: Option<Part>,
    /// How many modules of its share are missing.
    pub modules: usize,
    /// How many comparisons.
    pub compared: usize,
    /// Its last sign of life.
    pub seen: Option<Seen>,
    /// The command that does what is missing.
    pub command: String,
}

/// Assembles the adapter of a run whose parts have finished their work. The bytes are those of an unsplit run.
///
/// # Errors
/// A folder without a run; parts of different runs; modules that two parts came to different bytes of; checkpoints that
/// were changed; a shard that was damaged meanwhile; a failing disk.
pub fn assemble(assembly: &Assembly, progress: &dyn Progress) -> Result<Assembled> {
    let out = &assembly.out;
    if !out.join(STATE).is_dir() && !out.join(FILES[5]).exists() {
        return Err(Error::decide(STATE_HAS_NOTHING).path(out).hint("is it the folder that --out named?"));
    }
    let lock = Lock::acquire_where_there_is_one(out)?;
    if out.join(FILES[5]).exists() {
        let manifest = match whole(out) {
            Ok(manifest) => manifest,
            // The folder is to be as it was.
            Err(error) => return lock.remove().and(Err(error)),
        };
        write::tidy(lock, out, assembly.running.keep_shards)?;
        let outcome = Outcome::new(out.clone(), manifest, &BTreeMap::new(), true);
        return Ok(Assembled::Done(Box::new(outcome)));
    }
    atomic_file::remove_leftovers(out)?;
    let attempts = with_work(attempt::all(out)?, progress);
    completed::damages(&attempts).for_each(|note| progress.note(&note));
    let first = check_one_run(&attempts, assembly)?;
    let how = attempts.iter().filter_map(|attempt| attempt.how.as_ref()).max_by_key(|how| how.started);
    let job = job(assembly, &first, how)?;
    let inputs = Inputs::open(&job.base, &job.tuned, job.served.as_deref())?;
    let plan = Plan::make(&inputs, &job)?;
    let mut begin = Begin { simd: first.simd.clone(), ..Begin::new(&job, &inputs)? };
    if let Some(text) = begin.difference(&first, true) {
        return Err(identity::changed(out, &text));
    }
    let mut notes = Vec::new();
    let mut done = Finished::gather(&attempts, &|_| true, &mut notes)?;
    notes.iter().for_each(|note| progress.note(note));
    done.check_inputs(&attempts, &begin, &inputs, out)?;
    let missing = missing(out, &plan, &done, &attempts, &begin, how)?;
    if !missing.parts.is_empty() {
        if !assembly.finish {
            return Ok(Assembled::Missing(missing));
        }
        completed::at_work(&attempts).for_each(|note| progress.note(&note));
        let here = begin_here(&begin, assembly)?;
        let written = done.bytes();
        let task =
            Task { job: &job, begin: &here, inputs: &inputs, plan: &plan, share: &plan, part: None, written };
        done = task.run(done, progress)?;
        begin.simd = levels([begin.simd.as_str(), &here.simd]);
    }
    progress.assembling();
    let manifest = write::finish(&inputs, &job, &plan, &begin, &done)?;
    if assembly.running.keep_shards {
        write::keep_shards(out, &done)?;
    }
    Log::open(out)?.line(&format!("assembled from {} attempts", attempts.len()));
    write::tidy(lock, out, assembly.running.keep_shards)?;
    Ok(Assembled::Done(Box::new(Outcome::new(out.clone(), manifest, &BTreeMap::new(), false))))
}

/// The attempts that count: those that have finished anything. One that has not, and then is of another run, is as if it
/// were not there.
fn with_work(attempts: Vec<Attempt>, progress: &dyn Progress) -> Vec<Attempt> {
    let (worked, idle): (Vec<_>, Vec<_>) = attempts.into_iter().partition(|attempt| !attempt.done.is_empty());
    if worked.is_empty() {
        return idle;
    }
    let is_of_it = |attempt: &Attempt| match (&attempt.begin, &worked[0].begin) {
        (Some(begin), Some(first)) => begin.difference(first, true).is_none(),
        _ => true,
    };
    let (same, other): (Vec<_>, Vec<_>) = idle.into_iter().partition(is_of_it);
    for attempt in other {
        progress
            .note(&format!("{} is of another run and has done nothing: it is passed over", attempt.name()));
    }
    worked.into_iter().chain(same).collect()
}

/// What all attempts are of.
fn check_one_run(attempts: &[Attempt], assembly: &Assembly) -> Result<Begin> {
    let begun = || attempts.iter().filter_map(|attempt| Some((attempt, attempt.begin.as_ref()?)));
    let Some((first, of)) = begun().next() else {
        let hint = "do the parts first: trephine extract ... --part I/N";
        return Err(Error::found("no part has begun, or what it wrote cannot be read")
            .path(&assembly.out)
            .hint(hint));
    };
    let mut simd = vec![of.simd.as_str()];
    for (other, begin) in begun().skip(1) {
        if let Some(text) = begin.difference(of, true) {
            let what = format!("{} and {} are not of one run: {text}", first.name(), other.name());
            let hint = format!(
                "remove the folder of the wrong one, {} or {}",
                first.folder.display(),
                other.folder.display()
            );
            return Err(Error::decide(what).path(&assembly.out).hint(hint));
        }
        if begin.simd != of.simd && !assembly.running.other_simd {
            let [a, b] = [(first, of), (other, begin)]
                .map(|(attempt, begin)| format!("{} with {}", attempt.name(), begin.simd));
            let what = format!("the parts ran on different vector instructions: {a}, {b}");
            let hint = "--other-simd goes on, but the bytes may differ from those of one machine";
            return Err(Error::decide(what).path(&assembly.out).hint(hint));
        }
        simd.push(&begin.simd);
    }
    Ok(Begin { simd: levels(simd), ..of.clone() })
}

/// Instruction sets that parts of a run were made with, as the manifest names them.
fn levels<'a>(of: impl IntoIterator<Item = &'a str>) -> String {
    let levels: BTreeSet<&str> = of.into_iter().flat_map(|level| level.split(" and ")).collect();
    levels.into_iter().collect::<Vec<_>>().join(" and ")
}

/// The extraction as its parts have recorded it.
fn job(assembly: &Assembly, begin: &Begin, how: Option<&How>) -> Result<Extraction> {
    let recorded = |given: &Option<String>, place: Option<&String>, flag: &str| {
        given.clone().or_else(|| place.cloned()).ok_or_else(|| {
            Error::decide(format!("where the {flag} checkpoint lies was not recorded, or cannot be read"))
                .path(&assembly.out)
                .hint(format!("give --{flag}"))
        })
    };
    let served = match (&assembly.served, begin.inputs.contains_key(&Side::Served)) {
        (None, false) => None,
        (given, _) => Some(recorded(given, how.and_then(|how| how.served.as_ref()), "served")?),
    };
    if begin.trephine != env!("CARGO_PKG_VERSION") {
        let text =
            format!("it was made by version {}, this is {}", begin.trephine, env!("CARGO_PKG_VERSION"));
        return Err(identity::changed(&assembly.out, &text));
    }
    let deciding = serde_json::from_value(Value::Object(begin.options.clone()))
        .map_err(|e| Error::input("the options of the run cannot be read").path(&assembly.out).because(e))?;
    // Nothing is held in memory where nothing is computed.
    let memory = if assembly.finish { assembly.running.memory } else { u64::MAX / 2 };
    Ok(Extraction {
        base: recorded(&assembly.base, how.map(|how| &how.base), "base")?,
        tuned: recorded(&assembly.tuned, how.map(|how| &how.tuned), "tuned")?,
        served,
        out: assembly.out.clone(),
        deciding,
        running: Running { memory, overwrite: false, ..assembly.running.clone() },
    })
}

/// What this machine's own journal begins with, where it does work of the run.
fn begin_here(begin: &Begin, assembly: &Assembly) -> Result<Begin> {
    let here = Begin { simd: identity::simd_level().into(), ..begin.clone() };
    match here.difference(begin, assembly.running.other_simd) {
        Some(text) => Err(identity::changed(&assembly.out, &text)),
        None => Ok(here),
    }
}

/// What of `plan` is not in `done`, by the part whose share it is.
fn missing(
    out: &Path,
    plan: &Plan,
    done: &Finished,
    attempts: &[Attempt],
    begin: &Begin,
    how: Option<&How>,
) -> Result<Missing> {
    // As it was split last, if it was ever split otherwise.
    let parts = attempts.iter().filter_map(|attempt| attempt.how.as_ref());
    let latest = parts.filter(|how| how.part.is_some()).max_by_key(|how| how.started);
    let of = latest.and_then(|how| how.part).map(Part::of);
    let split = Split::of(plan, of.unwrap_or(1));
    let modules = plan.modules.iter().filter(|module| !done.modules.contains_key(&module.name));
    let compared = plan.not_represented.iter().filter(|left| !done.compared.contains_key(&left.key()));
    let mut missing = Missing {
        out: out.to_owned(),
        run_modules: plan.modules.len(),
        modules: modules.map(|module| module.name.clone()).collect(),
        compared: compared.clone().map(|left| left.name.clone()).collect(),
        parts: Vec::new(),
    };
    let mut by_part: BTreeMap<usize, (usize, usize)> = BTreeMap::new();
    let owners = missing.modules.iter().filter_map(|name| split.part_of_module(name));
    owners.for_each(|part| by_part.entry(part).or_default().0 += 1);
    let owners = compared.filter_map(|left| split.part_of_comparison(&left.key()));
    owners.for_each(|part| by_part.entry(part).or_default().1 += 1);
    for (index, (modules, compared)) in by_part {
        let part = of.map(|of| Part::new(index, of)).transpose()?;
        let command = how.map(|how| extract_command(how, &begin.options, out, part)).transpose()?;
        missing.parts.push(MissingPart {
            part,
            modules,
            compared,
            seen: Seen::last(attempts, part),
            command: command.unwrap_or_default(),
        });
    }
    Ok(missing)
}
