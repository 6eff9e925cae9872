//! One part of a run: its share of the plan, in a folder of its own, beside others of which it knows only what they
//! have finished.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use crate::commands::extract::attempts::attempt;
use crate::commands::extract::attempts::attempt::{Attempt, How, Work};
use crate::commands::extract::attempts::completed;
use crate::commands::extract::attempts::completed::{Finished, check_same};
use crate::commands::extract::attempts::entry::Entry;
use crate::commands::extract::attempts::run_dir;
use crate::commands::extract::attempts::run_dir::Ledger;
use crate::commands::extract::attempts::status::shard_bytes;
use crate::commands::extract::options::Extraction;
use crate::commands::extract::output::existing::finished;
use crate::commands::extract::output::files::FILES;
use crate::commands::extract::plan::{Inputs, Plan, PlannedLeftover};
use crate::commands::extract::run_identity::Begin;
use crate::commands::extract::stages;
use crate::durable::folder;
use crate::durable::journal::Journal;
use crate::durable::lock::Lock;
use crate::run::heartbeat::Living;
use crate::run::layout::STATE;
use crate::run::layout::{JOURNAL, SHARDS};
use crate::run::life::SILENT;
use crate::run::life::{Condition, last_beat};
use crate::run::log::Log;
use crate::run::part_id::Part;
use crate::run::progress::Progress;
use crate::{Error, Result};

/// The end of a part.
#[derive(Clone, Debug, Serialize)]
pub struct PartOutcome {
    /// The output folder of the whole run.
    pub out: PathBuf,
    /// Which part.
    pub part: Part,
    /// Modules of its share.
    pub modules: usize,
    /// How many of them were done before, by whomever.
    pub done_before: usize,
    /// Modules of the whole run.
    pub run_modules: usize,
    /// Seconds that it took.
    pub seconds: f64,
    /// Whether the whole run is assembled already, so that there was nothing to do, or no longer.
    pub assembled: bool,
}

/// Does `part` of an extraction: what of its share no one has done yet. Nothing is assembled.
///
/// # Errors
/// As [`extract`](super::extract); a folder with parts of another run.
pub fn extract_part(job: &Extraction, part: Part, progress: &dyn Progress) -> Result<PartOutcome> {
    let started = Instant::now();
    let inputs = Inputs::open(&job.base, &job.tuned, job.served.as_deref())?;
    let plan = Plan::make(&inputs, job)?;
    plan.notes.iter().for_each(|note| progress.note(note));
    let begin = Begin::new(job, &inputs)?;
    let share = plan.share(part);
    let mut outcome = PartOutcome {
        out: job.out.clone(),
        part,
        modules: share.modules.len(),
        done_before: 0,
        run_modules: plan.modules.len(),
        seconds: 0.0,
        assembled: false,
    };
    run_dir::refuse_foreign(&job.out)?;
    folder::create(&job.out)?;
    if job.running.overwrite {
        make_way(job, &begin, &inputs)?;
    }
    if job.out.join(FILES[5]).exists() {
        finished(&job.out, &begin, &inputs, job.running.other_simd)?;
        (outcome.done_before, outcome.assembled) = (outcome.modules, true);
        return Ok(outcome);
    }
    let attempts = attempt::all(&job.out)?;
    check_same(&attempts, &begin, job.running.other_simd, &job.out)?;
    completed::damages(&attempts).for_each(|note| progress.note(&note));
    let mut notes = Vec::new();
    let done = Finished::gather(&attempts, &of_share(&share), &mut notes)?;
    notes.iter().for_each(|note| progress.note(note));
    outcome.done_before = done.modules.len();
    let (part, written) = (Some(part), shard_bytes(&attempts));
    let work = Task { job, begin: &begin, inputs: &inputs, plan: &plan, share: &share, part, written };
    let result = work.run(done, progress);
    outcome.assembled = job.out.join(FILES[5]).exists();
    match result {
        // Its folder was removed under it: others have done its work and assembled the run.
        Err(_) if outcome.assembled => {}
        result => drop(result?),
    }
    outcome.seconds = started.elapsed().as_secs_f64();
    Ok(outcome)
}

/// Whether an entry of a journal is about work of `share`.
fn of_share(share: &Plan) -> impl Fn(&Entry) -> bool {
    let modules: HashSet<&str> = share.modules.iter().map(|module| module.name.as_str()).collect();
    let compared: HashSet<String> = share.not_represented.iter().map(PlannedLeftover::key).collect();
    move |entry| match entry {
        Entry::Begin(_) => false,
        Entry::Module { name, .. } => modules.contains(name.as_str()),
        Entry::Compared { left_out, .. } => compared.contains(&left_out.key()),
    }
}

/// Work for an attempt among others.
pub struct Task<'a> {
    /// The run.
    pub job: &'a Extraction,
    /// What it is of.
    pub begin: &'a Begin,
    /// Its checkpoints.
    pub inputs: &'a Inputs,
    /// All of its work.
    pub plan: &'a Plan,
    /// What of it is to be finished.
    pub share: &'a Plan,
    /// As which part.
    pub part: Option<Part>,
    /// Bytes of the shards that are on the disk already, whoever made them.
    pub written: u64,
}

impl Task<'_> {
    /// Does what is not in `done`, in a folder of its own, and gives all that is finished then.
    ///
    /// # Errors
    /// The first that any stage met; finished modules stay safe.
    pub fn run(&self, done: Finished, progress: &dyn Progress) -> Result<Finished> {
        let ahead = Work::ahead(self.share, &done);
        if ahead.is_none() {
            return Ok(done);
        }
        self.plan.check_disk(self.job, self.written)?;
        let how = How::new(self.job, self.part, Work::of(self.plan), Work::of(self.share), ahead);
        let attempt = attempt::take_folder(&self.job.out, self.part)?;
        let mut ledger = self.begin(&attempt, &how, done)?;
        let log = Log::of_part(&attempt)?;
        log.line(&format!(
            "trephine {} begins on {}: {} modules of {} are ahead; {} threads, {} MiB, {}",
            self.begin.trephine,
            how.host,
            ahead.modules,
            self.share.modules.len(),
            self.share.threads,
            self.share.memory >> 20,
            self.begin.simd
        ));
        let living = Living::begin(&attempt, self.share.costs(), progress);
        let times = stages::run(self.inputs, self.job, self.share, &mut ledger, &log, &living);
        let times = living.end(times)?;
        log.line(&format!("done: {} modules", times.len()));
        Ok(ledger.done)
    }

    /// Begins the journal. Another run may have begun at the same moment, so it is looked for once more, now that this
    /// one can be seen: of two, at least one sees the other.
    fn begin(&self, attempt: &Path, how: &How, done: Finished) -> Result<Ledger> {
        how.write(attempt)?;
        let shards = attempt.join(SHARDS);
        folder::create(&shards)?;
        let mut journal = Journal::create(&attempt.join(JOURNAL))?;
        journal.append(&Entry::Begin(Box::new(self.begin.clone())))?;
        let others: Vec<Attempt> =
            attempt::all(&self.job.out)?.into_iter().filter(|other| other.folder != attempt).collect();
        match check_same(&others, self.begin, self.job.running.other_simd, &self.job.out) {
            Ok(()) => Ok(Ledger { shards, journal, done, notes: Vec::new() }),
            Err(error) => run_dir::removed(attempt).and(Err(error)),
        }
    }
}

/// Removes what is there of other runs. Parts of this very run stay: each of them is told to overwrite, and they begin
/// one after the other.
fn make_way(job: &Extraction, begin: &Begin, inputs: &Inputs) -> Result<()> {
    let (out, other_simd) = (&job.out, job.running.other_simd);
    let is_this = |attempt: &Attempt| {
        attempt.begin.as_ref().is_some_and(|before| begin.difference(before, other_simd).is_none())
    };
    let parts = attempt::folders(out)?;
    for folder in &parts {
        let Some(attempt) = Attempt::read(folder)? else { continue };
        if is_this(&attempt) {
            continue;
        }
        refuse_at_work(&attempt, out)?;
        run_dir::removed(folder)?;
    }
    if out.join(FILES[5]).exists() && finished(out, begin, inputs, other_simd).is_err() {
        run_dir::clear_files(out)?;
    }
    let state = out.join(STATE);
    let unsplit = Attempt::read(&state)?;
    if unsplit.is_some_and(|attempt| !is_this(&attempt)) {
        let lock = Lock::acquire_where_there_is_one(out)?;
        [JOURNAL, SHARDS].iter().try_for_each(|name| run_dir::removed(&state.join(name)))?;
        lock.remove()?;
    }
    Ok(())
}

/// A part of another run that has shown a sign of life lately is not removed.
fn refuse_at_work(attempt: &Attempt, out: &Path) -> Result<()> {
    match last_beat(&attempt.folder) {
        Some((beat, ago)) if beat.condition == Condition::Running && ago < SILENT => {
            let what = format!(
                "{} of another run seems to be at work: it wrote {} s ago",
                attempt.name(),
                ago.as_secs()
            );
            let hint = format!("stop it; {} s after its last word it counts as lost", SILENT.as_secs());
            Err(Error::decide(what).path(out).hint(hint))
        }
        _ => Ok(()),
    }
}
