//! The bridge: writes a quantized checkpoint as a dense one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::commands::convert::job::{ConvertJob, Parts};
use crate::commands::convert::output_plan::{OutputSpec, Target};
use crate::commands::convert::record::{Conversion, ConversionOutcome};
use crate::commands::convert::sharding;
use crate::commands::convert::sharding::DEFAULT_SHARD_SIZE;
use crate::commands::convert::sidecar_files::Edits;
use crate::commands::convert::write_shard::Unchanged;
use crate::delta::record::Side;
use crate::lora::factor_dtype::FactorType;
use crate::pipeline::memory::room;
use crate::pipeline::options::RunOptions;
use crate::run::engine::PartOutcome;
use crate::run::identity::{RunIdentity, option_map};
use crate::run::parts::assemble::{Assembled, Assembly, Begun};
use crate::run::parts::part_id::Part;
use crate::run::progress::Progress;

/// One dequantization: its input, its output, and its options.
#[derive(Clone, Debug)]
pub struct Dequantization {
    /// Path or hub name of the checkpoint.
    pub checkpoint: String,
    /// The output folder.
    pub out: PathBuf,
    /// The type of the dequantized weights.
    pub dtype: FactorType,
    /// The largest weight file in bytes; a larger tensor gets a file of its own.
    pub max_shard_size: u64,
    /// How to run: threads, memory, overwriting.
    pub running: RunOptions,
}

impl Dequantization {
    /// A dequantization to bf16, with weight files of the default size.
    pub fn new(checkpoint: &str, out: PathBuf, running: RunOptions) -> Dequantization {
        let (dtype, max_shard_size) = (FactorType::Bf16, DEFAULT_SHARD_SIZE);
        Dequantization { checkpoint: checkpoint.to_owned(), out, dtype, max_shard_size, running }
    }
}

/// The options that determine the bytes.
#[derive(Serialize, Deserialize)]
struct ResultOptions {
    dtype: FactorType,
    max_shard_size: u64,
}

/// Dequantizes a checkpoint, or continues a run that was stopped.
///
/// Every quantized weight `X` becomes `X.weight`, rounded once from the value that the format's reference
/// implementation gives; its companion tensors and the scales of activations are dropped. Everything else is copied
/// unchanged.
///
/// # Errors
/// A faulty checkpoint; a value outside the range of f16; an output folder or a budget that needs a decision; a failing
/// disk. Finished files are kept, and the same call resumes from there.
pub fn dequantize(job: &Dequantization, progress: &dyn Progress) -> Result<ConversionOutcome> {
    planned(job, progress, |job| job.run(progress))
}

/// Runs `part` of a dequantization: writes the files of its share that are not written yet. Nothing is assembled.
///
/// # Errors
/// See [`dequantize`]; also a folder with parts of a different run.
pub fn dequantize_part(job: &Dequantization, part: Part, progress: &dyn Progress) -> Result<PartOutcome> {
    planned(job, progress, |job| job.part(part, progress))
}

/// Assembles the parts of a dequantization.
pub(super) fn assemble(
    assembly: &Assembly,
    begun: &Begun,
    progress: &dyn Progress,
) -> Result<Assembled<ConversionOutcome>> {
    let ResultOptions { dtype, max_shard_size } = begun.options(assembly)?;
    let (checkpoint, running) = (begun.place(assembly, Side::Checkpoint)?, begun.running(assembly));
    let default_job = Dequantization::new(&checkpoint, assembly.out.clone(), running);
    let defaults = option_map(&default_job.deciding())?;
    let job = Dequantization { dtype, max_shard_size, ..default_job };
    planned(&job, progress, |job| job.assemble(assembly, begun, &defaults, progress))
}

impl Dequantization {
    fn deciding(&self) -> ResultOptions {
        ResultOptions { dtype: self.dtype, max_shard_size: self.max_shard_size }
    }
}

/// Plans `job` and passes the plan to `act`.
fn planned<T>(
    job: &Dequantization,
    progress: &dyn Progress,
    act: impl FnOnce(&ConvertJob<'_>) -> Result<T>,
) -> Result<T> {
    let base = Checkpoint::open_within(&job.checkpoint, &mut room(job.running.memory))?;
    let spec = OutputSpec {
        dtype: job.dtype.dtype(),
        fp8: false,
        changed: BTreeSet::new(),
        replaced: BTreeMap::new(),
        untie: None,
    };
    let target = Target::of(&base, &spec)?;
    if target.computed == 0 {
        progress.note("no weight of this checkpoint is quantized: it is copied unchanged");
    }
    let inputs = BTreeMap::from([(Side::Checkpoint, base.identity().clone())]);
    let identity = RunIdentity::new("dequantize", &job.deciding(), false, inputs)?;
    let conversion = Conversion {
        computed: target.computed,
        copied: target.copied,
        dropped: target.dropped,
        ..Conversion::blank(&identity, &base)
    };
    let edits =
        Edits { dtype: (target.computed > 0).then_some(spec.dtype), quantization: None, untie: false };
    let parts = Parts {
        out: &job.out,
        running: &job.running,
        base: &base,
        places: vec![(Side::Checkpoint, job.checkpoint.clone())],
        adapter: None,
        change: &Unchanged,
        conversion,
        shards: sharding::shards(target.units, job.max_shard_size),
        edits,
        held: [0, 0],
    };
    act(&ConvertJob::new(parts, Side::Checkpoint, identity)?)
}
