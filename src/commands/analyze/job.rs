//! An analysis as a job of the engine: workers take modules, largest first, one writer journals what is done, and the
//! record is written when nothing is missing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use serde::{Deserialize, Serialize};

use crate::checkpoint::Checkpoint;
use crate::commands::analyze::module::analyze_module;
use crate::commands::analyze::plan::{AnalysisPlan, PlannedAnalysis, plan};
use crate::commands::analyze::pooled;
use crate::commands::analyze::quartet::{AnalysisOptions, Analyzing, Checkpoints, Quartet, Quartets};
use crate::commands::analyze::record::{ANALYSIS, ANALYSIS_VERSION, Analysis, ModuleAnalysis};
use crate::commands::analyze::stats::significance::{FALSE_DISCOVERY_RATE, benjamini_hochberg};
use crate::commands::analyze::verdict::verdict;
use crate::delta::record::{Side, TensorRecord, source};
use crate::durable::{checksums, json_file};
use crate::pipeline::budget::Budget;
use crate::pipeline::pool::pool;
use crate::run::attempts::completed::Completed;
use crate::run::attempts::recorder::Recorder;
use crate::run::engine::{Engine, PartOutcome};
use crate::run::identity::{RunIdentity, option_map};
use crate::run::job::{Job, RunOutput};
use crate::run::layout::Layout;
use crate::run::parts::assemble::{Assembled, Assembly, Recorded};
use crate::run::parts::part_id::Part;
use crate::run::parts::partition::Share;
use crate::run::progress::Progress;
use crate::run::unit::{PlannedUnit, Unit, UnitId};
use crate::{Error, Result};

/// Modules in flight, so that the serial steps of one overlap with the products of another.
const WORKERS: usize = 3;

/// Analyzes, or resumes a stopped analysis. Returns the record, and whether an earlier run had finished it.
///
/// # Errors
/// Bad input, options that need a decision, a failing disk: see [`Kind`](crate::Kind). Finished modules stay safe, and
/// the same call resumes from there.
pub fn analyze(job: &Analyzing, progress: &dyn Progress) -> Result<(Analysis, bool)> {
    planned(job, progress, |job| {
        let ended = job.engine(progress).run()?;
        Ok((ended.output, ended.was_done))
    })
}

/// Does `part` of an analysis: the modules of its share that are not analyzed yet. Assembles nothing.
///
/// # Errors
/// Those of [`analyze`]; a folder with parts of a different run.
pub fn analyze_part(job: &Analyzing, part: Part, progress: &dyn Progress) -> Result<PartOutcome> {
    planned(job, progress, |job| job.engine(progress).part(part))
}

/// Assembles the analysis of a run whose parts are finished. Also returns whether it was already assembled.
///
/// # Errors
/// Parts of different runs; modules for which two parts have different numbers; changed checkpoints; a failing disk.
pub fn assemble(
    assembly: &Assembly,
    recorded: &Recorded,
    progress: &dyn Progress,
) -> Result<Assembled<(Analysis, bool)>> {
    let begun = match recorded {
        Recorded::Begun(begun) => begun,
        Recorded::Finished(_) => {
            let analysis = crate::run::parts::assemble::finished(assembly, ANALYSIS, &[ANALYSIS], None)?;
            return Ok(Assembled::Done((analysis, true)));
        }
    };
    let job = Analyzing {
        base: begun.place(assembly, Side::Base)?,
        base_quantized: begun.place(assembly, Side::BaseQuantized)?,
        tuned: begun.place(assembly, Side::Tuned)?,
        tuned_quantized: begun.place_if_any(assembly, Side::TunedQuantized)?,
        out: assembly.out.clone(),
        asking: begun.options(assembly)?,
        running: begun.running(assembly),
    };
    let defaults = option_map(&AnalysisOptions::default())?;
    planned(&job, progress, |job| {
        let assembled = job.engine(progress).assemble(begun, assembly.finish, &defaults)?;
        Ok(assembled.map(|ended| (ended.output, ended.was_done)))
    })
}

/// Plans `job`, and calls `act` with the plan.
fn planned<T>(
    job: &Analyzing,
    progress: &dyn Progress,
    act: impl FnOnce(&AnalyzeJob<'_>) -> Result<T>,
) -> Result<T> {
    let checkpoints = Checkpoints::open(job)?;
    let quartets = checkpoints.quartets(&job.asking)?;
    let plan = plan(&checkpoints, &quartets.modules, job)?;
    quartets.notes.iter().for_each(|note| progress.note(note));
    let identity = RunIdentity::new("analyze", &job.asking, true, checkpoints.identities())?;
    let unit = |(quartet, planned): (&Quartet<'_>, &PlannedAnalysis)| {
        PlannedUnit::new(UnitId::module(&quartet.pair.name), planned.flops, quartet.bytes())
    };
    let units = quartets.modules.iter().zip(&plan.modules).map(unit).collect();
    let layout = Layout::new(ANALYSIS, [ANALYSIS]);
    act(&AnalyzeJob {
        job,
        checkpoints: &checkpoints,
        quartets: &quartets,
        plan: &plan,
        identity,
        layout,
        units,
    })
}

/// A planned analysis.
struct AnalyzeJob<'a> {
    job: &'a Analyzing,
    checkpoints: &'a Checkpoints,
    quartets: &'a Quartets<'a>,
    plan: &'a AnalysisPlan,
    identity: RunIdentity,
    layout: Layout,
    units: Vec<PlannedUnit>,
}

/// The journal record of a module: its numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Record {
    analysis: Box<ModuleAnalysis>,
}

/// A finished module, and the tensors that were read for it.
struct Done {
    analysis: Box<ModuleAnalysis>,
    tensors: Vec<TensorRecord>,
}

impl<'a> AnalyzeJob<'a> {
    fn engine<'e>(&'e self, progress: &'e dyn Progress) -> Engine<'e, AnalyzeJob<'a>> {
        Engine { job: self, out: &self.job.out, running: &self.job.running, progress }
    }
}

impl Job for AnalyzeJob<'_> {
    type Record = Record;
    type Done = Done;
    type Output = Analysis;

    fn identity(&self) -> &RunIdentity {
        &self.identity
    }

    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn units(&self) -> &[PlannedUnit] {
        &self.units
    }

    fn places(&self) -> Vec<(Side, String)> {
        let three = [
            (Side::Base, &self.job.base),
            (Side::BaseQuantized, &self.job.base_quantized),
            (Side::Tuned, &self.job.tuned),
        ];
        let fourth = self.job.tuned_quantized.as_ref().map(|place| (Side::TunedQuantized, place));
        three.into_iter().chain(fourth).map(|(side, place)| (side, place.clone())).collect()
    }

    fn checkpoint(&self, side: Side) -> Option<&Checkpoint> {
        self.checkpoints.all().into_iter().find(|(word, _)| *word == side).map(|(_, checkpoint)| checkpoint)
    }

    fn disk_bytes(&self) -> u64 {
        /// Upper estimate of a module's bytes in the journal and in the record.
        const MODULE: u64 = 64 << 10;
        self.units.len() as u64 * MODULE + (1 << 20)
    }

    fn described(&self) -> String {
        let (threads, memory) = (self.job.running.threads, self.job.running.memory >> 20);
        format!("{threads} threads, {memory} MiB, {}", self.identity.simd.as_deref().unwrap_or_default())
    }

    fn load(&self, unit: Unit<Record>, _: &Path) -> Result<Done> {
        Ok(Done { analysis: unit.record.analysis, tensors: unit.tensors })
    }

    fn work(
        &self,
        share: &Share,
        recorder: &mut Recorder<'_, Record, Done>,
        progress: &dyn Progress,
    ) -> Result<()> {
        let pool = pool(self.job.running.threads)?;
        let tasks = self.quartets.modules.iter().zip(&self.plan.modules);
        let in_share = |quartet: &Quartet<'_>| share.contains(&UnitId::module(&quartet.pair.name));
        let mine: Vec<_> = tasks.filter(|(quartet, _)| in_share(quartet)).collect();
        let (finished, mut tasks): (Vec<_>, Vec<_>) = mine
            .iter()
            .copied()
            .partition(|(quartet, _)| recorder.is_done(&UnitId::module(&quartet.pair.name)));
        let bytes = |tasks: &[(&Quartet<'_>, &PlannedAnalysis)]| {
            tasks.iter().map(|(quartet, _)| quartet.bytes()).sum::<u64>()
        };
        progress.begin(mine.len(), bytes(&mine), finished.len(), bytes(&finished));
        // Largest first, so that the last modules are small and no thread waits long for them.
        tasks.sort_by(|a, b| b.1.flops.total_cmp(&a.1.flops).then_with(|| a.0.pair.name.cmp(&b.0.pair.name)));
        let shared = Shared {
            job: self.job,
            checkpoints: self.checkpoints,
            pool,
            budget: Budget::new(self.plan.budget),
            tasks,
            next: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            progress,
        };
        thread::scope(|scope| {
            let (sender, receiver) = bounded(0);
            for _ in 0..self.job.running.threads.min(WORKERS) {
                let (sender, shared) = (sender.clone(), &shared);
                scope.spawn(move || worker(shared, &sender));
            }
            drop(sender);
            let mut failure = None;
            for analyzed in receiver {
                let journaled = analyzed.and_then(|(done, took)| {
                    let name = done.analysis.name.clone();
                    let record = Record { analysis: done.analysis.clone() };
                    let (id, tensors) = (UnitId::module(&name), done.tensors.clone());
                    recorder.record(Unit { id, written: None, tensors, record }, PathBuf::new(), done)?;
                    progress.analyzed(&name, took);
                    progress.journaled();
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

    fn finish(&self, identity: &RunIdentity, done: &Completed<Done>, _: &dyn Progress) -> Result<Analysis> {
        let analysis = self.record(identity, done)?;
        write(&self.job.out, &analysis)?;
        Ok(analysis)
    }
}

impl RunOutput for Analysis {
    fn identity(&self) -> RunIdentity {
        RunIdentity {
            command: "analyze".into(),
            trephine: self.trephine.clone(),
            options: self.options.clone(),
            simd: Some(self.simd.clone()),
            inputs: self.inputs.clone(),
        }
    }

    fn tensors(&self) -> &[TensorRecord] {
        &self.tensors
    }
}

/// State that all workers share.
struct Shared<'a> {
    job: &'a Analyzing,
    checkpoints: &'a Checkpoints,
    pool: rayon::ThreadPool,
    budget: Budget,
    tasks: Vec<(&'a Quartet<'a>, &'a PlannedAnalysis)>,
    next: AtomicUsize,
    stop: AtomicBool,
    progress: &'a dyn Progress,
}

fn worker(shared: &Shared<'_>, sender: &Sender<Result<(Done, Duration)>>) {
    while !shared.stop.load(Ordering::SeqCst) {
        let at = shared.next.fetch_add(1, Ordering::SeqCst);
        let Some((quartet, planned)) = shared.tasks.get(at) else { return };
        let permit = shared.budget.take(planned.memory);
        let started = Instant::now();
        let count = |bytes| shared.progress.read(bytes);
        let analyzed = shared.pool.install(|| {
            let _kept = shared.checkpoints.keep(quartet)?;
            let analysis = analyze_module(shared.checkpoints, quartet, planned, &shared.job.asking, &count)?;
            Ok(Done { analysis: Box::new(analysis), tensors: shared.checkpoints.digests(quartet)? })
        });
        drop(permit);
        if sender.send(analyzed.map(|done| (done, started.elapsed()))).is_err() {
            return;
        }
    }
}

impl AnalyzeJob<'_> {
    /// Builds the record: modules in order of their names, significance over all of them, pooled sums, the verdict.
    fn record(&self, identity: &RunIdentity, done: &Completed<Done>) -> Result<Analysis> {
        let (job, checkpoints, quartets) = (self.job, self.checkpoints, self.quartets);
        let (mut modules, mut tensors) = (Vec::new(), Vec::new());
        for quartet in &quartets.modules {
            let unit = done.get(&UnitId::module(&quartet.pair.name)).ok_or_else(|| {
                Error::unexpected("a module was never finished")
                    .tensor(&quartet.pair.name)
                    .hint("run the same command again")
            })?;
            modules.push(ModuleAnalysis::clone(&unit.done.analysis));
            tensors.extend(unit.done.tensors.iter().cloned());
        }
        tensors.sort();
        tensors.dedup();
        decide(&mut modules);
        let pooled = pooled::pool(&modules);
        let (total, kinds, layers) = (pooled.total, pooled.kinds, pooled.layers);
        let tuned_quantized = checkpoints.tuned_quantized.as_ref().zip(job.tuned_quantized.as_ref());
        Ok(Analysis {
            version: ANALYSIS_VERSION,
            trephine: identity.trephine.clone(),
            options: identity.options.clone(),
            simd: identity.simd.clone().unwrap_or_default(),
            inputs: identity.timeless_inputs(),
            base: source(&job.base, &checkpoints.base),
            base_quantized: source(&job.base_quantized, &checkpoints.base_quantized),
            tuned: source(&job.tuned, &checkpoints.tuned),
            tuned_quantized: tuned_quantized.map(|(checkpoint, name)| source(name, checkpoint)),
            tuned_noise: quartets.tuned_noise.clone(),
            false_discovery_rate: FALSE_DISCOVERY_RATE,
            notes: quartets.notes.clone(),
            verdict: verdict(&total, &modules, job.asking.rank),
            total,
            kinds,
            layers,
            modules,
            left_out: quartets.left_out.clone(),
            tensors,
        })
    }
}

/// Decides, over all modules, which cosines are significant.
fn decide(modules: &mut [ModuleAnalysis]) {
    for cosine in [(|module| &mut module.change_and_noise) as fn(&mut ModuleAnalysis) -> &mut _, |module| {
        &mut module.noise_and_noise
    }] {
        let p: Vec<f64> = modules.iter_mut().map(|module| cosine(module).p_value).collect();
        let rejected = benjamini_hochberg(&p, FALSE_DISCOVERY_RATE);
        modules.iter_mut().zip(rejected).for_each(|(module, rejected)| cosine(module).significant = rejected);
    }
}

/// Writes the record and its checksum.
fn write(out: &Path, analysis: &Analysis) -> Result<()> {
    let written = json_file::write(&out.join(ANALYSIS), analysis)?;
    checksums::write(out, &BTreeMap::from([(ANALYSIS.to_owned(), written.blake3)]))?;
    Ok(())
}
