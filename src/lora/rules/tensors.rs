//! The rules on an adapter's tensors.

use std::collections::{BTreeMap, BTreeSet};

use crate::lora::WEIGHTS;
use crate::lora::names::{MOST_EXPERTS, expert_of, kind_of};
use crate::lora::read::PeftAdapter;
use crate::lora::read::classify::{Extra, ExtraKind, Fault, PeftModule};
use crate::lora::rules::Loader::{LlamaCpp, Peft, Sglang, Vllm};
use crate::lora::rules::settings::{is_target, is_target_parameter};
use crate::lora::rules::siblings;
use crate::lora::rules::siblings::Presence;
use crate::lora::rules::{Effect, Fix, Loader, Report};
use crate::lora::tree::BaseModules;

/// Base models (`model_type`) on whose embedding and head vLLM accepts a LoRA, and those on which it does not.
const VOCABULARY_TAKEN: [&str; 5] = ["llama", "mixtral", "qwen3", "qwen3_moe", "granite"];
const VOCABULARY_REFUSED: [&str; 9] =
    ["mistral", "qwen2", "gemma", "gemma2", "gemma3", "gemma3_text", "deepseek_v2", "deepseek_v3", "gpt_oss"];

pub(crate) fn check(adapter: &PeftAdapter, base: Option<&BaseModules>, report: &mut Report) {
    for problem in adapter.problems() {
        fault(&problem.at, &problem.fault, report);
    }
    for extra in adapter.extras() {
        beside(adapter, extra, report);
    }
    for module in adapter.modules() {
        in_place(adapter, base, module, report);
    }
    experts(adapter, base, report);
    stacks(adapter, report);
    if adapter.modules().len() == 0 {
        report.add(&[Vllm], WEIGHTS, "holds no LoRA at all", Effect::Refused, Fix::No);
    }
}

fn fault(at: &str, fault: &Fault, report: &mut Report) {
    let why = fault.to_string();
    let mut add = |consumers: &[Loader], outcome, mend| report.add(consumers, at, &*why, outcome, mend);
    match fault {
        Fault::LoneA => {
            add(&[Vllm, Sglang, LlamaCpp], Effect::Refused, Fix::ByPruning);
            add(&[Peft], Effect::NoEffect, Fix::ByPruning);
        }
        // Its lora_A is then random.
        Fault::LoneB => {
            add(&[Vllm, Sglang, LlamaCpp], Effect::Refused, Fix::ByPruning);
            add(&[Peft], Effect::Wrong, Fix::ByPruning);
        }
        Fault::Misfit { .. } | Fault::Dtype { .. } => add(&Loader::ALL, Effect::Refused, Fix::No),
        Fault::ZeroRank => add(&Loader::ALL, Effect::Refused, Fix::Yes),
        Fault::OtherRank { .. } => {
            add(&[Peft, Sglang], Effect::Refused, Fix::Yes);
            add(&[Vllm], Effect::Wrong, Fix::Yes);
        }
        Fault::NoPrefix => add(&[Peft], Effect::NoEffect, Fix::Yes),
        Fault::Wrapper { .. } => {
            add(&[Peft], Effect::NoEffect, Fix::Yes);
            add(&[Vllm, Sglang, LlamaCpp], Effect::Refused, Fix::Yes);
        }
        Fault::AdapterName { .. } => {
            add(&[Vllm, LlamaCpp], Effect::Refused, Fix::Yes);
            // It works if it happens to be loaded under this name.
            let outcome = if matches!(fault, Fault::AdapterName { adapter } if adapter == "default") {
                Effect::Caution
            } else {
                Effect::NoEffect
            };
            add(&[Peft], outcome, Fix::Yes);
        }
    }
}

/// Checks a tensor that is not a factor.
fn beside(adapter: &PeftAdapter, extra: &Extra, report: &mut Report) {
    let (at, why) = (extra.tensor.name(), format!("is not a factor of a LoRA: {}", extra.kind.words()));
    let mend = match extra.kind {
        ExtraKind::Magnitude => Fix::No,
        ExtraKind::BaseCopy => Fix::Yes,
        _ => Fix::ByPruning,
    };
    for consumer in [Vllm, Sglang, LlamaCpp].into_iter().filter(|consumer| !takes(*consumer, adapter, extra))
    {
        report.add(&[consumer], at, &*why, Effect::Refused, mend);
    }
    if !takes(Peft, adapter, extra) {
        report.add(&[Peft], at, format!("{why}, which no setting asks for"), Effect::NoEffect, mend);
    }
}

/// Whether `consumer` accepts this tensor besides the factors, and uses it as intended.
pub fn takes(consumer: Loader, adapter: &PeftAdapter, extra: &Extra) -> bool {
    let (config, kind, name) = (adapter.config(), extra.kind, extra.tensor.name());
    let module = extra.target.rsplit_once('.').map_or(&*extra.target, |(module, _)| module);
    let is_saved = || config.modules_to_save().iter().any(|saved| module.ends_with(saved.as_str()));
    match consumer {
        // A whole tensor is loaded into the base's own if the two names agree; in a layer with a LoRA, the base's own
        // is inside a wrapper.
        Peft => match kind {
            ExtraKind::Magnitude => config.is("use_dora"),
            ExtraKind::LoraBias => config.is("lora_bias"),
            ExtraKind::Norm | ExtraKind::FullWeight | ExtraKind::Bias => {
                name.contains(".base_layer.") || is_saved() || adapter.module(module).is_none()
            }
            ExtraKind::BaseCopy => true,
            ExtraKind::Unknown => false,
        },
        // The heads of classifiers are accepted, and PEFT's copy of a vocabulary's own weight is skipped.
        Vllm => match kind {
            ExtraKind::FullWeight | ExtraKind::Bias => {
                matches!(kind_of(module), "classifier" | "score") && is_saved()
            }
            ExtraKind::BaseCopy => [".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight"]
                .iter()
                .any(|end| name.ends_with(end)),
            _ => false,
        },
        Sglang => false,
        // The converter carries norms over, and skips the copies.
        LlamaCpp => match kind {
            ExtraKind::Norm => name.contains("_layernorm") || name.contains(".norm"),
            ExtraKind::BaseCopy => name.contains(".base_layer.weight"),
            _ => false,
        },
    }
}

fn in_place(adapter: &PeftAdapter, base: Option<&BaseModules>, module: &PeftModule, report: &mut Report) {
    let (config, name) = (adapter.config(), module.name());
    // Targets speak of the model's modules, whatever the keys call them.
    let in_model = base.and_then(|base| base.resolve(name)).map_or(name, |known| &known.loaded);
    if is_target(config, in_model) == Some(false) && !is_target_parameter(config, in_model) {
        report.add(&[Peft], name, "is not matched by target_modules", Effect::NoEffect, Fix::Yes);
    }
    let absent = siblings::absent(adapter, base, name).into_iter();
    for (sibling, presence) in absent.filter(|(sibling, _)| adapter.module(sibling).is_none()) {
        let kind = kind_of(&sibling);
        let (why, outcome) = match presence {
            Presence::Known => (format!("lacks {kind}, which servers fuse with it"), Effect::Refused),
            Presence::Unknown => (
                format!("lacks {kind}, which matters only if the base has one (--base tells)"),
                Effect::Caution,
            ),
        };
        report.add(&[Sglang], name, why, outcome, Fix::Yes);
    }
}

/// Checks a LoRA on the embedding or the head, which some bases' implementations in vLLM accept and others do not.
pub(crate) fn vocabulary(adapter: &PeftAdapter, model: Option<&str>, report: &mut Report) {
    for module in adapter.modules().filter(|module| module.place().is_vocabulary()) {
        let (why, outcome) = match model {
            Some(model) if VOCABULARY_TAKEN.contains(&model) => continue,
            Some(model) if VOCABULARY_REFUSED.contains(&model) => {
                (format!("is a LoRA on the vocabulary of a base of type {model}"), Effect::Refused)
            }
            _ => {
                let why = "is a LoRA on the vocabulary: accepted on Llama, Mixtral, Qwen3 and Granite, refused on Mistral, \
                           Qwen2, Gemma, DeepSeek-V2 and gpt-oss";
                (why.to_owned(), Effect::Caution)
            }
        };
        report.add(&[Vllm], module.name(), why, outcome, Fix::ByPruning);
    }
}

/// Checks a LoRA on the embedding or the head of a base that has one matrix for both: llama.cpp looks for a tensor of
/// the head's own and crashes, and multiplies the embedding's factors the wrong way round.
pub(crate) fn tied(adapter: &PeftAdapter, tied: Option<bool>, report: &mut Report) {
    for module in adapter.modules().filter(|module| module.place().is_vocabulary()) {
        let (why, outcome) = match tied {
            Some(false) => continue,
            Some(true) => ("is a LoRA on a head or embedding that are tied in the base", Effect::Refused),
            None => (
                "is a LoRA on the vocabulary: refused if the base's head and embedding are tied",
                Effect::Caution,
            ),
        };
        report.add(&[LlamaCpp], module.name(), why, outcome, Fix::ByPruning);
    }
}

/// Whether a module holds one of the two stacks of a layer's experts.
fn is_of_a_pair(module: &&PeftModule) -> bool {
    module.experts() > 1 && module.name().trim_end_matches(".base_layer").ends_with(".experts")
}

/// Checks stacks of experts: vLLM accepts both stacks of a layer, under PEFT's names, or neither.
fn stacks(adapter: &PeftAdapter, report: &mut Report) {
    for module in adapter.modules().filter(is_of_a_pair) {
        let name = module.name();
        let (other, kind) = match name.strip_suffix(".base_layer") {
            Some(outer) => (outer.to_owned(), "down_proj"),
            None => (format!("{name}.base_layer"), "gate_up_proj"),
        };
        if adapter.module(&other).is_none() {
            let why = format!("lacks '{other}', the factors of {kind}");
            report.add(&[Vllm], name, why, Effect::Refused, Fix::No);
        }
    }
}

/// Checks experts that are separate modules: vLLM stacks them, and needs every expert with all its projections; those
/// that the base does not have are none, as the ones that pass their input on.
fn experts(adapter: &PeftAdapter, base: Option<&BaseModules>, report: &mut Report) {
    let mut layers: BTreeMap<&str, (BTreeSet<usize>, BTreeSet<&str>)> = BTreeMap::new();
    let known = adapter.modules().filter_map(|module| expert_of(module.name()));
    for (layer, expert, projection) in known {
        let (experts, projections) = layers.entry(layer).or_default();
        experts.insert(expert);
        projections.insert(projection);
    }
    for (layer, (experts, projections)) in &layers {
        let wanted = match projections.iter().next() {
            Some(&("w1" | "w2" | "w3")) => ["w1", "w2", "w3"],
            _ => ["gate_proj", "up_proj", "down_proj"],
        };
        let count = experts.last().map_or(0, |last| last.saturating_add(1));
        if count > MOST_EXPERTS {
            let why = format!("names expert {}, and no model has as many", count - 1);
            report.add(&[Vllm], *layer, why, Effect::Refused, Fix::No);
            continue;
        }
        let missing = (0..count)
            .flat_map(|expert| wanted.map(|projection| format!("{layer}.{expert}.{projection}")))
            .filter(|name| adapter.module(name).is_none())
            .filter(|name| base.and_then(|base| base.has(name)) != Some(false))
            .count();
        if missing > 0 {
            let why = format!("lacks {missing} projections of its {count} experts, but all are needed");
            report.add(&[Vllm], *layer, why, Effect::Refused, Fix::Yes);
        }
    }
}
