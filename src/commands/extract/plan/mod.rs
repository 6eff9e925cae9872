//! The plan of a run, which can be shown before any work is done.

mod cost;
pub(crate) mod planned;
mod served_by;
pub use self::planned::{PlannedLeftover, PlannedModule};

use crate::checkpoint::Checkpoint;
use crate::checkpoint::catalogue::Tensor;
use crate::commands::extract::folded::Folded;
use crate::commands::extract::inputs::{Inputs, check, side_files};
use crate::commands::extract::norm;
use crate::commands::extract::options::{Extraction, ResultOptions};
use crate::commands::extract::plan::cost::{Cost, kept};
use crate::commands::extract::plan::planned::is_zero;
use crate::delta::difference::visit_scratch;
use crate::delta::pair::{Leftover, Pair, Pairing, pair};
use crate::delta::record::Reason;
use crate::delta::select::Selection;
use crate::factorize::choose;
use crate::lora::names::{Place, group_of};
use crate::pipeline::memory::{THREAD, catalogue, mapped, overhead, records};
use crate::run::unit::UnitId;
use crate::shared::Name;
use crate::storage::link_grow;
use crate::{Error, Result};
use std::time::Instant;

use serde::Serialize;

/// The time that reading a byte takes, in seconds, where the files are in the page cache.
pub(crate) const SECONDS_PER_BYTE: f64 = 1.0 / 4e9;

/// The whole plan.
#[derive(Clone, Debug, Serialize)]
pub struct ExtractionPlan {
    /// Remarks for the user.
    pub notes: Vec<String>,
    /// The adapter's rank: the requested one, or the largest that a module can use.
    pub rank: usize,
    /// The modules to extract, in the order in which they are started.
    pub modules: Vec<PlannedModule>,
    /// Modules that get zero factors, because servers fuse them with extracted ones.
    pub zeros: Vec<(String, [usize; 2])>,
    /// The tensors that the adapter will not hold.
    pub not_represented: Vec<PlannedLeftover>,
    /// The limit for the peak resident memory of the process, in bytes.
    pub memory: u64,
    /// The smallest limit that can be kept, in bytes.
    pub least_memory: u64,
    /// Bytes that the modules in progress may hold together.
    pub budget: u64,
    /// Number of threads.
    pub threads: usize,
    /// Bytes of tensors to read.
    pub read_bytes: u64,
    /// Bytes of them that cross the link to a server.
    #[serde(skip_serializing_if = "is_zero")]
    pub link_bytes: u64,
    /// Peak size of the output folder in bytes.
    pub disk_bytes: u64,
    /// Estimate of the run's time in seconds.
    pub seconds: f64,
    /// Floating-point operations per second of all threads together, measured for the estimate.
    pub rate: f64,
    /// Size of the adapter's weights in bytes.
    pub adapter_bytes: u64,
    /// The norms whose change the weights behind them carry.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub absorbed: Vec<String>,
}

impl ExtractionPlan {
    /// Plans the work.
    ///
    /// # Errors
    /// Options out of range, checkpoints that do not belong together, a memory budget that is too small.
    pub fn make(inputs: &Inputs, job: &Extraction) -> Result<ExtractionPlan> {
        job.deciding.check()?;
        let mut remarks = check::sense(inputs, job.allow)?;
        remarks.extend(side_files::note(&inputs.base, &inputs.tuned, job.deciding.copy_tokenizer));
        let selection = Selection::parse(&job.deciding.include, &job.deciding.exclude)?;
        let mut pairing = pair(&inputs.base, &inputs.tuned, &selection, job.deciding.trim_vocab)?;
        served_by::leave_out(inputs, job.deciding.loader, &selection, &mut pairing);
        check::partners(inputs, &selection, &pairing, job.allow)?;
        check_served(inputs, &job.deciding, &pairing)?;
        norm::check(inputs, job, &pairing)?;
        let folded = Folded::find(inputs, job.deciding.absorb_norms, &pairing)?;
        folded.mark(&mut pairing.leftovers);
        let Pairing { pairs, zeros, leftovers, notes } = pairing;
        let mut plan = ExtractionPlan {
            notes: remarks.into_iter().chain(notes).collect(),
            rank: usable_rank(&pairs, job.deciding.rank),
            modules: Vec::new(),
            zeros,
            not_represented: leftovers.into_iter().map(|l| compared(inputs, l)).collect(),
            memory: job.running.memory,
            least_memory: 0,
            budget: 0,
            threads: job.running.threads,
            read_bytes: 0,
            link_bytes: 0,
            disk_bytes: 0,
            seconds: 0.0,
            rate: 1.0,
            adapter_bytes: 0,
            absorbed: Vec::new(),
        };
        plan.notes.extend(folded.notes.iter().cloned());
        plan.absorbed = folded.absorbed.iter().cloned().collect();
        plan.notes.extend(unusable(plan.rank, job.deciding.rank));
        plan.notes.extend(norm::notes(inputs, &pairs)?);
        plan.notes.extend(tied_head(inputs, &selection));
        plan.fit(inputs, job, pairs)?;
        for module in &mut plan.modules {
            module.rescaling = folded.rescalings.get(&module.name).cloned();
        }
        plan.add_up(job);
        Ok(plan)
    }

    /// Decides for each module whether its delta is held in memory, within the limit.
    fn fit(&mut self, inputs: &Inputs, job: &Extraction, pairs: Vec<Pair>) -> Result<()> {
        let cost = |pair| Cost::of(pair, inputs, job);
        let mut costs: Vec<Cost> = pairs.into_iter().map(cost).collect::<Result<_>>()?;
        // The largest first: what is left at the end is small, and no thread waits long for the last one.
        costs.sort_by(|a, b| b.flops.total_cmp(&a.flops).then_with(|| a.pair.name.cmp(&b.pair.name)));
        let catalogues: u64 = inputs.all().map(|input| catalogue(input) + records(input)).sum();
        let [served, dense] = [&inputs.served, &inputs.dense].map(|other| other.as_ref().map_or(0, mapped));
        let mapped = mapped(&inputs.base).max(served).max(dense) + mapped(&inputs.tuned);
        let whole = costs.iter().any(|cost| cost.memory.kept > 0)
            || self.not_represented.iter().any(|l| l.memory > 0);
        let scratch = visit_scratch(whole);
        // Reader threads and factorizing threads.
        let threads = self.threads as u64 * (THREAD + 2 * (scratch + mapped));
        let fixed = overhead() + threads + catalogues;
        let needed = costs.iter().map(|cost| cost.least(self.threads));
        let needed = needed.chain(self.not_represented.iter().map(|l| l.memory)).max().unwrap_or(0);
        self.least_memory = (fixed + needed).next_multiple_of(1 << 20);
        if self.memory < self.least_memory {
            let [given, least] = [self.memory, self.least_memory].map(|bytes| bytes >> 20);
            let what = format!("not enough memory: {given} MiB given, {least} MiB needed");
            let largest =
                costs.iter().max_by_key(|cost| cost.least(self.threads)).map(|cost| cost.pair.name.clone());
            let keeps =
                |cost: &Cost| cost.least(self.threads) > cost.memory.least(cost.precision, self.threads);
            let scratch = if costs.iter().any(keeps) {
                "; or --scratch DIR, to keep there what is fetched and read more than once"
            } else {
                ""
            };
            let hint =
                format!("give --memory {least}MiB; fewer --threads and a lower --rank need less{scratch}");
            return Err(Error::decide(what).tensor(largest.unwrap_or_default()).hint(hint));
        }
        let spare = self.memory - self.least_memory;
        self.budget = self.memory - fixed - link_grow(spare);
        self.modules = costs.into_iter().map(|cost| cost.plan(self.budget, self.threads)).collect();
        Ok(())
    }

    /// The time in seconds that some of the modules and the reading of some bytes will take. Reading overlaps the
    /// products, except from a slow disk, which cannot be known here.
    pub(crate) fn expected(&self, modules: &[&PlannedModule], bytes: u64) -> f64 {
        modules.iter().map(|module| module.flops).sum::<f64>() / self.rate + bytes as f64 * SECONDS_PER_BYTE
    }

    fn add_up(&mut self, job: &Extraction) {
        let row_bytes = (self.rank as u64).saturating_mul(job.deciding.dtype.bytes() as u64);
        let factors = |[m, n]: [usize; 2]| ((m + n) as u64).saturating_mul(row_bytes);
        let shapes = self.modules.iter().map(|m| m.shape).chain(self.zeros.iter().map(|(_, shape)| *shape));
        // The shards and the adapter are both on disk until the adapter is complete.
        self.adapter_bytes = shapes.clone().map(factors).fold(0, u64::saturating_add);
        let sizes = shapes.map(|shape| factors(shape).saturating_mul(2).saturating_add(1 << 14));
        let lower: usize = job.deciding.ranks_below(self.rank).into_iter().sum();
        let lower = self.adapter_bytes as f64 * lower as f64 / self.rank.max(1) as f64;
        self.disk_bytes = sizes.fold((1 << 20) + lower as u64, u64::saturating_add);
        let modules = self.modules.iter().map(|m| m.read_bytes);
        self.read_bytes = modules.chain(self.not_represented.iter().map(|l| l.read_bytes)).sum();
        let modules = self.modules.iter().map(|m| m.link_bytes);
        self.link_bytes = modules.chain(self.not_represented.iter().map(|l| l.link_bytes)).sum();
        self.rate = product_rate() * self.threads as f64;
        self.seconds = self.expected(&self.modules.iter().collect::<Vec<_>>(), self.read_bytes);
    }
}

/// The largest rank that a module can use, at most the requested one: more would be zeros on disk, and in memory
/// when the adapter is served.
fn usable_rank(pairs: &[Pair], rank: usize) -> usize {
    let widest = pairs.iter().map(|pair| pair.rows.min(pair.shape[1])).max().unwrap_or(rank);
    rank.min(widest)
}

/// A note on a rank that no module can use.
fn unusable(rank: usize, asked: usize) -> Option<String> {
    (rank < asked).then(|| {
        format!("no module has more than {rank} singular values: the adapter has rank {rank}, not {asked}")
    })
}

/// What a head that is tied to the embedding would gain.
fn tied_head(inputs: &Inputs, selection: &Selection) -> Option<String> {
    let tied = inputs.base.config().tie_word_embeddings() && inputs.base.module("lm_head").is_some();
    (tied && !selection.takes("lm_head")).then(|| {
        "the head is tied to the embedding and stays as it is: `--include linear --include lm_head` adds a LoRA on it (on \
         a model of 135M, at rank 32, 90 % of the gain in loss in place of 85 %; one on embed_tokens gains next to \
         nothing). PEFT loads it, vLLM for some models, llama.cpp does not"
            .to_owned()
    })
}

/// Plans the comparison of a tensor that is left out.
fn compared(inputs: &Inputs, leftover: Leftover) -> PlannedLeftover {
    let comparable =
        leftover.base.is_some() && leftover.tuned.is_some() && leftover.reason != Reason::ShapeDiffers;
    let size = |checkpoint: &Checkpoint, name: &Option<Name>| {
        let name = name.as_deref().unwrap_or_default();
        match checkpoint.module(name) {
            Some(module) => module.size(),
            None => checkpoint.tensor(name).map_or(0, Tensor::size),
        }
    };
    let (mut read_bytes, mut link_bytes, mut memory) = (0, 0, 0);
    if comparable {
        for (checkpoint, name) in [(&inputs.base, &leftover.base), (&inputs.tuned, &leftover.tuned)] {
            read_bytes += size(checkpoint, name);
            link_bytes += if checkpoint.is_remote() { size(checkpoint, name) } else { 0 };
            memory += kept(checkpoint, name.as_deref().unwrap_or_default());
        }
    }
    PlannedLeftover {
        name: leftover.name.clone(),
        reason: leftover.reason,
        shape: leftover.shape.clone(),
        read_bytes,
        link_bytes,
        memory,
        unit: UnitId::compared(leftover.blank().key()),
        leftover,
    }
}

/// Checks that the served checkpoint has every module of the adapter, with the same name and shape.
fn check_served(inputs: &Inputs, deciding: &ResultOptions, pairing: &Pairing) -> Result<()> {
    let Some(served) = &inputs.served else { return Ok(()) };
    if deciding.target.is_some() || !deciding.lower_ranks.is_empty() {
        let what = "the served weights are measured with all directions of a module, not with fewer";
        return Err(Error::decide(what).hint("give --rank with --served"));
    }
    for pair in &pairing.pairs {
        if served.module(&pair.name).is_none_or(|module| module.shape() != pair.shape) {
            let what = "the served checkpoint has no module of this name and the base's shape";
            let hint = "--served is for a quantized copy of the base, with the base's names";
            return Err(Error::input(what).tensor(&pair.name).path(served.root()).hint(hint));
        }
    }
    Ok(())
}

/// Floating-point operations per second of one thread in a matrix product like those of a pass, measured for about 50
/// ms.
fn product_rate() -> f64 {
    const SHAPE: (usize, usize, usize) = (512, 2048, 96);
    const TIMES: usize = 16;
    choose::trial_product(SHAPE, 1);
    let started = Instant::now();
    choose::trial_product(SHAPE, TIMES);
    let (m, k, n) = SHAPE;
    (2 * m * k * n * TIMES) as f64 / started.elapsed().as_secs_f64().max(1e-9)
}

/// The kind of a module, for tables: embeddings, heads and experts are kinds of their own.
pub fn kind(name: &str, place: Place) -> String {
    match place {
        Place::Embedding => "embeddings".to_owned(),
        _ => group_of(name),
    }
}
