//! Plans what becomes of each tensor, from headers alone.

use std::collections::{BTreeMap, BTreeSet};

use crate::checkpoint::{Checkpoint, HASH_WINDOW};

use crate::checkpoint::catalogue::Tensor;
use crate::commands::sanitize::options::Sanitizing;
use crate::container::safetensors::entries::MOST_TENSORS;
use crate::lora::factor_dtype::FactorType;
use crate::lora::names::{Place, expert_of, kind_of};
use crate::lora::read::PeftAdapter;
use crate::lora::read::classify::{Extra, ExtraKind, PeftModule};
use crate::lora::rules::siblings;
use crate::lora::rules::siblings::Presence;
use crate::lora::rules::tensors::takes;
use crate::lora::rules::{Effect, Fix, Loader, RuleFinding};
use crate::lora::tree::BaseModules;
use crate::pipeline::memory::{ADAPTER_TENSOR, OVERHEAD, THREAD, catalogue};
use crate::{Error, Result};

/// Bytes that the process needs besides one module's factors and the tensors of the inputs: what is mapped of a tensor
/// that is hashed, a panel of one that is pruned, and the buffers of the writer.
const FIXED: u64 = OVERHEAD + THREAD + HASH_WINDOW + (1 << 20);

/// One module of the new adapter.
pub(crate) struct Planned<'a> {
    /// Its name in the base.
    pub(crate) name: String,
    pub(crate) place: Place,
    /// `[out, in]`.
    pub(crate) shape: [usize; 2],
    /// Where its factors come from; `None` for zeros.
    pub(crate) source: Option<&'a PeftModule>,
}

/// The plan for all tensors.
pub(crate) struct SanitizePlan<'a> {
    /// The uniform rank.
    pub(crate) rank: usize,
    pub(crate) dtype: FactorType,
    /// The modules of the new adapter, by name.
    pub(crate) modules: Vec<Planned<'a>>,
    /// Whole tensors that the consumers accept, with their new names.
    pub(crate) kept: Vec<(&'a Extra, String)>,
    pub(crate) pruned: Vec<&'a Extra>,
    /// Modules that are left out.
    pub(crate) dropped: Vec<&'a PeftModule>,
    /// `lora_A` and `lora_B` without their counterparts.
    pub(crate) lone: Vec<&'a Tensor>,
}

impl<'a> SanitizePlan<'a> {
    /// Plans the output. `found` lists the consumers' rules that the adapter breaks.
    ///
    /// # Errors
    /// A shape that cannot be determined, a rank or budget that the user must decide, an adapter of which nothing is
    /// left.
    pub(crate) fn make(
        job: &Sanitizing,
        adapter: &'a PeftAdapter,
        base: Option<&Checkpoint>,
        known: Option<&BaseModules>,
        found: &[RuleFinding],
    ) -> Result<SanitizePlan<'a>> {
        let refused = |module: &&PeftModule| {
            found.iter().any(|f| {
                f.at == module.name()
                    && f.mend == Fix::ByPruning
                    && matches!(f.outcome, Effect::Refused | Effect::NoEffect)
            })
        };
        let (dropped, carried): (Vec<_>, Vec<_>) =
            adapter.modules().filter(|module| module.rank() > 0).partition(refused);
        let rank = rank(job, adapter, &carried)?;
        let dtype = job
            .dtype
            .unwrap_or_else(|| FactorType::common(carried.iter().flat_map(|module| module.dtypes())));
        let planned = |module: &&'a PeftModule| Planned {
            name: known.map_or_else(|| module.name().to_owned(), |base| base.key_name_of(module.name())),
            place: module.place(),
            shape: module.shape(),
            source: Some(*module),
        };
        let mut modules: Vec<Planned<'a>> = carried.iter().map(planned).collect();
        modules.extend(complete(job, adapter, base, known, &carried)?);
        modules.sort_by(|a, b| a.name.cmp(&b.name));
        let all_take = |extra: &&Extra| job.consumers.iter().all(|consumer| takes(*consumer, adapter, extra));
        let (kept, pruned): (Vec<_>, Vec<_>) = adapter.extras().iter().partition(all_take);
        // A copy of the base's own weight matters only to PEFT, which loads it: it may have more rows than the base.
        let copies_matter = job.consumers.contains(&Loader::Peft);
        let (kept, copies): (Vec<_>, Vec<_>) =
            kept.into_iter().partition(|extra| copies_matter || extra.kind != ExtraKind::BaseCopy);
        let kept = kept.into_iter().map(|extra| (extra, key(adapter, extra))).collect();
        let pruned = pruned.into_iter().chain(copies).collect();
        let plan = SanitizePlan { rank, dtype, modules, kept, pruned, dropped, lone: lone(adapter) };
        let tensors = adapter.tensors().len() as u64 * ADAPTER_TENSOR + base.map_or(0, catalogue);
        plan.check_memory(job.memory, FIXED + tensors)?;
        Ok(plan)
    }

    /// Refuses a budget, in bytes, that is too small for the largest module's factors as read, computed and encoded.
    fn check_memory(&self, memory: u64, fixed: u64) -> Result<()> {
        // f32 factors before and after, a difference, the bytes that are written; f64 copies if a rank is cut.
        let module = |planned: &Planned<'_>| {
            let [out, inner] = planned.shape.map(|side| side as u64);
            let (old, new) = (planned.source.map_or(0, |m| m.rank() * m.experts()) as u64, self.rank as u64);
            let experts = planned.source.map_or(1, PeftModule::experts) as u64;
            let cut = if old > new * experts { 32 * old } else { 0 };
            (out + inner) * (12 * old + 12 * new * experts + cut)
        };
        let need = fixed + self.modules.iter().map(module).max().unwrap_or(0);
        if need <= memory {
            return Ok(());
        }
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        Err(Error::decide(format!("not enough memory: {} MiB given, {} MiB needed", mib(memory), mib(need)))
            .hint(format!("give --memory {}MiB or more", mib(need))))
    }
}

/// The uniform rank: the largest after truncation.
fn rank(job: &Sanitizing, adapter: &PeftAdapter, carried: &[&PeftModule]) -> Result<usize> {
    const VLLM_MOST: usize = 512;
    let Some(largest) = carried.iter().map(|module| module.rank()).max() else {
        return Err(Error::input("nothing is left of the adapter that these programs would load")
            .path(adapter.root())
            .hint("`trephine sanitize --check` shows what was left out and why"));
    };
    if job.max_rank == Some(0) {
        return Err(Error::decide("a rank of 0 holds nothing").hint("give --max-rank 1 or more"));
    }
    let rank = largest.min(job.max_rank.unwrap_or(largest));
    if rank > VLLM_MOST && job.consumers.contains(&Loader::Vllm) {
        return Err(Error::decide(format!(
            "vLLM loads adapters of rank {VLLM_MOST} at most, but this one has rank {largest}"
        ))
        .path(adapter.root())
        .hint(format!("give --max-rank {VLLM_MOST} or less")));
    }
    if let Some(fused) = carried.iter().find(|module| module.experts() > 1 && module.rank() > rank) {
        return Err(Error::decide(format!("fused experts of rank {} cannot be cut to {rank}", fused.rank()))
            .tensor(fused.name())
            .path(adapter.root())
            .hint(format!("give --max-rank {} or more", fused.rank())));
    }
    Ok(rank)
}

/// The modules of zeros that the consumers need.
fn complete<'a>(
    job: &Sanitizing,
    adapter: &PeftAdapter,
    base: Option<&Checkpoint>,
    known: Option<&BaseModules>,
    carried: &[&'a PeftModule],
) -> Result<Vec<Planned<'a>>> {
    let names: BTreeSet<&str> = carried.iter().map(|module| module.name()).collect();
    let mut wanted = BTreeSet::new();
    if job.consumers.contains(&Loader::Sglang) {
        // One that only may be there is not made up: where it is not, vLLM refuses what names it.
        let absent = carried.iter().flat_map(|module| siblings::absent(adapter, known, module.name()));
        wanted.extend(absent.filter(|(_, presence)| *presence == Presence::Known).map(|(name, _)| name));
    }
    if job.consumers.contains(&Loader::Vllm) {
        wanted.extend(all_experts(carried, base).map_err(|e| e.path(adapter.root()))?);
    }
    wanted.retain(|name| !names.contains(name.as_str()));
    // A sibling that the base does not have need not be completed.
    wanted.retain(|name| known.is_none_or(|base| base.resolve(name).is_some()));
    let zeros = |name: String| {
        let shape = shape(&name, adapter, known, carried).ok_or_else(|| {
            Error::decide(format!(
                "{} has to be added as zeros, but nothing in the adapter gives its shape",
                kind_of(&name)
            ))
            .tensor(&name)
            .path(adapter.root())
            .hint("give the model it belongs to as --base")
        })?;
        let name = known.map_or_else(|| name.clone(), |base| base.key_name_of(&name));
        Ok(Planned { name, place: Place::Linear, shape, source: None })
    };
    wanted.into_iter().map(zeros).collect()
}

/// Every projection of every expert, for each layer with at least one adapted expert.
///
/// # Errors
/// More of them than any model has: a number in a name or in the base's config is wrong.
fn all_experts(carried: &[&PeftModule], base: Option<&Checkpoint>) -> Result<Vec<String>> {
    let count = base.and_then(|base| base.config().raw()).and_then(|raw| {
        let text = raw.get("text_config").unwrap_or(raw);
        ["num_experts", "num_local_experts"].iter().find_map(|key| text.get(*key)?.as_u64())
    });
    let mut layers: BTreeMap<&str, (usize, [&str; 3])> = BTreeMap::new();
    for (layer, expert, projection) in carried.iter().filter_map(|module| expert_of(module.name())) {
        let names = match projection {
            "w1" | "w2" | "w3" => ["w1", "w2", "w3"],
            _ => ["gate_proj", "up_proj", "down_proj"],
        };
        let most = &mut layers.entry(layer).or_insert((count.unwrap_or(0) as usize, names)).0;
        *most = (*most).max(expert.saturating_add(1));
    }
    let all = layers.values().fold(0usize, |all, (most, _)| all.saturating_add(most.saturating_mul(3)));
    if all > MOST_TENSORS {
        let most = layers.values().map(|(most, _)| *most).max().unwrap_or(0);
        let what = format!("a layer of {most} experts is larger than any that is known");
        return Err(
            Error::input(what).hint("look at the names of the adapter, and at the base's config.json")
        );
    }
    let of_layer = |(layer, (most, names)): (&str, (usize, [&str; 3]))| {
        let name = move |expert: usize, kind: &str| format!("{layer}.{expert}.{kind}");
        let names: Vec<String> = (0..most).flat_map(|e| names.map(|kind| name(e, kind))).collect();
        names
    };
    Ok(layers.into_iter().flat_map(of_layer).collect())
}

/// `[out, in]` of a module that has to be filled in. It comes from the adapter's own factors of rank 0, the base, the
/// module's twin (`gate` and `up`, `k` and `v` have the same shape), or the same projection elsewhere if all of those
/// agree.
fn shape(
    name: &str,
    adapter: &PeftAdapter,
    base: Option<&BaseModules>,
    carried: &[&PeftModule],
) -> Option<[usize; 2]> {
    if let Some(module) = adapter.module(name) {
        return Some(module.shape());
    }
    if let Some(module) = base.and_then(|base| base.resolve(name)) {
        return Some(module.shape);
    }
    let kind = kind_of(name);
    let twin = match kind {
        "gate_proj" => "up_proj",
        "up_proj" => "gate_proj",
        "k_proj" => "v_proj",
        "v_proj" => "k_proj",
        "w1" => "w3",
        "w3" => "w1",
        _ => "",
    };
    let stem = &name[..name.len() - kind.len()];
    if let Some(twin) = adapter.module(&format!("{stem}{twin}")) {
        return Some(twin.shape());
    }
    let is_expert = expert_of(name).is_some();
    let same = |module: &&&PeftModule| {
        kind_of(module.name()) == kind && expert_of(module.name()).is_some() == is_expert
    };
    let shapes: BTreeSet<[usize; 2]> = carried.iter().filter(same).map(|module| module.shape()).collect();
    shapes.first().copied().filter(|_| shapes.len() == 1)
}

/// The new name of a whole tensor. If a layer has a LoRA, PEFT looks for its bias inside the wrapper.
fn key(adapter: &PeftAdapter, extra: &Extra) -> String {
    let wrapped = extra.target.strip_suffix(".bias").filter(|module| adapter.module(module).is_some());
    match (extra.kind, wrapped) {
        (ExtraKind::LoraBias, _) => format!("base_model.model.{}.lora_B.bias", extra.target),
        (ExtraKind::BaseCopy, _) => {
            let name = extra.tensor.name();
            format!("base_model.model.{}", name.strip_prefix("base_model.model.").unwrap_or(name))
        }
        (ExtraKind::Bias, Some(module)) => format!("base_model.model.{module}.base_layer.bias"),
        _ => format!("base_model.model.{}", extra.target),
    }
}

/// The tensors of modules that lack one factor.
fn lone(adapter: &PeftAdapter) -> Vec<&Tensor> {
    let known: BTreeSet<&str> = adapter
        .modules()
        .flat_map(|module| [module.a().name(), module.b().name()])
        .chain(adapter.extras().iter().map(|extra| extra.tensor.name()))
        .collect();
    adapter.tensors().filter(|tensor| !known.contains(tensor.name())).collect()
}
