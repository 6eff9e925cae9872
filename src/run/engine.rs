//! The engine of a run, unsplit or in parts: it opens the output folder, does the missing work and writes the output.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use crate::delta::record::Side;
use crate::durable::atomic_file;
use crate::durable::folder;
use crate::durable::journal::Journal;
use crate::durable::lock::Lock;
use crate::pipeline::options::RunOptions;
use crate::run::attempts::attempt;
use crate::run::attempts::attempt::{Attempt, AttemptInfo, host, now, place, result_bytes};
use crate::run::attempts::completed::Completed;
use crate::run::attempts::gather::{at_work, check_same, damages, gather};
use crate::run::attempts::recorder::Recorder;
use crate::run::folder as run_folder;
use crate::run::heartbeat::Heartbeat;
use crate::run::identity::RunIdentity;
use crate::run::job::Job;
use crate::run::layout::{JOURNAL, PART_LOG, SHARDS, STATE};
use crate::run::life::{Condition, SILENT, last_beat};
use crate::run::log::Log;
use crate::run::parts::part_id::Part;
use crate::run::parts::partition::Share;
use crate::run::progress::Progress;
use crate::run::unit::{AnyRecord, JournalEntry, PlannedUnit, UnitKind, Work};
use crate::{Error, Result};

/// Runs one job in one output folder.
pub struct Engine<'a, J: Job> {
    /// The job.
    pub job: &'a J,
    /// The output folder.
    pub out: &'a Path,
    /// Threads, memory and the other options that do not change the output.
    pub running: &'a RunOptions,
    /// The observer.
    pub progress: &'a dyn Progress,
}

/// The outcome of a run.
#[derive(Debug)]
pub struct Ended<O> {
    /// The record of the finished run.
    pub output: O,
    /// Whether an earlier run had done everything.
    pub was_done: bool,
}

/// The outcome of a part.
#[derive(Clone, Debug, Serialize)]
pub struct PartOutcome {
    /// The output folder of the whole run.
    pub out: PathBuf,
    /// Which part.
    pub part: Part,
    /// What is counted: `module` or `file`.
    pub unit: UnitKind,
    /// Units in its share.
    pub modules: usize,
    /// How many of them were done before, by this or another part.
    pub done_before: usize,
    /// Units of the whole run.
    pub run_modules: usize,
    /// Duration in seconds.
    pub seconds: f64,
    /// Whether the whole run is already assembled, so that there was nothing (more) to do.
    pub assembled: bool,
}

/// What the output folder holds.
enum EarlierRun<J: Job> {
    /// A finished run of the same identity, and the lock under which to clean up after it.
    Done(J::Output, Lock),
    /// Nothing, or a run to continue, and the lock that keeps others out.
    Open(Journal<JournalEntry<J::Record>>, Completed<J::Done>, Lock),
}

impl<J: Job> Engine<'_, J> {
    /// Runs the job, or continues an earlier run of it, split or not.
    ///
    /// # Errors
    /// A folder that needs a decision, an error of the work itself, a failing disk. Finished units are kept, and the
    /// same call continues from there.
    pub fn run(&self) -> Result<Ended<J::Output>> {
        let started = Instant::now();
        let (layout, keep) = (self.job.layout(), self.keeps_results());
        // A finished folder may lie where nothing can be written, not even a lock. There is nothing to write either.
        if !self.running.overwrite && run_folder::is_finished(self.out) && folder::is_read_only(self.out) {
            let output = run_folder::existing(self.job, self.out, self.running.other_simd)?;
            return Ok(Ended { output, was_done: true });
        }
        let (journal, done, lock) = match self.open()? {
            EarlierRun::Done(output, lock) => {
                run_folder::tidy(lock, self.out, layout.log, keep)?;
                return Ok(Ended { output, was_done: true });
            }
            EarlierRun::Open(journal, done, lock) => (journal, done, lock),
        };
        self.check_disk(done.bytes())?;
        let log = self.log()?;
        let units = self.job.units();
        let finished = units.iter().filter(|unit| done.contains(&unit.id));
        log.line(&format!(
            "trephine {} begins: {} {} of {} are done; {}",
            self.job.identity().trephine,
            Work::of(finished).modules,
            self.kind().plural(),
            Work::of(units).modules,
            self.job.described(),
        ));
        let state = self.out.join(STATE);
        let share = Share::whole(units);
        self.info(None, &share, &done).write(&state)?;
        let results = layout.results(self.out, &state);
        let done = self.work(&share, &state, results, journal, done, &log)?;
        let output = self.finish(self.job.identity(), &done)?;
        run_folder::tidy(lock, self.out, layout.log, keep)?;
        log.line(&format!("done in {:.3} s", started.elapsed().as_secs_f64()));
        Ok(Ended { output, was_done: false })
    }

    /// Does the missing units of the share of `part`. It assembles nothing.
    ///
    /// # Errors
    /// The errors of [`run`](Self::run); a folder with parts of a different run.
    pub fn part(&self, part: Part) -> Result<PartOutcome> {
        let started = Instant::now();
        let (units, other_simd) = (self.job.units(), self.running.other_simd);
        let share = Share::of_part(units, part);
        let mut outcome = PartOutcome {
            out: self.out.to_owned(),
            part,
            unit: self.kind(),
            modules: Work::of(units.iter().filter(|unit| share.contains(&unit.id))).modules,
            done_before: 0,
            run_modules: Work::of(units).modules,
            seconds: 0.0,
            assembled: false,
        };
        run_folder::refuse_foreign(self.out, self.job.layout())?;
        folder::create(self.out)?;
        if self.running.overwrite {
            self.make_way()?;
        }
        if run_folder::is_finished(self.out) {
            run_folder::existing(self.job, self.out, other_simd)?;
            (outcome.done_before, outcome.assembled) = (outcome.modules, true);
            return Ok(outcome);
        }
        let attempts = attempt::all(self.out)?;
        check_same(&attempts, self.job.identity(), other_simd, self.out)?;
        let mut notes: Vec<String> = damages(&attempts).collect();
        let done = gather(self.job, self.out, &attempts, &|id| share.contains(id), &mut notes)?;
        notes.iter().for_each(|note| self.progress.note(note));
        outcome.done_before = Work::of(units.iter().filter(|unit| done.contains(&unit.id))).modules;
        let result = self.attempt(self.job.identity(), Some(part), &share, done, result_bytes(&attempts));
        outcome.assembled = run_folder::is_finished(self.out);
        match result {
            // Its folder was removed while it ran: others have done its work and assembled the run.
            Err(_) if outcome.assembled => {}
            result => drop(result?),
        }
        outcome.seconds = started.elapsed().as_secs_f64();
        Ok(outcome)
    }

    /// Opens the output folder for the unsplit run: takes its lock and the work that earlier runs and parts
    /// have finished.
    fn open(&self) -> Result<EarlierRun<J>> {
        let (out, job, other_simd) = (self.out, self.job, self.running.other_simd);
        run_folder::refuse_foreign(out, job.layout())?;
        folder::create(out)?;
        let lock = Lock::acquire(out)?;
        if self.running.overwrite {
            run_folder::clear(out, job.layout())?;
        } else if run_folder::is_finished(out) {
            return match run_folder::existing(job, out, other_simd) {
                Ok(output) => Ok(EarlierRun::Done(output, lock)),
                // Leave the folder as it was.
                Err(error) => lock.remove().and(Err(error)),
            };
        }
        // Check before opening the journal: another command's journal could not be opened.
        let attempts: Vec<Attempt<AnyRecord>> = attempt::all(out)?;
        check_same(&attempts, job.identity(), other_simd, out)?;
        let state = out.join(STATE);
        let results = job.layout().results(out, &state);
        folder::create(&results)?;
        for folder in [out, &state, &results] {
            atomic_file::remove_leftovers(folder)?;
        }
        let (mut journal, records) = Journal::open(&state.join(JOURNAL))?;
        if records.is_empty() {
            journal.append(&JournalEntry::Begin(Box::new(job.identity().clone())))?;
        }
        let begun_once = |(index, entry): (usize, &JournalEntry<_>)| {
            matches!(entry, JournalEntry::Begin(_)) == (index == 0)
        };
        if !records.iter().enumerate().all(begun_once) {
            let what = "the journal does not begin with the identity of a run";
            return Err(Error::input(what).path(out).hint("--overwrite starts anew"));
        }
        let parts = attempt::of_parts(out)?;
        let attempts: Vec<_> = std::iter::once(Attempt::new(&state, records, None)).chain(parts).collect();
        let mut notes: Vec<String> = damages(&attempts).chain(at_work(&attempts)).collect();
        let done = gather(job, out, &attempts, &|_| true, &mut notes)?;
        notes.iter().for_each(|note| self.progress.note(note));
        Ok(EarlierRun::Open(journal, done, lock))
    }

    /// Does the units of `share` that are not in `done`, in a folder of its own, and returns everything that is
    /// finished then. `written` is the number of bytes of results that are already on the disk, from any attempt.
    ///
    /// # Errors
    /// The first error of any stage; finished units are kept.
    pub(crate) fn attempt(
        &self,
        identity: &RunIdentity,
        part: Option<Part>,
        share: &Share,
        done: Completed<J::Done>,
        written: u64,
    ) -> Result<Completed<J::Done>> {
        let info = self.info(part, share, &done);
        if info.ahead.is_none() {
            return Ok(done);
        }
        self.check_disk(written)?;
        let attempt = attempt::take_folder(self.out, part)?;
        let journal = self.begin(identity, &attempt, &info)?;
        let log = Log::open(&attempt.join(PART_LOG))?;
        log.line(&format!(
            "trephine {} begins on {}: {} {} of {} are ahead; {}",
            identity.trephine,
            info.host,
            info.ahead.modules,
            self.kind().plural(),
            info.share.modules,
            self.job.described(),
        ));
        let done = self.work(share, &attempt, attempt.join(SHARDS), journal, done, &log)?;
        log.line(&format!("done: {} {}", info.ahead.modules, self.kind().plural()));
        Ok(done)
    }

    /// Begins the journal. A different run may have begun at the same moment, so the others are checked once more, now
    /// that this one is visible: of two runs, at least one sees the other.
    fn begin(
        &self,
        identity: &RunIdentity,
        attempt: &Path,
        info: &AttemptInfo,
    ) -> Result<Journal<JournalEntry<J::Record>>> {
        info.write(attempt)?;
        folder::create(&attempt.join(SHARDS))?;
        let mut journal = Journal::create(&attempt.join(JOURNAL))?;
        journal.append(&JournalEntry::Begin(Box::new(identity.clone())))?;
        let others: Vec<Attempt<AnyRecord>> =
            attempt::all(self.out)?.into_iter().filter(|other| other.folder != attempt).collect();
        match check_same(&others, identity, self.running.other_simd, self.out) {
            Ok(()) => Ok(journal),
            Err(error) => run_folder::removed_folder(self.out, attempt).and(Err(error)),
        }
    }

    /// Lets the job do its work while the heartbeat is written.
    fn work(
        &self,
        share: &Share,
        attempt: &Path,
        results: PathBuf,
        journal: Journal<JournalEntry<J::Record>>,
        done: Completed<J::Done>,
        log: &Log,
    ) -> Result<Completed<J::Done>> {
        let living = Heartbeat::begin(attempt, self.job.units(), self.progress);
        let check_inputs = &|| self.job.check_inputs();
        let mut recorder = Recorder { results, journal, done, living: &living, log, check_inputs };
        // What was read of a file that has changed may be any nonsense: that it has changed is what is to be said.
        let worked = self
            .job
            .work(share, &mut recorder, &living)
            .map_err(|error| self.job.check_inputs().err().unwrap_or(error));
        let Recorder { done, .. } = recorder;
        living.end(worked)?;
        Ok(done)
    }

    /// Writes the output of finished work, and keeps the results where requested.
    pub(crate) fn finish(&self, identity: &RunIdentity, done: &Completed<J::Done>) -> Result<J::Output> {
        self.progress.assembling();
        self.job.check_inputs()?;
        let output = self.job.finish(identity, done, self.progress)?;
        if self.keeps_results() {
            run_folder::keep_results(self.out, done)?;
        }
        Ok(output)
    }

    /// Whether results are kept beside the output. Results that are output files themselves are already in it.
    pub(crate) fn keeps_results(&self) -> bool {
        self.running.keep_shards && !self.job.layout().in_place
    }

    /// The run's log.
    pub(crate) fn log(&self) -> Result<Log> {
        self.job.layout().log.map_or(Ok(Log::none()), |name| Log::open(&self.out.join(name)))
    }

    /// What is counted.
    pub(crate) fn kind(&self) -> UnitKind {
        self.job.units().first().map_or(UnitKind::Module, |unit| unit.id.kind)
    }

    fn info(&self, part: Option<Part>, share: &Share, done: &Completed<J::Done>) -> AttemptInfo {
        let units = self.job.units();
        let shared = |unit: &&PlannedUnit| share.contains(&unit.id);
        let mut places: BTreeMap<Side, Vec<String>> = BTreeMap::new();
        for (side, spec) in self.job.places() {
            places.entry(side).or_default().push(place(&spec));
        }
        AttemptInfo {
            part,
            host: host(),
            process: std::process::id(),
            started: now(),
            threads: self.running.threads,
            memory: self.running.memory,
            places,
            outputs: self.job.layout().outputs.clone(),
            run: Work::of(units),
            share: Work::of(units.iter().filter(shared)),
            ahead: Work::of(units.iter().filter(shared).filter(|unit| !done.contains(&unit.id))),
        }
    }

    /// Refuses a folder whose disk has no room for the output.
    fn check_disk(&self, already: u64) -> Result<()> {
        let needed = self.job.disk_bytes().saturating_sub(already);
        let free = folder::free_space(self.out)?;
        if free >= needed {
            return Ok(());
        }
        let what =
            format!("the disk is too full: the run needs {} MiB, {} MiB is free", needed >> 20, free >> 20);
        Err(Error::unexpected(what).path(self.out).hint(self.job.room_hint()))
    }

    /// Removes the files of different runs. Parts of this same run stay: every part gets `--overwrite`, and they start
    /// one after the other.
    fn make_way(&self) -> Result<()> {
        let (out, layout, other_simd) = (self.out, self.job.layout(), self.running.other_simd);
        for folder in &attempt::folders(out)? {
            let Some(attempt) = Attempt::<AnyRecord>::read(folder)? else { continue };
            if run_folder::is_same_run(self.job, &attempt, other_simd) {
                continue;
            }
            refuse_at_work(&attempt, out)?;
            run_folder::removed_folder(out, folder)?;
        }
        if run_folder::is_finished(out) && run_folder::existing(self.job, out, other_simd).is_err() {
            run_folder::clear_finished(out, layout)?;
        }
        let state = out.join(STATE);
        let unsplit = Attempt::<AnyRecord>::read(&state)?;
        if unsplit.is_some_and(|attempt| !run_folder::is_same_run(self.job, &attempt, other_simd)) {
            let lock = Lock::acquire_where_there_is_one(out)?;
            run_folder::clear_files(out, layout)?;
            [JOURNAL, SHARDS].iter().try_for_each(|name| run_folder::removed_state(out, name))?;
            lock.remove()?;
        }
        Ok(())
    }
}

/// Refuses to remove a part of a different run whose heartbeat is recent.
fn refuse_at_work<R>(attempt: &Attempt<R>, out: &Path) -> Result<()> {
    match last_beat(&attempt.folder) {
        Some((beat, ago)) if beat.condition == Condition::Running && ago < SILENT => {
            let what = format!(
                "{} of another run appears to be running (heartbeat {} s ago)",
                attempt.name(),
                ago.as_secs()
            );
            let hint = format!("stop it; {} s after its last heartbeat it counts as lost", SILENT.as_secs());
            Err(Error::decide(what).path(out).hint(hint))
        }
        _ => Ok(()),
    }
}

/// The instruction sets that the parts of a run used, in the form that records have.
pub(crate) fn simd_levels<'a>(levels: impl IntoIterator<Item = &'a str>) -> String {
    let levels: BTreeSet<&str> = levels.into_iter().flat_map(|level| level.split(" and ")).collect();
    levels.into_iter().collect::<Vec<_>>().join(" and ")
}
