//! What a run will do, as a value that can be shown before any work is done.

use crate::calibration::KnownInput;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::catalogue::Tensor;
use crate::checkpoint::module::Module;
use crate::commands::extract::inputs::Inputs;
use crate::commands::extract::norm::{self, Work};
use crate::commands::extract::options::Extraction;
use crate::delta::difference::{PIECE_SCRATCH, VISIT_SCRATCH};
use crate::delta::module_record::Minimized;
use crate::delta::pair::{Leftover, Pair, Pairing, pair};
use crate::delta::record::{LeftOut, Reason};
use crate::delta::select::Selection;
use crate::factorize::choose;
use crate::factorize::kernel::tiling;
use crate::factorize::types::{Method, Request};
use crate::lora::names::{Place, group_of};
use crate::pipeline::memory::{CATALOGUE_ENTRY, OVERHEAD, THREAD, mapped};
use crate::{Error, Result};
use std::time::Instant;

use serde::Serialize;

/// One module's part of the work.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedModule {
    /// As the base names it.
    pub name: String,
    /// `[out, in]` in the base.
    pub shape: [usize; 2],
    /// How it will be factorized.
    pub method: String,
    /// Whether its delta is held in memory, or recomputed at every pass.
    pub held: bool,
    /// How many threads may hold a panel of it where it is recomputed.
    pub visitors: usize,
    /// Bytes that it takes while it is worked on.
    pub memory: u64,
    /// Floating-point operations of the cost model.
    pub flops: f64,
    /// Bytes of tensors to read, once.
    pub read_bytes: u64,
    /// Which error its factors will be the least in, where the run knows of more than that of the weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimizes: Option<Minimized>,
    /// What its inputs are like.
    #[serde(skip)]
    pub calibrated: Option<KnownInput>,
    /// The pair itself.
    #[serde(skip)]
    pub pair: Pair,
}

/// A tensor that the adapter will not hold.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedLeftover {
    /// Its name.
    pub name: String,
    /// Why it is left out.
    pub reason: Reason,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Bytes to read for its comparison.
    pub read_bytes: u64,
    /// Bytes that the comparison keeps resident.
    pub memory: u64,
    /// By which names to compare it.
    #[serde(skip)]
    pub leftover: Leftover,
}

impl PlannedLeftover {
    /// What tells it from every other, as [`LeftOut::key`] does.
    pub fn key(&self) -> String {
        self.blank().key()
    }

    /// As it will be reported, before its values are compared.
    pub fn blank(&self) -> LeftOut {
        self.leftover.blank()
    }
}

/// The whole plan.
#[derive(Clone, Debug, Serialize)]
pub struct ExtractionPlan {
    /// Remarks for the user.
    pub notes: Vec<String>,
    /// The work, in the order in which it is begun.
    pub modules: Vec<PlannedModule>,
    /// Modules that get zero factors: servers fuse them with extracted ones.
    pub zeros: Vec<(String, [usize; 2])>,
    /// What the adapter will not hold.
    pub not_represented: Vec<PlannedLeftover>,
    /// The promise: peak resident memory of the process in bytes.
    pub memory: u64,
    /// The least promise that could be kept.
    pub least_memory: u64,
    /// What modules may hold together.
    pub budget: u64,
    /// Threads.
    pub threads: usize,
    /// Bytes of tensors to read.
    pub read_bytes: u64,
    /// Bytes that the output folder takes at its fullest.
    pub disk_bytes: u64,
    /// Estimate of the run's time in seconds.
    pub seconds: f64,
}

/// The factorization that is asked of every module.
pub fn request(job: &Extraction) -> Request {
    let deciding = &job.deciding;
    Request {
        rank: deciding.rank,
        energy: deciding.energy,
        tolerance: deciding.tolerance,
        method: deciding.method,
        seed: deciding.seed,
    }
}

impl ExtractionPlan {
    /// Plans the work.
    ///
    /// # Errors
    /// Options that no run can be made with, checkpoints that do not belong together, a memory budget below what
    /// would do.
    pub fn make(inputs: &Inputs, job: &Extraction) -> Result<ExtractionPlan> {
        job.deciding.check()?;
        let selection = Selection::parse(&job.deciding.include, &job.deciding.exclude)?;
        let pairing = pair(&inputs.base, &inputs.tuned, &selection, job.deciding.trim_vocab)?;
        check_served(inputs, &pairing)?;
        norm::check(inputs, job, &pairing)?;
        let Pairing { pairs, zeros, leftovers, notes } = pairing;
        let mut plan = ExtractionPlan {
            notes,
            modules: Vec::new(),
            zeros,
            not_represented: leftovers.into_iter().map(|l| compared(inputs, l)).collect(),
            memory: job.running.memory,
            least_memory: 0,
            budget: 0,
            threads: job.running.threads,
            read_bytes: 0,
            disk_bytes: 0,
            seconds: 0.0,
        };
        plan.notes.extend(padding(&pairs, job.deciding.rank));
        plan.notes.extend(norm::notes(inputs, &pairs)?);
        plan.fit(inputs, job, pairs)?;
        plan.add_up(job);
        Ok(plan)
    }

    /// Chooses for each module whether its delta is held, within the memory that is promised.
    fn fit(&mut self, inputs: &Inputs, job: &Extraction, pairs: Vec<Pair>) -> Result<()> {
        let cost = |pair| Cost::of(pair, inputs, job);
        let mut costs: Vec<Cost> = pairs.into_iter().map(cost).collect::<Result<_>>()?;
        // The largest first: what is left at the end is small, and no thread waits long for the last one.
        costs.sort_by(|a, b| b.flops.total_cmp(&a.flops).then_with(|| a.pair.name.cmp(&b.pair.name)));
        let entries =
            [Some(&inputs.base), Some(&inputs.tuned), inputs.served.as_ref(), inputs.dense.as_ref()];
        let entries = entries.into_iter().flatten();
        let entries: usize = entries.map(|one| one.tensors().len().max(one.modules().len())).sum();
        let [served, dense] = [&inputs.served, &inputs.dense].map(|other| other.as_ref().map_or(0, mapped));
        let mapped = mapped(&inputs.base).max(served).max(dense) + mapped(&inputs.tuned);
        let whole =
            costs.iter().any(|cost| cost.kept > 0) || self.not_represented.iter().any(|l| l.memory > 0);
        let scratch = if whole { VISIT_SCRATCH } else { PIECE_SCRATCH };
        // Those that read and those that factorize.
        let threads = self.threads as u64 * (THREAD + 2 * (scratch + mapped));
        let fixed = OVERHEAD + threads + entries as u64 * CATALOGUE_ENTRY;
        let needed = costs.iter().map(|cost| cost.recomputed(1));
        let needed = needed.chain(self.not_represented.iter().map(|l| l.memory)).max().unwrap_or(0);
        self.least_memory = (fixed + needed).next_multiple_of(1 << 20);
        if self.memory < self.least_memory {
            let [given, least] = [self.memory, self.least_memory].map(|bytes| bytes >> 20);
            let what = format!("{given} MiB of memory do not do: {least} MiB would");
            let largest =
                costs.iter().max_by_key(|cost| cost.recomputed(1)).map(|cost| cost.pair.name.clone());
            let hint = format!("--memory {least}MiB; fewer --threads and a lower --rank need less");
            return Err(Error::decide(what).tensor(largest.unwrap_or_default()).hint(hint));
        }
        self.budget = self.memory - fixed;
        self.modules = costs.into_iter().map(|cost| cost.plan(self.budget, self.threads)).collect();
        Ok(())
    }

    fn add_up(&mut self, job: &Extraction) {
        let wide = (job.deciding.rank as u64).saturating_mul(job.deciding.dtype.bytes() as u64);
        let factors = |[m, n]: [usize; 2]| ((m + n) as u64).saturating_mul(wide);
        let shapes = self.modules.iter().map(|m| m.shape).chain(self.zeros.iter().map(|(_, shape)| *shape));
        // The shards and the adapter stand beside each other until the adapter is whole.
        let both = shapes.map(|shape| factors(shape).saturating_mul(2).saturating_add(1 << 14));
        self.disk_bytes = both.fold(1 << 20, u64::saturating_add);
        let modules = self.modules.iter().map(|m| m.read_bytes);
        self.read_bytes = modules.chain(self.not_represented.iter().map(|l| l.read_bytes)).sum();
        let flops: f64 = self.modules.iter().map(|m| m.flops).sum();
        // Reading hides behind the products, but for what is read from a slow disk: that cannot be known here.
        self.seconds = flops / (product_rate() * self.threads as f64) + self.read_bytes as f64 / 4e9;
    }
}

/// The costs of one module.
struct Cost {
    pair: Pair,
    method: Method,
    flops: f64,
    /// The delta in f32.
    delta: u64,
    /// One panel.
    panel: u64,
    /// What the factorization and the finished factors take.
    work: u64,
    /// Stored bytes that are mapped as long as the delta is read: of formats packed along columns.
    kept: u64,
    /// Whether the delta from what will serve is measured after the factorization.
    served: bool,
    read_bytes: u64,
    minimizes: Option<Minimized>,
    calibrated: Option<KnownInput>,
}

impl Cost {
    fn of(pair: Pair, inputs: &Inputs, job: &Extraction) -> Result<Cost> {
        let request = request(job);
        let (m, n) = (pair.rows, pair.shape[1]);
        let k = request.rank.min(m).min(n);
        let served = if inputs.served.is_some() { 2.0 * (m * n * k) as f64 } else { 0.0 };
        let (_, panel_rows) = tiling::panel_rows(m, n);
        // After the factorization's own work is over: factors as computed, as rounded, as bytes, and the two blocks of
        // twice their width that the rounding error is measured with.
        let factors = (pair.shape[0] + n) * k * (4 + 4 + 8 + job.deciding.dtype.bytes());
        let bytes = |checkpoint: &Checkpoint, name: &str| checkpoint.module(name).map_or(0, Module::size);
        let kept_for = inputs.served.as_ref().map_or(0, |served| kept(served, &pair.name));
        let dense = inputs.dense.as_ref();
        let kept_dense = dense.map_or(0, |dense| kept(dense, &pair.name) + kept(&inputs.tuned, &pair.tuned));
        let panel = (panel_rows * n * 4) as u64;
        // The change is computed anew at every pass.
        let change = dense.map_or(0, |_| panel * job.running.threads as u64 + kept_dense);
        let calibrated = norm::input(inputs, &pair)?;
        let Work { method, flops, bytes: workspace } =
            Work::of(m, n, &request, calibrated.as_ref(), dense.is_some());
        Ok(Cost {
            kept: kept(&inputs.base, &pair.name).max(kept_for) + kept(&inputs.tuned, &pair.tuned),
            served: inputs.served.is_some(),
            method,
            flops: flops + served,
            delta: (m * n * 4) as u64,
            panel,
            work: workspace.max(factors) as u64 + change,
            read_bytes: bytes(&inputs.base, &pair.name)
                + bytes(&inputs.tuned, &pair.tuned)
                + dense.map_or(0, |dense| bytes(dense, &pair.name) + bytes(&inputs.tuned, &pair.tuned)),
            minimizes: norm::minimized(inputs, calibrated.as_ref()),
            calibrated,
            pair,
        })
    }

    /// Once the delta is held its sides are read no more, but for what will serve.
    fn held(&self) -> u64 {
        self.delta + if self.served { self.work + self.kept } else { self.work.max(self.kept) }
    }

    fn recomputed(&self, visitors: usize) -> u64 {
        (self.panel * visitors as u64).min(self.delta) + self.work + self.kept
    }

    fn plan(self, budget: u64, threads: usize) -> PlannedModule {
        let held = self.held() <= budget;
        let visitors = (1..=threads).rev().find(|&v| self.recomputed(v) <= budget).unwrap_or(1);
        PlannedModule {
            name: self.pair.name.clone(),
            shape: self.pair.shape,
            method: self.method.name().to_owned(),
            held,
            visitors,
            memory: if held { self.held() } else { self.recomputed(visitors) },
            flops: self.flops,
            read_bytes: self.read_bytes,
            minimizes: self.minimizes,
            calibrated: self.calibrated,
            pair: self.pair,
        }
    }
}

/// A rank that no module can make use of costs disk, and the memory of whoever serves it, for nothing.
fn padding(pairs: &[Pair], rank: usize) -> Option<String> {
    let widest = pairs.iter().map(|pair| pair.rows.min(pair.shape[1])).max().unwrap_or(0);
    (rank > widest).then(|| {
        format!(
            "no module has more than {widest} singular values: --rank {widest} holds all, the rest is zeros"
        )
    })
}

/// The stored bytes of a module that stay mapped while it is read.
fn kept(checkpoint: &Checkpoint, name: &str) -> u64 {
    checkpoint.module(name).map_or(0, Module::kept_size) as u64
}

/// What will be read for the comparison of a tensor that is left out.
fn compared(inputs: &Inputs, leftover: Leftover) -> PlannedLeftover {
    let both = leftover.base.is_some() && leftover.tuned.is_some() && leftover.reason != Reason::ShapeDiffers;
    let of = |checkpoint: &Checkpoint, name: &Option<String>| {
        let name = name.as_deref().unwrap_or_default();
        match checkpoint.module(name) {
            Some(module) => module.size(),
            None => checkpoint.tensor(name).map_or(0, Tensor::size),
        }
    };
    let (mut read_bytes, mut memory) = (0, 0);
    if both {
        for (checkpoint, name) in [(&inputs.base, &leftover.base), (&inputs.tuned, &leftover.tuned)] {
            read_bytes += of(checkpoint, name);
            memory += kept(checkpoint, name.as_deref().unwrap_or_default());
        }
    }
    PlannedLeftover {
        name: leftover.name.clone(),
        reason: leftover.reason,
        shape: leftover.shape.clone(),
        read_bytes,
        memory,
        leftover,
    }
}

/// The checkpoint that will serve the adapter must have every module of it, in the same shape and by the same name.
fn check_served(inputs: &Inputs, pairing: &Pairing) -> Result<()> {
    let Some(served) = &inputs.served else { return Ok(()) };
    for pair in &pairing.pairs {
        if served.module(&pair.name).is_none_or(|module| module.shape() != pair.shape) {
            let what = "the served checkpoint has no such module of the base's shape";
            let hint = "--served is for a quantized copy of the base, with the base's names";
            return Err(Error::input(what).tensor(&pair.name).path(served.root()).hint(hint));
        }
    }
    Ok(())
}

/// Floating-point operations a second of one thread in a product of the kind that a pass is made of, measured for some
/// 50 ms.
fn product_rate() -> f64 {
    const SHAPE: (usize, usize, usize) = (512, 2048, 96);
    const TIMES: usize = 16;
    choose::trial_product(SHAPE, 1);
    let started = Instant::now();
    choose::trial_product(SHAPE, TIMES);
    let (m, k, n) = SHAPE;
    (2 * m * k * n * TIMES) as f64 / started.elapsed().as_secs_f64().max(1e-9)
}

/// By kind of module, for tables: embeddings, heads and experts stand by themselves.
pub fn kind(name: &str, place: Place) -> String {
    match place {
        Place::Embedding => "embeddings".to_owned(),
        _ => group_of(name),
    }
}
