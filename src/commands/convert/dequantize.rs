//! The bridge: a quantized checkpoint as a dense one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::Serialize;

use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::commands::convert::merge::options;
use crate::commands::convert::output_plan::{Target, Wish};
use crate::commands::convert::record::{Conversion, Outcome};
use crate::commands::convert::run::{Job, run};
use crate::commands::convert::sharding;
use crate::commands::convert::sharding::DEFAULT_SHARD_SIZE;
use crate::commands::convert::sidecar_files::Edits;
use crate::commands::convert::write_shard::Unchanged;
use crate::lora::factor_dtype::FactorType;
use crate::pipeline::options::Running;
use crate::run::progress::Progress;

/// What is to be dequantized, where to, and how.
#[derive(Clone, Debug)]
pub struct Dequantization {
    /// Path or hub name of the checkpoint.
    pub checkpoint: String,
    /// The output folder.
    pub out: PathBuf,
    /// The type of the dequantized weights.
    pub dtype: FactorType,
    /// The largest file of weights in bytes; a tensor that is larger has one by itself.
    pub max_shard_size: u64,
    /// How the work is run: threads, memory, overwriting.
    pub running: Running,
}

impl Dequantization {
    /// To bf16, in files as large as usual.
    pub fn new(checkpoint: &str, out: PathBuf, running: Running) -> Dequantization {
        let (dtype, max_shard_size) = (FactorType::Bf16, DEFAULT_SHARD_SIZE);
        Dequantization { checkpoint: checkpoint.to_owned(), out, dtype, max_shard_size, running }
    }
}

/// The options that decide the bytes.
#[derive(Serialize)]
struct Deciding {
    dtype: FactorType,
    max_shard_size: u64,
}

/// Dequantizes a checkpoint, or goes on with a run that was stopped.
///
/// Every quantized weight `X` becomes `X.weight`, rounded once from the value that its format's reference gives; its companions
/// vanish, and so do scales of activations. All else is copied as it is.
///
/// # Errors
/// What is wrong with the checkpoint; a value that f16 does not hold; an output folder or a budget that needs a decision; a failing
/// disk. Whatever was finished stays safe, and the same call goes on from there.
pub fn dequantize(job: &Dequantization, progress: &dyn Progress) -> Result<Outcome> {
    let base = Checkpoint::open(&job.checkpoint)?;
    let wish = Wish {
        dtype: job.dtype.dtype(),
        fp8: false,
        changed: BTreeSet::new(),
        replaced: BTreeMap::new(),
        untie: None,
    };
    let target = Target::of(&base, &wish)?;
    if target.computed == 0 {
        progress.note("no weight of this checkpoint is quantized: it is copied as it is");
    }
    let conversion = Conversion {
        trephine: env!("CARGO_PKG_VERSION").into(),
        command: "dequantize".into(),
        options: options(&Deciding { dtype: job.dtype, max_shard_size: job.max_shard_size })?,
        simd: None,
        inputs: BTreeMap::from([("checkpoint".to_owned(), base.identity().clone())]),
        scheme: base.scheme().label(),
        computed: target.computed,
        copied: target.copied,
        dropped: target.dropped,
        replaced: Vec::new(),
        non_finite: BTreeMap::new(),
    };
    let edits =
        Edits { dtype: (target.computed > 0).then_some(wish.dtype), quantization: None, untie: false };
    let work = Job {
        out: &job.out,
        running: &job.running,
        base: &base,
        side: "checkpoint",
        adapter: None,
        change: &Unchanged,
        conversion,
        shards: sharding::shards(target.units, job.max_shard_size),
        edits,
        held: [0, 0],
    };
    run(work, progress)
}
