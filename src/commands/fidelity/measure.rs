//! Measures how far the served weights are from the tuned ones, with each of several adapters and without any.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rayon::prelude::*;
use serde_json::{Map, Value};

use crate::checkpoint::Checkpoint;
use crate::checkpoint::identity::{FileIdentity, Identity};
use crate::commands::fidelity::record::{
    Distances, FIDELITY_VERSION, Fidelity, FidelityAdapter, FidelityGroup, FidelityModule,
};
use crate::delta::difference::{Difference, visit_scratch};
use crate::delta::operand::Operand;
use crate::delta::options::{NonFinite, RoundBase};
use crate::delta::pair::{Pair, pair};
use crate::delta::recomputed::Recomputed;
use crate::delta::record::{Side, TensorRecord, source};
use crate::delta::select::Selection;
use crate::delta::tensor_digests::digests;
use crate::durable::digest::hash_file;
use crate::factorize::kernel::tiling;
use crate::factorize::residual;
use crate::lora::names::{Place, kind_of, place_of};
use crate::lora::read::PeftAdapter;
use crate::lora::read::classify::{ExtraKind, PeftModule};
use crate::lora::tree::BaseModules;
use crate::pipeline::memory::{THREAD, catalogue, mapped, overhead, records, room};
use crate::pipeline::options::RunOptions;
use crate::pipeline::pool::pool;
use crate::run::identity::RunIdentity;
use crate::run::progress::Progress;
use crate::storage::Keeper;
use crate::{Error, Result};

/// One measurement.
#[derive(Clone, Debug)]
pub struct Measuring {
    /// Paths or hub names of adapters, at least one.
    pub adapters: Vec<String>,
    /// Path or hub name of the checkpoint that serves them.
    pub served: String,
    /// Path or hub name of the checkpoint that the served weights should match.
    pub tuned: String,
    /// The folder that `fidelity.json` is written to, if any.
    pub out: Option<PathBuf>,
    /// Threads and memory.
    pub running: RunOptions,
}

/// A planned measurement.
pub(super) struct Measurement<'a> {
    pub job: &'a Measuring,
    pub served: Checkpoint,
    pub tuned: Checkpoint,
    pub adapters: Vec<PeftAdapter>,
    /// The modules to measure, by name.
    pub pairs: Vec<Pair>,
    notes: Vec<String>,
    visitors: usize,
    pool: rayon::ThreadPool,
}

impl<'a> Measurement<'a> {
    /// Plans a measurement.
    ///
    /// # Errors
    /// Bad input, an adapter that is not a plain LoRA, a budget that is too small.
    pub fn plan(job: &'a Measuring, progress: &dyn Progress) -> Result<Measurement<'a>> {
        let mut room = room(job.running.memory);
        let served = Checkpoint::open_within(&job.served, &mut room)?;
        let tuned = Checkpoint::open_within(&job.tuned, &mut room)?;
        let tree = BaseModules::of(&served);
        let open = |spec: &String| Ok(PeftAdapter::open(spec)?.named_for(&tree)?.0);
        let adapters = job.adapters.iter().map(open).collect::<Result<Vec<_>>>()?;
        adapters.iter().try_for_each(refuse_more_than_lora)?;
        let (pairs, notes) = pairs(&served, &tuned, &adapters)?;
        notes.iter().for_each(|note| progress.note(note));
        let visitors = visitors(job, [&served, &tuned], &pairs, &adapters)?;
        let pool = pool(job.running.threads)?;
        Ok(Measurement { job, served, tuned, adapters, pairs, notes, visitors, pool })
    }

    /// Measures every module without writing anything to disk.
    ///
    /// # Errors
    /// See [`module`](Self::module).
    pub fn whole(&self, progress: &dyn Progress) -> Result<Fidelity> {
        progress.begin(self.pairs.len(), self.pairs.iter().map(|pair| self.bytes(pair)).sum(), 0, 0);
        let mut modules = Vec::new();
        for pair in &self.pairs {
            let started = Instant::now();
            modules.push(self.module(pair)?);
            progress.read(self.bytes(pair));
            progress.analyzed(&pair.name, started.elapsed());
        }
        self.record(&self.identity()?, modules, Vec::new())
    }

    /// Everything that determines the numbers.
    ///
    /// # Errors
    /// An adapter that cannot be read.
    pub fn identity(&self) -> Result<RunIdentity> {
        // Each adapter's number comes before its files' names: the order of the adapters is that of the columns.
        let mut files = Vec::new();
        for (index, adapter) in self.adapters.iter().enumerate() {
            let numbered = adapter.identity()?.files.into_iter();
            files.extend(
                numbered.map(|file| FileIdentity { name: format!("{}/{}", index + 1, file.name), ..file }),
            );
        }
        let inputs = BTreeMap::from([
            (Side::Served, self.served.identity().clone()),
            (Side::Tuned, self.tuned.identity().clone()),
            (Side::Adapter, Identity { files }),
        ]);
        RunIdentity::new("fidelity", &Map::<String, Value>::new(), true, inputs)
    }

    /// Stored bytes of a module in both checkpoints.
    pub fn bytes(&self, pair: &Pair) -> u64 {
        let modules = [self.served.module(&pair.name), self.tuned.module(&pair.tuned)];
        modules.into_iter().flatten().map(|module| module.size()).sum()
    }

    /// Measures one module.
    ///
    /// # Errors
    /// Errors of reading; factors whose shape differs from the weight's.
    pub fn module(&self, pair: &Pair) -> Result<FidelityModule> {
        self.pool.install(|| measure(&self.served, &self.tuned, pair, &self.adapters, self.visitors))
    }

    /// The digests of the tensors that a module is read from, in both checkpoints.
    ///
    /// # Errors
    /// A tensor that cannot be read.
    pub fn digests(&self, pair: &Pair) -> Result<Vec<TensorRecord>> {
        let sides = [(Side::Served, &self.served, &pair.name), (Side::Tuned, &self.tuned, &pair.tuned)];
        let operand = |(side, checkpoint, name): (Side, &'_ Checkpoint, &String)| {
            let module = Checkpoint::module(checkpoint, name)
                .ok_or_else(|| Error::unexpected("a paired module is missing").tensor(name))?;
            digests(Operand { side, checkpoint, module }, &|_| ())
        };
        let records: Vec<Vec<TensorRecord>> =
            self.pool.install(|| sides.into_par_iter().map(operand).collect::<Result<_>>())?;
        Ok(records.concat())
    }

    /// Keeps what comes from a server until the result is dropped: a module is read for every adapter.
    ///
    /// # Errors
    /// A scratch folder that cannot be written to.
    pub fn keep(&self, pair: &Pair) -> Result<Vec<Box<dyn Keeper>>> {
        let mut kept = Vec::new();
        for (checkpoint, name) in [(&self.served, &pair.name), (&self.tuned, &pair.tuned)] {
            if let Some(module) = Checkpoint::module(checkpoint, name) {
                kept.extend(checkpoint.keep_to_reread(module)?);
            }
        }
        Ok(kept)
    }

    /// The record of all `modules`.
    ///
    /// # Errors
    /// An adapter that cannot be read.
    pub fn record(
        &self,
        identity: &RunIdentity,
        modules: Vec<FidelityModule>,
        mut tensors: Vec<TensorRecord>,
    ) -> Result<Fidelity> {
        tensors.sort();
        tensors.dedup();
        Ok(Fidelity {
            version: FIDELITY_VERSION,
            trephine: identity.trephine.clone(),
            simd: identity.simd.clone().unwrap_or_default(),
            inputs: identity.timeless_inputs(),
            served: source(&self.job.served, &self.served),
            tuned: source(&self.job.tuned, &self.tuned),
            adapters: described(&self.adapters, &self.job.adapters)?,
            notes: self.notes.clone(),
            total: together(modules.iter(), self.adapters.len()),
            kinds: kinds(&modules, self.adapters.len()),
            modules,
            tensors,
        })
    }
}

/// Refuses an adapter that changes weights by other means than `B·A`, which cannot be measured.
fn refuse_more_than_lora(adapter: &PeftAdapter) -> Result<()> {
    let hint =
        "try `trephine sanitize` to turn it into a plain LoRA, or merge it and compare the checkpoints";
    let refuse = |what: String| Error::input(what).path(adapter.root()).hint(hint);
    if adapter.config().is("use_dora") {
        return Err(refuse("the adapter uses DoRA, whose weights are not a base plus B·A".into()));
    }
    if let Some(init) = adapter.config().init_that_changes_the_base() {
        return Err(refuse(format!(
            "the adapter's init_lora_weights '{init}' changes the base's own weights"
        )));
    }
    if let Some(stack) = adapter.modules().find(|module| module.experts() > 1) {
        return Err(refuse("the adapter changes a stack of fused experts".into()).tensor(stack.name()));
    }
    Ok(())
}

/// The modules to measure, by name, and remarks.
fn pairs(
    served: &Checkpoint,
    tuned: &Checkpoint,
    adapters: &[PeftAdapter],
) -> Result<(Vec<Pair>, Vec<String>)> {
    let targets: BTreeSet<&str> =
        adapters.iter().flat_map(PeftAdapter::modules).map(PeftModule::name).collect();
    let others = targets.iter().filter(|name| !place_of(name).by_default()).map(|name| (*name).to_owned());
    let include: Vec<String> = std::iter::once("linear".to_owned()).chain(others).collect();
    let pairing = pair(served, tuned, &Selection::parse(&include, &[])?, true)?;
    let mut notes = pairing.notes;
    let mut pairs = pairing.pairs;
    pairs.sort_by(|a, b| a.name.cmp(&b.name));
    let known: BTreeSet<&str> = pairs.iter().map(|pair| pair.name.as_str()).collect();
    for adapter in adapters {
        let folder = adapter.root().display();
        let missing: Vec<&str> =
            adapter.modules().map(PeftModule::name).filter(|name| !known.contains(name)).collect();
        if let Some(first) = missing.first() {
            let (count, total) = (missing.len(), adapter.modules().len());
            notes.push(format!(
                "{count} of {total} modules of {folder} are not measured: no such pair, for example '{first}'"
            ));
        }
        let ignored = |kind| !matches!(kind, ExtraKind::BaseCopy | ExtraKind::Norm | ExtraKind::Bias);
        if let Some(extra) = adapter.extras().iter().find(|extra| ignored(extra.kind)) {
            let (name, words) = (extra.tensor.name(), extra.kind.words());
            notes.push(format!(
                "what {folder} holds besides factors is not measured, for example '{name}' ({words})"
            ));
        }
    }
    Ok((pairs, notes))
}

/// How many threads may hold a panel at once.
fn visitors(
    job: &Measuring,
    checkpoints: [&Checkpoint; 2],
    pairs: &[Pair],
    adapters: &[PeftAdapter],
) -> Result<usize> {
    /// Rows that each thread compares at a time.
    const ROWS: u64 = 64;
    let (threads, memory) = (job.running.threads, job.running.memory);
    let catalogues: u64 = checkpoints.iter().map(|c| catalogue(c) + records(c)).sum();
    let pages: u64 = checkpoints.iter().map(|c| mapped(c)).sum();
    let rank = adapters.iter().map(PeftAdapter::rank).max().unwrap_or(0) as u64;
    let (mut panel, mut factors, mut row, mut kept) = (0, 0, 0, 0);
    for pair in pairs {
        let [m, n] = [pair.rows, pair.shape[1]];
        panel = panel.max((4 * tiling::panel_rows(m, n).1 * n) as u64);
        // As stored, and as transposed or scaled.
        factors = factors.max(8 * (pair.shape[0] + n) as u64 * rank);
        row = row.max(4 * n as u64);
        let sides = [checkpoints[0].module(&pair.name), checkpoints[1].module(&pair.tuned)];
        let sides =
            checkpoints.iter().zip(sides).filter_map(|(checkpoint, module)| Some((checkpoint, module?)));
        kept =
            kept.max(sides.map(|(c, module)| module.kept_size() as u64 + c.memory_to_reread(module)).sum());
    }
    let fixed = overhead()
        + threads as u64 * (THREAD + visit_scratch(kept > 0) + ROWS * row + pages)
        + catalogues
        + factors
        + kept;
    crate::pipeline::ordered_panels::threads_within(threads, memory, fixed, panel)
}

fn measure(
    served: &Checkpoint,
    tuned: &Checkpoint,
    pair: &Pair,
    adapters: &[PeftAdapter],
    visitors: usize,
) -> Result<FidelityModule> {
    let operand = |side, checkpoint, name: &str| match Checkpoint::module(checkpoint, name) {
        Some(module) => Ok(Operand { side, checkpoint, module }),
        None => Err(Error::unexpected("a paired module is missing").tensor(name)),
    };
    let (base, tuned) =
        (operand(Side::Served, served, &pair.name)?, operand(Side::Tuned, tuned, &pair.tuned)?);
    let difference = Difference::new(base, tuned, pair.rows, RoundBase::None, NonFinite::Fail)?;
    let delta = Recomputed::new(difference, visitors);
    let (mut without, mut with, mut ranks) = (None, Vec::new(), Vec::new());
    for adapter in adapters {
        let Some(module) = adapter.module(&pair.name) else {
            with.push(None);
            ranks.push(0);
            continue;
        };
        let (left, right) = factors(adapter, module, pair)?;
        let not_finite = |what: &str| {
            let hint = "`trephine autopsy` tells what is wrong with an adapter";
            Error::input(what).tensor(module.name()).path(adapter.root()).hint(hint)
        };
        if left.iter().chain(&right).any(|value| !value.is_finite()) {
            return Err(not_finite("a factor of the adapter, with its scale, is NaN or infinite"));
        }
        let measured = residual::residual(&delta, &left, &right)?;
        if !measured.norm2.is_finite() || !measured.residual2.is_finite() {
            return Err(not_finite("the adapter's change is too large to be measured"));
        }
        without = Some(measured.norm2);
        with.push(Some(measured.residual2));
        ranks.push(module.rank());
    }
    let without = match without {
        Some(norm2) => norm2,
        None => residual::residual(&delta, &[], &[])?.norm2,
    };
    let with = with.into_iter().map(|residual2| residual2.unwrap_or(without)).collect();
    Ok(FidelityModule {
        name: pair.name.clone(),
        kind: kind_of(&pair.name).to_owned(),
        shape: pair.shape,
        ranks,
        distances: distances(without, with),
    })
}

/// The adapter's factors of the weight: `left` `[rows, r]`, with the scale in it, and `right` `[r, in]`.
fn factors(adapter: &PeftAdapter, module: &PeftModule, pair: &Pair) -> Result<(Vec<f32>, Vec<f32>)> {
    let read = adapter.factors(module)?;
    let ([out, inner], r) = (module.shape(), module.rank());
    let embedding = module.place() == Place::Embedding;
    let shape = if embedding { [inner, out] } else { [out, inner] };
    if shape != pair.shape {
        let what = format!(
            "the adapter's factors are for a weight of shape {shape:?}, but the served one has {:?}",
            pair.shape
        );
        return Err(Error::input(what)
            .tensor(module.name())
            .path(adapter.root())
            .hint("the adapter belongs to another model"));
    }
    let (mut left, right) = match embedding {
        true => (transposed(&read.a, r, inner), transposed(&read.b, out, r)),
        false => (read.b, read.a),
    };
    left.truncate(pair.rows * r);
    let scale = module.scale();
    if scale != 1.0 {
        left.iter_mut().for_each(|value| *value = (f64::from(*value) * scale) as f32);
    }
    Ok((left, right))
}

fn transposed(values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|col| (0..rows).map(move |row| values[row * cols + col])).collect()
}

/// The distances, from their squares.
fn distances(without2: f64, with2: Vec<f64>) -> Distances {
    let ratio = |with2: &f64| match (without2 > 0.0, *with2 > 0.0) {
        (true, _) => Some((with2 / without2).sqrt()),
        (false, false) => Some(1.0),
        (false, true) => None,
    };
    let ratio = with2.iter().map(ratio).collect();
    Distances { without: without2.sqrt(), with: with2.into_iter().map(f64::sqrt).collect(), ratio }
}

fn together<'a>(modules: impl Iterator<Item = &'a FidelityModule>, adapters: usize) -> Distances {
    let (mut without, mut with) = (0.0, vec![0.0; adapters]);
    for module in modules {
        without += module.distances.without.powi(2);
        with.iter_mut().zip(&module.distances.with).for_each(|(sum, distance)| *sum += distance.powi(2));
    }
    distances(without, with)
}

fn kinds(modules: &[FidelityModule], adapters: usize) -> Vec<FidelityGroup> {
    let mut kinds: BTreeMap<&str, Vec<&FidelityModule>> = BTreeMap::new();
    modules.iter().for_each(|module| kinds.entry(&module.kind).or_default().push(module));
    let group = |(kind, modules): (&str, Vec<&FidelityModule>)| FidelityGroup {
        name: kind.to_owned(),
        modules: modules.len(),
        distances: together(modules.into_iter(), adapters),
    };
    kinds.into_iter().map(group).collect()
}

fn described(adapters: &[PeftAdapter], specs: &[String]) -> Result<Vec<FidelityAdapter>> {
    let short = |adapter: &PeftAdapter, spec: &str| match adapter.root().file_name() {
        Some(name) if Path::new(spec).exists() => name.to_string_lossy().into_owned(),
        _ => spec.to_owned(),
    };
    let names: Vec<String> = adapters.iter().zip(specs).map(|(adapter, spec)| short(adapter, spec)).collect();
    let describe = |(index, adapter): (usize, &PeftAdapter)| {
        let least = adapter.modules().map(PeftModule::rank).min();
        let alone = names.iter().filter(|name| **name == names[index]).count() == 1;
        Ok(FidelityAdapter {
            name: if alone { names[index].clone() } else { specs[index].clone() },
            blake3: hash_file(&adapter.root().join(crate::lora::WEIGHTS))?.blake3.to_hex().to_string(),
            modules: adapter.modules().len(),
            ranks: [least.unwrap_or(0), adapter.rank()],
        })
    };
    adapters.iter().enumerate().map(describe).collect()
}
