//! The rules on modules that single programs know in another form than PEFT, or not at all.
//!
//! Whether a program knows the model's architecture is not judged. Where the rules come from:
//!
//! - vLLM 0.32: `lora/lora_model.py` (`check_unexpected_modules`), `lora/model_manager.py`
//!   (`_validate_moe_lora_format`), `is_3d_moe_weight` of its models. Elsewhere it takes stacks if it was started with
//!   `--enable-mixed-moe-lora-format` and the request says `is_3d_lora_weight`.
//! - SGLang 0.5.23: `srt/lora/mem_pool.py`, `load_lora_weight_to_buffer`. It finds experts by `experts.N.` in a key.
//!   PEFT's keys of stacks, `experts` and `experts.base_layer`, have no target in their names, and it fails on such a
//!   key whatever the model. `srt/lora/lora.py`, `normalize_gate_up_proj`: an expert's `gate_proj` may be without an
//!   `up_proj`, an `up_proj` without a `gate_proj` goes by its own name, which adapters' targets
//!   (`get_normalized_target_modules` in `srt/lora/utils.py`) never become. `srt/lora/utils.py`,
//!   `get_default_hidden_dim`: no layer of a tower; `should_apply_lora` of its models with towers: none either.
//! - llama.cpp (`convert_lora_to_gguf.py`, `conversion/*.py` of 2026): experts are collected by number
//!   (`conversion/qwen.py`, `llama.py`). PEFT's keys of stacks end as "Unprocessed experts" or "Can not map tensor";
//!   those of a stack that is a module's weight become a matrix where the model has a stack. The converter of adapters
//!   is that of the language model, which maps no tensor of a tower.

use crate::lora::names::{expert_of, fused_siblings, kind_of};
use crate::lora::read::{PeftAdapter, PeftModule};
use crate::lora::rules::Loader::{LlamaCpp, Sglang, Vllm};
use crate::lora::rules::{Effect, Fix, Report};
use crate::lora::tree::BaseModules;

pub(crate) fn check(adapter: &PeftAdapter, base: Option<&BaseModules>, report: &mut Report) {
    stacks(adapter, base, report);
    if let Some(base) = base {
        towers(adapter, base, report);
        without_gate(adapter, base, report);
    }
}

/// Checks stacks of experts: of the programs that serve models only vLLM takes them, on the few that it keeps as stacks
/// itself.
fn stacks(adapter: &PeftAdapter, base: Option<&BaseModules>, report: &mut Report) {
    let is_stack = |module: &&PeftModule| {
        module.experts() > 1 || base.is_some_and(|base| base.stored_name_of_wrapper(module.name()).is_some())
    };
    let Some(first) = adapter.modules().find(is_stack) else { return };
    let why = "is a stack of experts: SGLang and llama.cpp know experts by their numbers; extract --for sglang or \
               --for llama.cpp makes an adapter for them";
    report.add(&[Sglang, LlamaCpp], first.name(), why, Effect::Refused, Fix::No);
    if base.is_some_and(|base| base.model_type().is_some() && !base.is_stacked_in_vllm()) {
        let why = "is a stack of experts, which vLLM takes on gpt-oss, Qwen3-VL-MoE, Qwen3.5-MoE, Qwen3-Omni and \
                   InternS1-Pro alone: extract --for vllm makes an adapter for it";
        report.add(&[Vllm], first.name(), why, Effect::Refused, Fix::No);
    }
}

/// Checks modules of a vision or audio tower and of what joins it to the language model: vLLM leaves them out unless
/// a flag asks for them, and refuses them where it does not load the tower; SGLang and llama.cpp take none.
fn towers(adapter: &PeftAdapter, base: &BaseModules, report: &mut Report) {
    let is_outside = |module: &&PeftModule| {
        base.resolve(module.name()).is_some_and(|known| base.is_outside_language_model(known))
    };
    let found: Vec<&PeftModule> = adapter.modules().filter(is_outside).collect();
    let Some(first) = found.first() else { return };
    let why = format!(
        "and {} more are of a tower or projector: vLLM applies them with --enable-tower-connector-lora alone, and \
         refuses them where the tower is not loaded",
        found.len() - 1
    );
    report.add(&[Vllm], first.name(), why, Effect::Caution, Fix::No);
    for module in found {
        let why = "is of a tower or projector, on which SGLang and llama.cpp take no LoRA";
        report.add(&[Sglang, LlamaCpp], module.name(), why, Effect::Refused, Fix::ByPruning);
    }
}

/// Checks an `up_proj` in a base that has no `gate_proj` beside it: SGLang looks for the two as one.
fn without_gate(adapter: &PeftAdapter, base: &BaseModules, report: &mut Report) {
    let is_alone = |module: &&PeftModule| {
        kind_of(module.name()) == "up_proj"
            && base.has(module.name()) == Some(true)
            && fused_siblings(module.name()).iter().all(|gate| base.has(gate) == Some(false))
    };
    let layers = adapter.modules().filter(is_alone).filter(|module| module.experts() == 1);
    let (experts, rest): (Vec<_>, Vec<_>) = layers.partition(|module| expert_of(module.name()).is_some());
    if let Some(first) = experts.first() {
        let why = "is an expert's up_proj without a gate_proj, which SGLang looks for under another name";
        report.add(&[Sglang], first.name(), why, Effect::Refused, Fix::No);
    }
    if let Some(first) = rest.first() {
        let why = "is an up_proj without a gate_proj: SGLang takes it with --lora-target-modules all alone";
        report.add(&[Sglang], first.name(), why, Effect::Caution, Fix::No);
    }
}
