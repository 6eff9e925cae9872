//! The rules on an adapter's folder and its `adapter_config.json`.

use serde_json::Value;

use crate::lora::read::PeftAdapter;
use crate::lora::read::classify::{Extra, PeftModule};
use crate::lora::read::config::{PeftConfig, Targets};
use crate::lora::rules::Loader::{LlamaCpp, Peft, Sglang, Vllm};
use crate::lora::rules::{Effect, Fix, Report};
use crate::lora::{CONFIG, WEIGHTS};

/// The largest `--max-lora-rank` of vLLM.
const VLLM_MOST: usize = 512;

pub(crate) fn check(adapter: &PeftAdapter, report: &mut Report) {
    for file in adapter.files().iter().filter(|file| file.ends_with(".safetensors") && *file != WEIGHTS) {
        let why = "is next to the weights and may be loaded instead of them";
        report.add(&[Sglang], file, why, Effect::Wrong, Fix::Yes);
    }
    let config = adapter.config();
    ranks(config, adapter, report);
    targets(config, adapter, report);
    switches(config, report);
    meanings(config, report);
}

fn config_key(key: &str) -> String {
    format!("{CONFIG}: {key}")
}

/// Whether a setting is off: absent, null, false, empty or `none`.
fn is_silent(config: &PeftConfig, key: &str) -> bool {
    !config.is(key) || config.text(key) == Some("none")
}

fn ranks(config: &PeftConfig, adapter: &PeftAdapter, report: &mut Report) {
    if config.text("peft_type").is_none() {
        report.add(&[Peft], config_key("peft_type"), "is missing", Effect::Refused, Fix::Yes);
    }
    match config.r() {
        None => report.add(&[Vllm, Sglang], config_key("r"), "is missing", Effect::Refused, Fix::Yes),
        Some(0) => report.add(&[Peft, Vllm, Sglang], config_key("r"), "is 0", Effect::Refused, Fix::Yes),
        Some(_) => {}
    }
    let rank = adapter.rank().max(config.r().unwrap_or(0));
    if rank > VLLM_MOST {
        let why = format!("is {rank}, but the largest --max-lora-rank is {VLLM_MOST}");
        report.add(&[Vllm], config_key("r"), why, Effect::Refused, Fix::ByMaxRank);
    }
    match (config.lora_alpha(), config.r()) {
        (None, _) => {
            report.add(
                &[Vllm, Sglang, LlamaCpp],
                config_key("lora_alpha"),
                "is missing",
                Effect::Refused,
                Fix::Yes,
            );
        }
        (Some(alpha), Some(r)) if r > 0 && alpha != r as f64 => {
            let why = "is not r: B is multiplied by the scale and rounded again";
            report.add(&[Vllm], config_key("lora_alpha"), why, Effect::Caution, Fix::Yes);
        }
        _ => {}
    }
    for key in ["rank_pattern", "alpha_pattern"].into_iter().filter(|key| !is_silent(config, key)) {
        let why = "makes ranks or scales differ from module to module";
        report.add(&[Sglang], config_key(key), why, Effect::Refused, Fix::Yes);
        report.add(&[Vllm], config_key(key), "is ignored by older versions", Effect::Caution, Fix::Yes);
    }
    let differs = |module: &&PeftModule| config.lora_alpha() != Some(module.alpha());
    if config.lora_alpha().is_some() && adapter.modules().find(differs).is_some() {
        report.add(&[LlamaCpp], config_key("alpha_pattern"), "is ignored", Effect::Wrong, Fix::Yes);
    }
}

fn targets(config: &PeftConfig, adapter: &PeftAdapter, report: &mut Report) {
    match config.targets() {
        Targets::Names(names) if !names.is_empty() || config.is("target_parameters") => {}
        Targets::Pattern(_) => {
            let why = "is a pattern; a list of names is understood everywhere";
            report.add(&[Sglang], config_key("target_modules"), why, Effect::Caution, Fix::Yes);
        }
        // Only stacks of experts: PEFT and vLLM accept an empty list.
        Targets::Names(_) if !is_silent(config, "target_parameters") => {}
        _ => report.add(
            &[Vllm, Sglang],
            config_key("target_modules"),
            "names no module",
            Effect::Refused,
            Fix::Yes,
        ),
    }
    let saved: Vec<String> = config.modules_to_save();
    for name in &saved {
        let module =
            |extra: &Extra| extra.target.rsplit_once('.').is_some_and(|(module, _)| module.ends_with(name));
        if !adapter.extras().iter().any(module) {
            let why = format!("names '{name}', but the adapter has no whole weight for it");
            report.add(&[Peft], config_key("modules_to_save"), why, Effect::Refused, Fix::Yes);
        }
    }
    if saved.iter().any(|name| !matches!(name.as_str(), "classifier" | "score")) {
        let why = "asks for whole weights besides the LoRA";
        report.add(&[Vllm, Sglang], config_key("modules_to_save"), why, Effect::Refused, Fix::ByPruning);
    }
}

fn switches(config: &PeftConfig, report: &mut Report) {
    if !is_silent(config, "bias") {
        report.add(&[Vllm], config_key("bias"), "asks for biases", Effect::Refused, Fix::ByPruning);
    }
    if !is_silent(config, "lora_bias") {
        report.add(
            &[Vllm],
            config_key("lora_bias"),
            "asks for biases of lora_B",
            Effect::Refused,
            Fix::ByPruning,
        );
    }
    if !is_silent(config, "use_rslora") {
        let why = "is ignored, so the scale is alpha / r instead of alpha / sqrt(r)";
        report.add(&[Sglang, LlamaCpp], config_key("use_rslora"), why, Effect::Wrong, Fix::Yes);
    }
}

/// Settings that make the adapter something other than a plain `W + scale · B·A`.
fn meanings(config: &PeftConfig, report: &mut Report) {
    if !is_silent(config, "use_dora") {
        let why = "rescales every row of the sum by a magnitude, which a plain LoRA cannot";
        report.add(&[Vllm, Sglang, LlamaCpp], config_key("use_dora"), why, Effect::Refused, Fix::No);
    }
    if let Some(init) = config.init_that_changes_the_base() {
        let why =
            format!("is '{init}', which makes PEFT change the base's own weights when it loads the adapter");
        report.add(&[Vllm], config_key("init_lora_weights"), &*why, Effect::Refused, Fix::No);
        report.add(&[Sglang, LlamaCpp], config_key("init_lora_weights"), why, Effect::Wrong, Fix::No);
    }
    for (key, does) in [
        ("alora_invocation_tokens", "switches the adapter on in the middle of a text (aLoRA)"),
        ("layer_replication", "repeats layers of the base"),
        ("use_bdlora", "makes factors block-diagonal (BD-LoRA)"),
        ("use_qalora", "pools the input in groups (QALoRA)"),
    ] {
        if !is_silent(config, key) {
            report.add(&[Vllm], config_key(key), does, Effect::Refused, Fix::No);
            report.add(
                &[Sglang, LlamaCpp],
                config_key(key),
                format!("{does}, and is ignored"),
                Effect::Wrong,
                Fix::No,
            );
        }
    }
}

/// Whether `target_modules` matches the module, by PEFT's rule; `None` if its pattern cannot be parsed here.
pub(crate) fn is_target(config: &PeftConfig, module: &str) -> Option<bool> {
    config.is_target(module)
}

/// Whether the module is a parameter that PEFT reaches through `target_parameters`, for example fused experts.
pub(crate) fn is_target_parameter(config: &PeftConfig, module: &str) -> bool {
    let owner = module.trim_end_matches(".base_layer");
    let names = config.raw().get("target_parameters").and_then(Value::as_array);
    let holds = |name: &Value| {
        let holder = name.as_str().and_then(|name| name.rsplit_once('.')).map(|(holder, _)| holder);
        holder.is_some_and(|holder| {
            owner == holder || owner.strip_suffix(holder).is_some_and(|h| h.ends_with('.'))
        })
    };
    names.is_some_and(|names| names.iter().any(holds))
}
