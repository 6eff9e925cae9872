//! An analysis from its checkpoints to its folder: workers take modules, largest first, one writer journals what is done, and the
//! record is written when nothing is missing.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};

use crate::commands::analyze::module::analyze_module;
use crate::commands::analyze::plan::{Plan, PlannedAnalysis, plan};
use crate::commands::analyze::pooled;
use crate::commands::analyze::quartet::{Analyzing, Checkpoints, Quartet, Quartets};
use crate::commands::analyze::record::{ANALYSIS, ANALYSIS_VERSION, Analysis, ModuleAnalysis};
use crate::commands::analyze::resume::{Begin, Entry, Found, journal_path, open};
use crate::commands::analyze::stats::significance::{FALSE_DISCOVERY_RATE, benjamini_hochberg};
use crate::commands::analyze::verdict::verdict;
use crate::delta::record::source;
use crate::durable::journal::Journal;
use crate::durable::lock::Lock;
use crate::durable::{atomic_file, checksums, folder};
use crate::pipeline::budget::Budget;
use crate::run::progress::Progress;
use crate::{Error, Result};

/// Modules in flight, so that one's serial steps hide behind another's products.
const WORKERS: usize = 3;

/// Analyzes, or goes on with an analysis that was stopped. Gives the record, and whether an earlier run had finished it.
///
/// # Errors
/// Bad input, options that need a decision, a failing disk: see [`Kind`](crate::Kind). Finished modules stay safe, and the same call
/// goes on from there.
pub fn analyze(job: &Analyzing, progress: &dyn Progress) -> Result<(Analysis, bool)> {
    let all = Checkpoints::open(job)?;
    let quartets = all.quartets(&job.asking)?;
    let plan = plan(&all, &quartets.modules, job)?;
    quartets.notes.iter().for_each(|note| progress.note(note));
    let begin = Begin::new(job, &all)?;
    let (mut journal, mut done, lock) = match open(job, &begin)? {
        Found::Done(analysis) => return Ok((*analysis, true)),
        Found::Open { journal, done, lock } => (journal, done, lock),
    };
    work(job, &all, &quartets, &plan, &mut journal, &mut done, progress)?;
    progress.assembling();
    let analysis = assemble(job, &all, quartets, &begin, done)?;
    write(&job.out, &analysis)?;
    tidy(lock, &job.out)?;
    Ok((analysis, false))
}

/// What every worker sees.
struct Shared<'a> {
    job: &'a Analyzing,
    all: &'a Checkpoints,
    pool: rayon::ThreadPool,
    budget: Budget,
    tasks: Vec<(&'a Quartet<'a>, &'a PlannedAnalysis)>,
    next: AtomicUsize,
    stop: AtomicBool,
    progress: &'a dyn Progress,
}

type Sent = Result<(Box<ModuleAnalysis>, Duration)>;

fn work(
    job: &Analyzing,
    all: &Checkpoints,
    quartets: &Quartets<'_>,
    plan: &Plan,
    journal: &mut Journal<Entry>,
    done: &mut HashMap<String, ModuleAnalysis>,
    progress: &dyn Progress,
) -> Result<()> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(job.running.threads).build();
    let pool = pool.map_err(|e| Error::unexpected("cannot start the threads").because(e))?;
    let (finished, mut tasks): (Vec<_>, Vec<_>) =
        quartets.modules.iter().zip(&plan.modules).partition(|(of, _)| done.contains_key(&of.pair.name));
    let bytes =
        |tasks: &[(&Quartet<'_>, &PlannedAnalysis)]| tasks.iter().map(|(of, _)| of.bytes()).sum::<u64>();
    let (done_bytes, left) = (bytes(&finished), bytes(&tasks));
    progress.begin(quartets.modules.len(), done_bytes + left, finished.len(), done_bytes);
    // The largest first: what is left at the end is small, and no thread waits long for the last one.
    tasks.sort_by(|a, b| b.1.flops.total_cmp(&a.1.flops).then_with(|| a.0.pair.name.cmp(&b.0.pair.name)));
    let shared = Shared {
        job,
        all,
        pool,
        budget: Budget::new(plan.budget),
        tasks,
        next: AtomicUsize::new(0),
        stop: AtomicBool::new(false),
        progress,
    };
    thread::scope(|scope| {
        let (give, take) = bounded(0);
        for _ in 0..job.running.threads.min(WORKERS) {
            let (give, shared) = (give.clone(), &shared);
            scope.spawn(move || worker(shared, &give));
        }
        drop(give);
        let mut failure = None;
        for sent in take {
            let journaled = sent.and_then(|(module, took)| {
                journal.append(&Entry::Module(module.clone()))?;
                progress.analyzed(&module.name, took);
                progress.journaled();
                done.insert(module.name.clone(), *module);
                Ok(())
            });
            if let Err(error) = journaled {
                shared.stop.store(true, Ordering::SeqCst);
                failure.get_or_insert(error);
            }
        }
        failure.map_or(Ok(()), Err)
    })
}

fn worker(shared: &Shared<'_>, give: &Sender<Sent>) {
    while !shared.stop.load(Ordering::SeqCst) {
        let at = shared.next.fetch_add(1, Ordering::SeqCst);
        let Some((of, planned)) = shared.tasks.get(at) else { return };
        let permit = shared.budget.take(planned.memory);
        let started = Instant::now();
        let count = |bytes| shared.progress.read(bytes);
        let analyzed =
            shared.pool.install(|| analyze_module(shared.all, of, planned, &shared.job.asking, &count));
        drop(permit);
        let sent = analyzed.map(|module| (Box::new(module), started.elapsed()));
        if give.send(sent).is_err() {
            return;
        }
    }
}

/// The record: modules in the order of their names, decisions over all of them, sums, words.
fn assemble(
    job: &Analyzing,
    all: &Checkpoints,
    quartets: Quartets<'_>,
    begin: &Begin,
    mut done: HashMap<String, ModuleAnalysis>,
) -> Result<Analysis> {
    let mut modules = Vec::new();
    for of in &quartets.modules {
        modules.push(done.remove(&of.pair.name).ok_or_else(|| {
            Error::unexpected("a module was never finished")
                .tensor(&of.pair.name)
                .hint("run the same command again")
        })?);
    }
    decide(&mut modules);
    let pooled = pooled::pool(&modules);
    let (total, kinds, layers) = (pooled.total, pooled.kinds, pooled.layers);
    let tuned_quantized = all.tuned_quantized.as_ref().zip(job.tuned_quantized.as_ref());
    Ok(Analysis {
        version: ANALYSIS_VERSION,
        trephine: begin.trephine.clone(),
        options: begin.options.clone(),
        simd: begin.simd.clone(),
        inputs: begin.inputs.iter().map(|(word, identity)| (word.clone(), identity.timeless())).collect(),
        base: source(&job.base, &all.base),
        base_quantized: source(&job.base_quantized, &all.base_quantized),
        tuned: source(&job.tuned, &all.tuned),
        tuned_quantized: tuned_quantized.map(|(checkpoint, name)| source(name, checkpoint)),
        tuned_noise: quartets.tuned_noise,
        false_discovery_rate: FALSE_DISCOVERY_RATE,
        notes: quartets.notes,
        verdict: verdict(&total, &modules, job.asking.rank),
        total,
        kinds,
        layers,
        modules,
        left_out: quartets.left_out,
    })
}

/// Decides over all modules which cosines are more than chance.
fn decide(modules: &mut [ModuleAnalysis]) {
    for of in [(|module| &mut module.change_and_noise) as fn(&mut ModuleAnalysis) -> &mut _, |module| {
        &mut module.noise_and_noise
    }] {
        let p: Vec<f64> = modules.iter_mut().map(|module| of(module).p_value).collect();
        let rejected = benjamini_hochberg(&p, FALSE_DISCOVERY_RATE);
        modules.iter_mut().zip(rejected).for_each(|(module, rejected)| of(module).significant = rejected);
    }
}

fn write(out: &Path, analysis: &Analysis) -> Result<()> {
    let json = serde_json::to_string_pretty(analysis)
        .map_err(|e| Error::unexpected("cannot write the analysis as JSON").because(e))?;
    let written = atomic_file::write(&out.join(ANALYSIS), |file| {
        file.write_all(json.as_bytes())?;
        file.write_all(b"\n")
    })?;
    checksums::write(out, &[(ANALYSIS.to_owned(), written.blake3)].into())?;
    Ok(())
}

/// Removes what only an unfinished run needs; the lock last.
fn tidy(lock: Lock, out: &Path) -> Result<()> {
    let journal = journal_path(out);
    if let Err(e) = fs::remove_file(&journal)
        && e.kind() != std::io::ErrorKind::NotFound
    {
        return Err(Error::unexpected("cannot remove what the run no longer needs")
            .path(&journal)
            .because(e));
    }
    lock.remove()?;
    folder::sync(out)
}
