//! The stages of a run: readers load deltas, workers factorize them, one writer makes the factors durable.
//!
//! ```text
//! readers ── Loaded ──▶ workers ── FinishedModule ──▶ writer ── shard, then journal
//!    ▲ a permit for the module's bytes travels along, and is returned when its shard is written
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use safetensors::Dtype;

use crate::checkpoint::Checkpoint;
use crate::commands::extract::fetch::ahead::{Ahead, Read};
use crate::commands::extract::fetch::keep::keep;
use crate::commands::extract::inputs::Inputs;
use crate::commands::extract::leftover::compare;
use crate::commands::extract::module::{A, B, Finished, FinishedModule, Loaded, finish, load};
use crate::commands::extract::options::Extraction;
use crate::commands::extract::plan::{ExtractionPlan, PlannedLeftover, SECONDS_PER_BYTE};
use crate::commands::extract::record::{self, Record};
use crate::commands::extract::units::Attempt;
use crate::delta::record::{LeftOut, TensorRecord};
use crate::lora::write::shard;
use crate::pipeline::budget::{Budget, Permit};
use crate::pipeline::buffer_pool::Slabs;
use crate::pipeline::pool::pool;
use crate::quant::weight::TensorInfo;
use crate::run::attempts::recorder::Recorder;
use crate::run::progress::Progress;
use crate::run::unit::{Unit, UnitId};
use crate::storage::Keeper;
use crate::{Error, Result};

/// Modules in flight: enough for one module's serial steps to overlap another's matrix products.
const WORKERS: usize = 4;

/// One unit of work.
enum Task<'a> {
    Module(Attempt<'a>),
    Compare(&'a PlannedLeftover),
}

impl Task<'_> {
    /// Bytes that it holds while in progress.
    fn memory(&self) -> u64 {
        match self {
            Task::Module(attempt) => attempt.holding.memory,
            Task::Compare(planned) => planned.memory,
        }
    }
}

/// A unit that has been read.
enum Ready<'a> {
    Module(Box<Loaded<'a>>, Instant, Undecided<'a>, Vec<Box<dyn Keeper>>),
    Compared(&'a PlannedLeftover, LeftOut, Vec<TensorRecord>),
}

/// A unit that only has to be written.
enum Done<'a> {
    Module(Box<FinishedModule>, Duration, f64),
    Compared(&'a PlannedLeftover, LeftOut, Vec<TensorRecord>),
}

/// State shared by all stages.
struct Shared<'a> {
    inputs: &'a Inputs,
    plan: &'a ExtractionPlan,
    job: &'a Extraction,
    ahead: Ahead<'a>,
    /// Reads have their own pool, so that a blocked join cannot steal a factorization.
    reading: rayon::ThreadPool,
    factorizing: rayon::ThreadPool,
    budget: Budget,
    slabs: Slabs,
    progress: &'a dyn Progress,
    stop: AtomicBool,
    failure: Mutex<Option<Error>>,
    /// What is left to read.
    tasks: Mutex<VecDeque<Task<'a>>>,
    /// Modules in bytes that were not factorized yet: each may come back to the tasks, to be done in f32.
    undecided: AtomicUsize,
}

/// A module that was taken from the tasks and may come back to them.
struct Undecided<'a> {
    count: Option<(&'a AtomicUsize, &'a Budget)>,
}

impl Drop for Undecided<'_> {
    fn drop(&mut self) {
        if let Some((count, budget)) = self.count {
            count.fetch_sub(1, Ordering::SeqCst);
            // Readers that wait for it have to look again.
            budget.wake();
        }
    }
}

impl Shared<'_> {
    /// Keeps the first error and lets every stage finish.
    fn fail(&self, error: Error) {
        self.stop.store(true, Ordering::SeqCst);
        self.budget.wake();
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

/// Records the finished units.
type Records<'r> = Recorder<'r, Record, record::Done>;

/// Does all work of `plan` that `recorder` does not list as done.
///
/// # Errors
/// The first error of any stage. Finished modules are kept.
pub fn run(
    inputs: &Inputs,
    job: &Extraction,
    plan: &ExtractionPlan,
    recorder: &mut Records<'_>,
    progress: &dyn Progress,
) -> Result<()> {
    let tasks: VecDeque<Task<'_>> = remaining(plan, recorder, progress).into();
    let undecided = |task: &&Task<'_>| matches!(task, Task::Module(attempt) if attempt.in_bytes());
    let undecided = tasks.iter().filter(undecided).count();
    let order = tasks.iter().map(|task| match task {
        Task::Module(attempt) => Read::Module(attempt.module),
        Task::Compare(planned) => Read::Compared(planned),
    });
    let ahead = Ahead::new(inputs, order.collect());
    let shared = Shared {
        inputs,
        plan,
        job,
        ahead,
        reading: pool(plan.threads)?,
        factorizing: pool(plan.threads)?,
        budget: Budget::new(plan.budget),
        slabs: Slabs::default(),
        progress,
        stop: AtomicBool::new(false),
        failure: Mutex::new(None),
        tasks: Mutex::new(tasks),
        undecided: AtomicUsize::new(undecided),
    };
    thread::scope(|scope| {
        let (to_workers, from_readers) = bounded(0);
        let (to_writer, from_workers) = bounded(1);
        let shared = &shared;
        // Over a link one module after the other: two that share it would be here at the same time, and nothing would
        // be left to fetch while both are factorized.
        let fetched = inputs.all().any(Checkpoint::is_remote);
        let readers = if fetched { 1 } else { plan.threads.min(2) };
        for _ in 0..readers {
            let ready = to_workers.clone();
            scope.spawn(move || read(shared, &ready));
        }
        for _ in 0..plan.threads.min(WORKERS) {
            let (ready, done) = (from_readers.clone(), to_writer.clone());
            scope.spawn(move || work(shared, &ready, &done));
        }
        drop((to_workers, from_readers, to_writer));
        write(shared, recorder, &from_workers);
    });
    let failure = shared.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
    failure.map_or(Ok(()), Err)
}

/// The remaining work: modules in the plan's order, then the comparisons, which are cheap.
fn remaining<'a>(plan: &'a ExtractionPlan, recorder: &Records<'_>, progress: &dyn Progress) -> Vec<Task<'a>> {
    let (done, modules): (Vec<_>, Vec<_>) = plan.modules.iter().partition(|m| recorder.is_done(&m.unit()));
    let compared = |l: &&PlannedLeftover| recorder.is_done(&l.unit);
    let (compared, leftovers): (Vec<_>, Vec<_>) = plan.not_represented.iter().partition(compared);
    let left: u64 = modules.iter().map(|m| m.read_bytes).chain(leftovers.iter().map(|l| l.read_bytes)).sum();
    progress.expect(plan.expected(&modules, left));
    let done_bytes = done.iter().map(|m| m.read_bytes).chain(compared.iter().map(|l| l.read_bytes)).sum();
    progress.begin(plan.modules.len(), plan.read_bytes, done.len(), done_bytes);
    modules
        .into_iter()
        .map(|module| Task::Module(Attempt::first(module)))
        .chain(leftovers.into_iter().map(Task::Compare))
        .collect()
}

type Sent<'a, T> = (T, Permit<'a>);

/// Reader: takes a task and the permit for its memory, and loads the delta.
fn read<'a>(shared: &'a Shared<'a>, ready: &Sender<Sent<'a, Ready<'a>>>) {
    let count = |bytes| {
        shared.progress.read(bytes);
        shared.progress.step(bytes as f64 * SECONDS_PER_BYTE);
    };
    let more = || shared.undecided.load(Ordering::SeqCst) > 0 && !shared.stopped();
    while let Some((task, permit)) = shared.budget.first_that_fits(&shared.tasks, Task::memory, more) {
        if shared.stopped() {
            return;
        }
        // A module held in memory makes room for its slab when it obtains one.
        if !matches!(&task, Task::Module(attempt) if attempt.holding.held) {
            shared.slabs.trim(shared.budget.free());
        }
        let result = match task {
            Task::Module(attempt) => {
                let started = Instant::now();
                let count_it = attempt.in_bytes().then_some((&shared.undecided, &shared.budget));
                let undecided = Undecided { count: count_it };
                let slab = |values| shared.slabs.obtain(values, shared.budget.free());
                // What is read for the second time was counted.
                let again = |_| ();
                let count: &(dyn Fn(u64) + Sync) =
                    if attempt.missed_by_bytes.is_some() { &again } else { &count };
                let load = || load(shared.inputs, attempt, shared.job, &slab, count);
                keep(shared.inputs, &attempt).and_then(|kept| {
                    shared.ahead.begin(Read::Module(attempt.module));
                    let loaded = shared.reading.install(load);
                    shared.progress.enter(shared.plan.expected(&[attempt.module], 0));
                    loaded.map(|loaded| Ready::Module(Box::new(loaded), started, undecided, kept))
                })
            }
            Task::Compare(planned) => {
                shared.ahead.begin(Read::Compared(planned));
                let compared = shared.reading.install(|| compare(shared.inputs, &planned.leftover, &count));
                compared.map(|(left_out, tensors)| Ready::Compared(planned, left_out, tensors))
            }
        };
        match result {
            // The receivers are gone only when the run has failed.
            Ok(loaded) => drop(ready.send((loaded, permit))),
            Err(error) => shared.fail(error),
        }
    }
}

/// Worker: delta in, factors out, or back to the tasks.
fn work<'a>(
    shared: &'a Shared<'a>,
    ready: &Receiver<Sent<'a, Ready<'a>>>,
    done: &Sender<Sent<'a, Done<'a>>>,
) {
    for (ready, mut permit) in ready {
        if shared.stopped() {
            continue;
        }
        let finished = match ready {
            Ready::Compared(planned, left_out, tensors) => {
                Ok(Some(Done::Compared(planned, left_out, tensors)))
            }
            Ready::Module(loaded, started, undecided, kept) => {
                let expected = shared.plan.expected(&[loaded.attempt.module], 0);
                let spent = |slab| shared.slabs.give_back(slab);
                let factorize = || finish(shared.inputs, shared.job, *loaded, &spent);
                let finished = shared.factorizing.install(factorize);
                drop(kept);
                let finished = finished.map(|finished| match finished {
                    Finished::Done(module) => Some(Done::Module(module, started.elapsed(), expected)),
                    Finished::Coarse(attempt) => {
                        shared.progress.leave(expected);
                        let tasks = shared.tasks.lock();
                        tasks.unwrap_or_else(PoisonError::into_inner).push_front(Task::Module(attempt));
                        None
                    }
                });
                drop(undecided);
                finished
            }
        };
        match finished {
            Ok(None) => drop(permit),
            Ok(Some(finished)) => {
                if let Done::Module(module, _, _) = &finished {
                    permit.shrink((module.a.1.len() + module.b.1.len()) as u64);
                }
                drop(done.send((finished, permit)));
            }
            Err(error) => shared.fail(error),
        }
    }
}

/// Writer: a shard, then the journal's record of it.
fn write(shared: &Shared<'_>, recorder: &mut Records<'_>, done: &Receiver<Sent<'_, Done<'_>>>) {
    for (done, permit) in done {
        if shared.stopped() {
            continue;
        }
        let written = match done {
            Done::Module(finished, took, expected) => {
                shared.progress.leave(expected);
                write_module(shared, recorder, *finished, took)
            }
            Done::Compared(planned, left_out, tensors) => {
                write_compared(shared, recorder, planned, left_out, tensors)
            }
        };
        drop(permit);
        match written {
            Ok(()) => shared.progress.journaled(),
            Err(error) => shared.fail(error),
        }
    }
}

fn write_module(
    shared: &Shared<'_>,
    recorder: &mut Records<'_>,
    finished: FinishedModule,
    took: Duration,
) -> Result<()> {
    let FinishedModule { record, a, b } = finished;
    let name = record.module.name.clone();
    let dtype: Dtype = shared.job.deciding.dtype.dtype();
    let stored = |name: &str, shape: [usize; 2]| TensorInfo::new(name, dtype, shape);
    let json = serde_json::to_string(&record);
    let json = json
        .map_err(|e| Error::unexpected("cannot write a module's record as JSON").tensor(&name).because(e))?;
    let metadata = BTreeMap::from([("record".to_owned(), json)]);
    let path = recorder.results().join(shard::file_name(&name));
    let tensors = [(stored(A, a.0), &*a.1), (stored(B, b.0), &*b.1)];
    let written = Some(shard::write(&path, &tensors, &metadata)?);
    let module = record.module.clone();
    let unit = Unit {
        id: UnitId::module(&name),
        written,
        tensors: record.tensors.clone(),
        record: Record::default(),
    };
    recorder.record(unit, path, record::Done::Module(Box::new(record)))?;
    let (method, basis, passes, seconds) = (&module.method, module.basis, module.passes, took.as_secs_f64());
    recorder.log().line(&format!(
        "{name}: {method}, {}, basis {basis}, {passes} passes, {seconds:.3} s from the first byte",
        module.precision.name()
    ));
    shared.progress.module(&module, took);
    Ok(())
}

fn write_compared(
    shared: &Shared<'_>,
    recorder: &mut Records<'_>,
    planned: &PlannedLeftover,
    left_out: LeftOut,
    tensors: Vec<TensorRecord>,
) -> Result<()> {
    let id = planned.unit.clone();
    let record = Record { left_out: Some(left_out.clone()) };
    let unit = Unit { id, written: None, tensors: tensors.clone(), record };
    recorder.record(unit, PathBuf::new(), record::Done::Compared(left_out.clone(), tensors))?;
    shared.progress.compared(&left_out);
    Ok(())
}
