//! The portable adapter, as rules: what PEFT, vLLM, SGLang and llama.cpp all load without losing anything.

use std::collections::BTreeMap;

use serde_json::Value;

use super::names::{fused_siblings, kind_of};
use super::{CONFIG, WEIGHTS};
use crate::quant::Stored;

/// One rule that an adapter breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The tensor, file or key at fault.
    pub at: String,
    /// What is wrong, and for whom it matters.
    pub why: String,
}

fn violation(at: impl Into<String>, why: impl Into<String>) -> Violation {
    Violation { at: at.into(), why: why.into() }
}

/// Checks an adapter: the names of the files in its folder, its config, the tensors of its weight file.
pub fn check(files: &[String], config: &Value, tensors: &[Stored]) -> Vec<Violation> {
    let mut found = check_files(files);
    found.extend(check_config(config));
    let (modules, strays) = by_module(tensors);
    found.extend(strays);
    if modules.is_empty() {
        found.push(violation(WEIGHTS, "holds no LoRA at all: vLLM refuses it"));
    }
    let rank = config.get("r").and_then(Value::as_u64).unwrap_or(0) as usize;
    for (module, factors) in &modules {
        found.extend(check_module(module, factors, rank, config, &modules));
    }
    found
}

fn check_files(files: &[String]) -> Vec<Violation> {
    let mut found = Vec::new();
    for needed in [WEIGHTS, CONFIG] {
        if !files.iter().any(|file| file == needed) {
            found.push(violation(needed, "is missing: every loader looks for it"));
        }
    }
    let others = files.iter().filter(|file| file.ends_with(".safetensors") && *file != WEIGHTS);
    found.extend(
        others.map(|file| violation(file, "lies beside the weights: SGLang may load it in their stead")),
    );
    found
}

fn check_config(config: &Value) -> Vec<Violation> {
    let mut found = Vec::new();
    let empty = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::String(text) => text == "none",
        _ => false,
    };
    let reasons = [
        ("rank_pattern", "ranks that differ: SGLang refuses them, old vLLM ignores them"),
        ("alpha_pattern", "scales that differ: SGLang refuses them, old vLLM ignores them"),
        ("modules_to_save", "full weights: vLLM and SGLang refuse them"),
        ("use_rslora", "SGLang ignores it and scales wrongly"),
        ("use_dora", "vLLM and SGLang refuse it"),
        ("bias", "vLLM refuses biases"),
        ("lora_bias", "vLLM refuses biases"),
    ];
    for (key, why) in reasons {
        if config.get(key).is_some_and(|value| !empty(value)) {
            found.push(violation(format!("{CONFIG}: {key}"), why));
        }
    }
    if config.get("peft_type").and_then(Value::as_str) != Some("LORA") {
        found.push(violation(format!("{CONFIG}: peft_type"), "is not LORA"));
    }
    match (config.get("r").and_then(Value::as_u64), config.get("lora_alpha").and_then(Value::as_f64)) {
        (None | Some(0), _) => found.push(violation(format!("{CONFIG}: r"), "is missing or 0")),
        (Some(r), alpha) if alpha != Some(r as f64) => {
            found.push(violation(
                format!("{CONFIG}: lora_alpha"),
                "is not r: the scale rounds when it is multiplied in",
            ));
        }
        _ => {}
    }
    if config.get("target_modules").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        found.push(violation(
            format!("{CONFIG}: target_modules"),
            "names no module: vLLM and SGLang need a list",
        ));
    }
    found
}

/// `lora_A` and `lora_B` of one module.
#[derive(Default)]
struct Pair<'a> {
    a: Option<&'a Stored>,
    b: Option<&'a Stored>,
}

fn by_module(tensors: &[Stored]) -> (BTreeMap<String, Pair<'_>>, Vec<Violation>) {
    const PREFIX: &str = "base_model.model.";
    const SUFFIXES: [(&str, bool); 4] = [
        (".lora_A.weight", true),
        (".lora_B.weight", false),
        (".lora_embedding_A", true),
        (".lora_embedding_B", false),
    ];
    let mut modules: BTreeMap<String, Pair<'_>> = BTreeMap::new();
    let mut strays = Vec::new();
    for tensor in tensors {
        let stem = tensor.name.strip_prefix(PREFIX);
        let part =
            stem.and_then(|stem| SUFFIXES.iter().find_map(|(s, is_a)| Some((stem.strip_suffix(s)?, *is_a))));
        match part {
            Some((module, true)) => modules.entry(module.to_owned()).or_default().a = Some(tensor),
            Some((module, false)) => modules.entry(module.to_owned()).or_default().b = Some(tensor),
            None if stem.is_none() => {
                strays.push(violation(
                    &tensor.name,
                    "has no 'base_model.model.' before it: PEFT loads it to no effect",
                ));
            }
            None => {
                strays.push(violation(&tensor.name, "is no factor of a LoRA: vLLM or llama.cpp refuses it"))
            }
        }
    }
    (modules, strays)
}

fn check_module(
    module: &str,
    factors: &Pair<'_>,
    rank: usize,
    config: &Value,
    modules: &BTreeMap<String, Pair<'_>>,
) -> Vec<Violation> {
    let mut found = Vec::new();
    let (Some(a), Some(b)) = (factors.a, factors.b) else {
        return vec![violation(module, "has a lone lora_A or lora_B: vLLM refuses it")];
    };
    match (&*a.shape, &*b.shape) {
        ([ra, _], [_, rb]) if *ra == rank && *rb == rank => {}
        _ => found.push(violation(
            module,
            format!("has factors {:?} and {:?}, not of rank {rank}", a.shape, b.shape),
        )),
    }
    let targets = config.get("target_modules").and_then(Value::as_array);
    let is_target = |target: &Value| {
        target
            .as_str()
            .is_some_and(|t| module == t || module.strip_suffix(t).is_some_and(|head| head.ends_with('.')))
    };
    if !targets.is_some_and(|targets| targets.iter().any(is_target)) {
        found.push(violation(module, "is in no entry of target_modules: PEFT loads it to no effect"));
    }
    for sibling in fused_siblings(module).iter().filter(|sibling| !modules.contains_key(*sibling)) {
        let kind = kind_of(sibling);
        found.push(violation(module, format!("comes without {kind}, which servers fuse with it")));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::Dtype;
    use serde_json::json;

    fn stored(name: &str, shape: [usize; 2]) -> Stored {
        Stored { name: name.into(), dtype: Dtype::BF16, shape: shape.into() }
    }

    fn good() -> (Vec<String>, Value, Vec<Stored>) {
        let files = [WEIGHTS, CONFIG, "README.md"].map(String::from).to_vec();
        let config = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["o_proj"],
            "bias": "none", "modules_to_save": null, "rank_pattern": {}, "alpha_pattern": {}});
        let stem = "base_model.model.model.layers.0.self_attn.o_proj";
        let a = stored(&format!("{stem}.lora_A.weight"), [4, 8]);
        (files, config, vec![a, stored(&format!("{stem}.lora_B.weight"), [6, 4])])
    }

    /// Breaks one thing in a good adapter; exactly one rule must notice, with these words.
    fn breaks(change: impl FnOnce(&mut Vec<String>, &mut Value, &mut Vec<Stored>), words: &str) {
        let (mut files, mut config, mut tensors) = good();
        change(&mut files, &mut config, &mut tensors);
        let found = check(&files, &config, &tensors);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(format!("{} {}", found[0].at, found[0].why).contains(words), "{found:?}");
    }

    #[test]
    fn a_good_adapter_breaks_no_rule() {
        let (files, config, tensors) = good();
        assert_eq!(check(&files, &config, &tensors), []);
    }

    #[test]
    fn each_rule_notices_its_breach() {
        breaks(|files, _, _| files.push("model.safetensors".into()), "SGLang may load");
        breaks(|files, _, _| files.retain(|f| f != CONFIG), "is missing");
        breaks(|_, config, _| config["lora_alpha"] = json!(8), "lora_alpha");
        breaks(|_, config, _| config["use_dora"] = json!(true), "use_dora");
        breaks(|_, config, _| config["use_rslora"] = json!(true), "use_rslora");
        breaks(|_, config, _| config["bias"] = json!("all"), "bias");
        breaks(|_, config, _| config["modules_to_save"] = json!(["norm"]), "modules_to_save");
        breaks(|_, config, _| config["rank_pattern"] = json!({"q_proj": 2}), "rank_pattern");
        breaks(|_, config, _| config["alpha_pattern"] = json!({"q_proj": 2}), "alpha_pattern");
        breaks(|_, config, _| config["target_modules"] = json!(["q_proj"]), "in no entry of target_modules");
        breaks(|_, _, tensors| drop(tensors.pop()), "lone lora_A or lora_B");
        breaks(|_, _, tensors| tensors[0].shape = vec![3, 8], "not of rank 4");
        breaks(|_, _, tensors| tensors.clear(), "holds no LoRA");
        breaks(
            |_, _, tensors| tensors.push(stored("base_model.model.model.norm.weight", [1, 1])),
            "no factor",
        );
        breaks(
            |_, _, tensors| tensors.push(stored("model.norm.lora_A.weight", [4, 1])),
            "no 'base_model.model.'",
        );
    }

    #[test]
    fn fused_sets_must_be_whole() {
        let (files, mut config, mut tensors) = good();
        config["target_modules"] = json!(["o_proj", "up_proj"]);
        for factor in ["lora_A.weight", "lora_B.weight"] {
            let name = format!("base_model.model.model.layers.0.mlp.up_proj.{factor}");
            tensors.push(stored(&name, [4, 4]));
        }
        let found = check(&files, &config, &tensors);
        assert!(found.len() == 1 && found[0].why.contains("without gate_proj"), "{found:?}");
    }
}
