//! Merges an adapter into a checkpoint: `W + scale · B·A`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::checkpoint::Checkpoint;
use crate::commands::convert::accounts;
use crate::commands::convert::job::{ConvertJob, Parts};
use crate::commands::convert::lora_update::Product;
use crate::commands::convert::matching;
use crate::commands::convert::matching::Matched;
use crate::commands::convert::output_plan::{OutputSpec, Target};
use crate::commands::convert::record::{Conversion, ConversionOutcome};
use crate::commands::convert::sharding;
use crate::commands::convert::sharding::DEFAULT_SHARD_SIZE;
use crate::commands::convert::sidecar_files::Edits;
use crate::delta::record::Side;
use crate::lora::factor_dtype::FactorType;
use crate::lora::read::PeftAdapter;
use crate::lora::read::classify::{ExtraKind, Fault};
use crate::lora::tree::BaseModules;
use crate::pipeline::memory::room;
use crate::pipeline::options::RunOptions;
use crate::quant::encode::fp8::FP8_BLOCK;
use crate::run::engine::PartOutcome;
use crate::run::identity::{RunIdentity, option_map};
use crate::run::parts::assemble::{Assembled, Assembly, Begun};
use crate::run::parts::part_id::Part;
use crate::run::progress::Progress;
use crate::{Error, Result};

/// One merge: its inputs, its output, and its options.
#[derive(Clone, Debug)]
pub struct Merge {
    /// Path or hub name of the base, quantized or not.
    pub base: String,
    /// Path or hub name of the adapter.
    pub adapter: String,
    /// The output folder.
    pub out: PathBuf,
    /// The type of the weights that are computed.
    pub dtype: FactorType,
    /// Whether to write linear layers as block FP8, in the layout of Qwen3-FP8.
    pub fp8: bool,
    /// The largest weight file in bytes; a larger tensor gets a file of its own.
    pub max_shard_size: u64,
    /// How to run: threads, memory, overwriting.
    pub running: RunOptions,
}

impl Merge {
    /// A merge to bf16, with weight files of the default size.
    pub fn new(base: &str, adapter: &str, out: PathBuf, running: RunOptions) -> Merge {
        Merge {
            base: base.to_owned(),
            adapter: adapter.to_owned(),
            out,
            dtype: FactorType::Bf16,
            fp8: false,
            max_shard_size: DEFAULT_SHARD_SIZE,
            running,
        }
    }
}

/// The options that determine the bytes.
#[derive(Serialize, Deserialize)]
struct ResultOptions {
    dtype: FactorType,
    fp8: bool,
    max_shard_size: u64,
}

/// Merges an adapter into its base, or continues a run that was stopped.
///
/// A weight that the adapter changes becomes `W + scale · B·A`: W as stored or dequantized, the product in f32, their
/// sum exact, one rounding. Other weights are dequantized or copied unchanged; parameters that the adapter holds whole
/// (`modules_to_save`) replace the base's. With `fp8`, linear layers become block FP8; those that already are, and are
/// not changed, stay as they are.
///
/// # Errors
/// A faulty base or adapter; modules of the adapter that the base does not have, by name; adapters that mean something
/// other than `W + scale · B·A` (DoRA, biases, initializations that change the base); weights that become NaN or
/// infinite; an output folder or a budget that needs a decision; a failing disk.
pub fn merge(job: &Merge, progress: &dyn Progress) -> Result<ConversionOutcome> {
    planned(job, progress, |job| job.run(progress))
}

/// Runs `part` of a merge: writes the files of its share that are not written yet. Nothing is assembled.
///
/// # Errors
/// See [`merge`]; also a folder with parts of a different run.
pub fn merge_part(job: &Merge, part: Part, progress: &dyn Progress) -> Result<PartOutcome> {
    planned(job, progress, |job| job.part(part, progress))
}

/// Assembles the parts of a merge.
pub(super) fn assemble(
    assembly: &Assembly,
    begun: &Begun,
    progress: &dyn Progress,
) -> Result<Assembled<ConversionOutcome>> {
    let ResultOptions { dtype, fp8, max_shard_size } = begun.options(assembly)?;
    let [base, adapter] = [Side::Base, Side::Adapter].map(|side| begun.place(assembly, side));
    let default_job = Merge::new(&base?, &adapter?, assembly.out.clone(), begun.running(assembly));
    let defaults = option_map(&default_job.deciding())?;
    let job = Merge { dtype, fp8, max_shard_size, ..default_job };
    planned(&job, progress, |job| job.assemble(assembly, begun, &defaults, progress))
}

impl Merge {
    fn deciding(&self) -> ResultOptions {
        ResultOptions { dtype: self.dtype, fp8: self.fp8, max_shard_size: self.max_shard_size }
    }
}

/// Plans `job` and passes the plan to `act`.
fn planned<T>(
    job: &Merge,
    progress: &dyn Progress,
    act: impl FnOnce(&ConvertJob<'_>) -> Result<T>,
) -> Result<T> {
    let base = Checkpoint::open_within(&job.base, &mut room(job.running.memory))?;
    let adapter = PeftAdapter::open(&job.adapter)?;
    check(&adapter, &base, progress)?;
    let (adapter, _) = adapter.named_for(&BaseModules::of(&base))?;
    let Matched { changed, addends } = matching::changed(&base, &adapter)?;
    let replaced = matching::replaced(&base, &adapter)?;
    let untie = matching::untie(&base, &changed, &replaced);
    let spec = OutputSpec { dtype: job.dtype.dtype(), fp8: job.fp8, changed, replaced, untie };
    let target = Target::of(&base, &spec)?;
    accounts::check_added(&addends, &target.units)?;
    let product = Product::new(&adapter, addends);
    let held = product.held();
    let inputs =
        BTreeMap::from([(Side::Base, base.identity().clone()), (Side::Adapter, adapter.identity()?)]);
    let identity = RunIdentity::new("merge", &job.deciding(), true, inputs)?;
    let conversion = Conversion {
        computed: target.computed,
        copied: target.copied,
        dropped: target.dropped,
        replaced: spec.replaced.keys().cloned().collect(),
        ..Conversion::blank(&identity, &base)
    };
    let quantization = target.fp8.then(|| {
        json!({
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": FP8_BLOCK,
            "modules_to_not_convert": target.not_converted,
        })
    });
    let untie = spec.untie.is_some() || matching::unties(&base, &spec.changed, &spec.replaced);
    let edits = Edits { dtype: Some(spec.dtype), quantization, untie };
    let parts = Parts {
        out: &job.out,
        running: &job.running,
        base: &base,
        places: vec![(Side::Base, job.base.clone()), (Side::Adapter, job.adapter.clone())],
        adapter: Some(&adapter),
        change: &product,
        conversion,
        shards: sharding::shards(target.units, job.max_shard_size),
        edits,
        held,
    };
    act(&ConvertJob::new(parts, Side::Base, identity)?)
}

/// Refuses an adapter that is more than factors, and tells what is odd.
fn check(adapter: &PeftAdapter, base: &Checkpoint, progress: &dyn Progress) -> Result<()> {
    let (config, root) = (adapter.config(), adapter.root());
    let refuse = |what: String| Error::input(what).path(root);
    // PEFT says it of every layer that is stored `[in, out]`, as GPT-2's are.
    let turned = config.is("fan_in_fan_out") && !base.tree().has_conv1d();
    for (is, what) in [(config.is("use_dora"), "DoRA"), (turned, "transposed weights (fan_in_fan_out)")] {
        if is {
            return Err(refuse(format!("adapters with {what} cannot be merged")).hint("merge it with PEFT"));
        }
    }
    for (key, does) in [
        ("alora_invocation_tokens", "acts only from its invocation tokens on (aLoRA)"),
        ("layer_replication", "repeats layers of the base"),
        ("use_bdlora", "has block-diagonal factors (BD-LoRA)"),
        ("use_qalora", "pools its input in groups (QALoRA)"),
    ] {
        if config.is(key) {
            let what = format!("the adapter {does}, which no merged weight does: {key} is set");
            return Err(refuse(what).hint("load it with PEFT, on the unchanged base"));
        }
    }
    if adapter.modules().len() == 0 && adapter.extras().is_empty() && adapter.problems().is_empty() {
        return Err(refuse("the adapter holds no factors: it changes nothing".to_owned())
            .hint("the weights were not saved, or belong to another format: export the adapter again"));
    }
    if let Some(init) = config.init_that_changes_the_base() {
        let what = format!(
            "init_lora_weights is {init}: PEFT changes the base's weights when it loads this adapter"
        );
        return Err(refuse(what).hint("use PEFT to save the adapter for the unchanged base"));
    }
    for extra in adapter.extras() {
        let (what, name) = match extra.kind {
            ExtraKind::Magnitude => ("DoRA's magnitudes", extra.tensor.name()),
            ExtraKind::LoraBias => ("a bias of a lora_B", extra.tensor.name()),
            ExtraKind::Unknown => ("a tensor that is not part of a LoRA", extra.tensor.name()),
            _ => continue,
        };
        return Err(refuse(format!("the adapter has {what}, which cannot be merged"))
            .tensor(name)
            .hint("merge it with PEFT"));
    }
    for problem in adapter.problems() {
        match &problem.fault {
            // Merged as the tensors say, which is what was intended.
            Fault::ZeroRank
            | Fault::NoPrefix
            | Fault::Wrapper { .. }
            | Fault::AdapterName { .. }
            | Fault::OtherRank { .. } => {
                progress.note(&problem.to_string());
            }
            _ => {
                let hint = "the adapter is damaged: save or download it again";
                return Err(refuse(format!("a module of the adapter {}", problem.fault))
                    .tensor(&problem.at)
                    .hint(hint));
            }
        }
    }
    Ok(())
}
