//! Each rule of each loader: broken alone, in an adapter that breaks no other rule.

use std::fs;
use std::path::Path;

use crate::common::adapter::{config, lora, write_adapter};
use crate::common::pair::{Tensor, noise, write};
use serde_json::{Value, json};
use tempfile::tempdir;
use trephine::commands::sanitize::{Sanitizing, check, sanitize};
use trephine::lora::read::PeftAdapter;
use trephine::lora::rules::Effect::{self, Caution, NoEffect, Refused, Wrong};
use trephine::lora::rules::Fix::{ByMaxRank, ByPruning, No, Yes};
use trephine::lora::rules::Loader::{self, LlamaCpp, Peft, Sglang, Vllm};
use trephine::lora::rules::{Fix, RuleFinding, judge, portable};
use trephine::lora::tree::BaseModules;
use trephine::run::Silent;

const O: &str = "model.layers.0.self_attn.o_proj";

/// An adapter that every program loads.
fn good() -> (Value, Vec<Tensor>) {
    let mut settings = config(&["o_proj"]);
    settings["lora_alpha"] = json!(4);
    for (key, silent) in
        [("bias", json!("none")), ("rank_pattern", json!({})), ("modules_to_save", json!(null))]
    {
        settings[key] = silent;
    }
    (settings, lora(O, [8, 6], 4, 1))
}

fn tensor(name: &str, shape: &[usize]) -> Tensor {
    Tensor::bf16(&format!("base_model.model.{name}"), shape, &noise(3, shape.iter().product()))
}

fn found(folder: &Path, model: Option<&str>) -> Vec<RuleFinding> {
    let base = model.map_or_else(BaseModules::default, BaseModules::of_type).with_tied(Some(false));
    judge(&PeftAdapter::open_folder(folder).unwrap(), Some(&base))
}

/// The loader that a finding concerns, where it is, its consequence, and whether it can be fixed.
type Expected<'a> = (&'a [Loader], &'a str, Effect, Fix);

/// Breaks one thing in the good adapter, and asserts that exactly these findings result.
#[track_caller]
fn breaks(change: impl FnOnce(&mut Value, &mut Vec<Tensor>), expected: &[Expected<'_>]) {
    let home = tempdir().unwrap();
    let (mut settings, mut tensors) = good();
    change(&mut settings, &mut tensors);
    let mut found = found(&write_adapter(home.path(), &tensors, &settings), Some("qwen3"));
    for (consumers, at, outcome, mend) in expected {
        let fits = |f: &RuleFinding| {
            f.consumers == *consumers && f.at.ends_with(at) && (f.outcome, f.mend) == (*outcome, *mend)
        };
        let place = found.iter().position(fits);
        found.remove(
            place.unwrap_or_else(|| panic!("no {consumers:?} {at} {outcome:?} {mend:?} in {found:#?}")),
        );
    }
    assert_eq!(found, []);
}

/// Sets one key of the config.
#[track_caller]
fn sets(key: &str, value: Value, expected: &[Expected<'_>]) {
    breaks(|settings, _| settings[key] = value, expected);
}

/// Adds one tensor.
#[track_caller]
fn adds(name: &str, shape: &[usize], expected: &[Expected<'_>]) {
    breaks(|_, tensors| tensors.push(tensor(name, shape)), expected);
}

#[test]
fn a_good_adapter_breaks_no_rule() {
    breaks(|_, _| {}, &[]);
    breaks(|settings, _| settings["unknown_to_all"] = json!(true), &[]);
}

#[test]
fn ranks_and_scales() {
    let missing = |key: &'static str| {
        move |settings: &mut Value, _: &mut Vec<Tensor>| {
            settings.as_object_mut().unwrap().remove(key).unwrap();
        }
    };
    let other = (&[Peft, Sglang][..], O, Refused, Yes);
    let padded = (&[Vllm][..], O, Wrong, Yes);
    breaks(missing("r"), &[(&[Vllm, Sglang], ": r", Refused, Yes), other, padded]);
    breaks(missing("lora_alpha"), &[(&[Vllm, Sglang, LlamaCpp], ": lora_alpha", Refused, Yes)]);
    breaks(missing("peft_type"), &[(&[Peft], ": peft_type", Refused, Yes)]);
    sets("r", json!(0), &[(&[Peft, Vllm, Sglang], ": r", Refused, Yes), other, padded]);
    sets("r", json!(8), &[other, padded, (&[Vllm], ": lora_alpha", Caution, Yes)]);
    sets("lora_alpha", json!(8), &[(&[Vllm], ": lora_alpha", Caution, Yes)]);
    sets("use_rslora", json!(true), &[(&[Sglang, LlamaCpp], ": use_rslora", Wrong, Yes)]);
    let pattern = |key: &'static str| [(&[Sglang][..], key, Refused, Yes), (&[Vllm][..], key, Caution, Yes)];
    sets("rank_pattern", json!({"q_proj": 2}), &pattern(": rank_pattern"));
    sets("alpha_pattern", json!({"q_proj": 2}), &pattern(": alpha_pattern"));
    let [refused, old] = pattern(": alpha_pattern");
    sets(
        "alpha_pattern",
        json!({"o_proj": 2}),
        &[refused, old, (&[LlamaCpp], ": alpha_pattern", Wrong, Yes)],
    );
    breaks(
        |settings, tensors| {
            (settings["r"], settings["lora_alpha"]) = (json!(513), json!(513));
            *tensors = lora(O, [8, 6], 513, 1);
        },
        &[(&[Vllm], ": r", Refused, ByMaxRank)],
    );
    breaks(|_, tensors| *tensors = lora(O, [8, 6], 0, 1), &[(&Loader::ALL, O, Refused, Yes)]);
}

#[test]
fn settings_that_ask_for_more_than_a_lora() {
    sets("bias", json!("lora_only"), &[(&[Vllm], ": bias", Refused, ByPruning)]);
    sets("lora_bias", json!(true), &[(&[Vllm], ": lora_bias", Refused, ByPruning)]);
    let absent = (&[Peft][..], ": modules_to_save", Refused, Yes);
    let whole = (&[Vllm, Sglang][..], ": modules_to_save", Refused, ByPruning);
    sets("modules_to_save", json!(["norm"]), &[whole, absent]);
    sets("modules_to_save", json!(["score"]), &[absent]);
    sets("use_dora", json!(true), &[(&[Vllm, Sglang, LlamaCpp], ": use_dora", Refused, No)]);
    sets("init_lora_weights", json!("eva"), &[]);
    for (key, value) in [
        ("init_lora_weights", json!("pissa")),
        ("alora_invocation_tokens", json!([5, 6])),
        ("layer_replication", json!([[0, 2], [1, 3]])),
        ("use_bdlora", json!({"nblocks": 2})),
        ("use_qalora", json!(true)),
    ] {
        sets(key, value, &[(&[Vllm], key, Refused, No), (&[Sglang, LlamaCpp], key, Wrong, No)]);
    }
}

#[test]
fn target_modules_reach_every_module() {
    let unreached = (&[Peft][..], O, NoEffect, Yes);
    let none = (&[Vllm, Sglang][..], ": target_modules", Refused, Yes);
    sets("target_modules", json!(["q_proj"]), &[unreached]);
    sets("target_modules", json!(["proj"]), &[unreached]);
    sets("target_modules", json!(["self_attn.o_proj"]), &[]);
    sets("target_modules", json!([]), &[unreached, none]);
    sets("target_modules", json!(null), &[unreached, none]);
    let pattern = (&[Sglang][..], ": target_modules", Caution, Yes);
    sets("target_modules", json!("all-linear"), &[pattern]);
    sets("target_modules", json!(r".*\.(q|o)_proj"), &[pattern]);
    sets("target_modules", json!("o_proj"), &[pattern, unreached]);
}

#[test]
fn tensors_beside_the_factors() {
    let servers = |at: &'static str, mend| [Vllm, Sglang, LlamaCpp].map(|consumer| (consumer, at, mend));
    // PEFT loads whole weights into those of the base, whether or not its settings ask for them, except inside
    // a wrapper.
    for (name, shape, mend, llama_takes) in [
        ("model.norm.weight", &[6][..], ByPruning, true),
        ("model.layers.0.input_layernorm.weight", &[6], ByPruning, true),
        ("model.layers.0.self_attn.q_norm.weight", &[4], ByPruning, false),
        ("model.layers.0.self_attn.k_norm.weight", &[4], ByPruning, false),
        ("lm_head.weight", &[10, 6], ByPruning, false),
        ("model.embed_tokens.weight", &[10, 6], ByPruning, false),
        ("model.layers.0.self_attn.o_proj.bias", &[8], ByPruning, false),
        ("model.layers.0.self_attn.o_proj.lora_B.bias", &[8], ByPruning, false),
        ("model.layers.0.self_attn.o_proj.lora_magnitude_vector", &[8], No, false),
        ("model.layers.0.self_attn.o_proj.lora_other", &[8], ByPruning, false),
    ] {
        let refused = servers(name, mend).into_iter().filter(|(who, ..)| !(llama_takes && *who == LlamaCpp));
        let refused: Vec<_> = refused.map(|(who, at, mend)| ([who], at, mend)).collect();
        let mut expected: Vec<Expected<'_>> =
            refused.iter().map(|(who, at, mend)| (&who[..], *at, Refused, *mend)).collect();
        if name.contains("o_proj") {
            expected.push((&[Peft], name, NoEffect, mend));
        }
        adds(name, shape, &expected);
    }
    // PEFT's copies of the base's weights, which its settings need not ask for.
    let copy = "model.embed_tokens.base_layer.weight";
    adds(copy, &[10, 6], &[(&[Sglang], copy, Refused, Yes)]);
    let original = "lm_head.original_module.weight";
    let refused = [Vllm, Sglang, LlamaCpp].map(|who| [who]);
    adds(original, &[10, 6], &[0, 1, 2].map(|i| (&refused[i][..], original, Refused, Yes)));
}

#[test]
fn settings_tell_what_peft_loads() {
    let asks = |key: &'static str, value: Value, name: &'static str, shape: &[usize]| {
        let home = tempdir().unwrap();
        let (mut settings, mut tensors) = good();
        settings[key] = value;
        tensors.push(tensor(name, shape));
        let found = found(&write_adapter(home.path(), &tensors, &settings), None);
        let names = |f: &&RuleFinding| f.at.ends_with(name);
        assert!(found.iter().filter(names).all(|f| f.consumers != [Peft]), "{found:#?}");
        found.iter().any(|f| f.concerns(&[Vllm]) && f.is_failure())
    };
    assert!(asks("modules_to_save", json!(["norm"]), "model.norm.weight", &[6]));
    assert!(asks("modules_to_save", json!(["lm_head"]), "lm_head.weight", &[10, 6]));
    assert!(asks("bias", json!("all"), "model.layers.0.self_attn.o_proj.base_layer.bias", &[8]));
    assert!(asks("modules_to_save", json!(["o_proj"]), "model.layers.0.self_attn.o_proj.bias", &[8]));
    assert!(asks("lora_bias", json!(true), "model.layers.0.self_attn.o_proj.lora_B.bias", &[8]));
    // vLLM accepts the head of a classifier too.
    assert!(!asks("modules_to_save", json!(["score"]), "score.weight", &[2, 6]));
}

#[test]
fn factors_that_are_no_pair() {
    let none = (&[Vllm][..], "adapter_model.safetensors", Refused, No);
    let lone = (&[Vllm, Sglang, LlamaCpp][..], O, Refused, ByPruning);
    // PEFT initializes A at random and B at zero before it loads: B without A gives noise, A without B gives nothing.
    breaks(|_, tensors| drop(tensors.pop()), &[none, lone, (&[Peft], O, NoEffect, ByPruning)]);
    breaks(|_, tensors| drop(tensors.remove(0)), &[none, lone, (&[Peft], O, Wrong, ByPruning)]);
    breaks(|_, tensors| tensors.clear(), &[none]);
    breaks(|_, tensors| tensors[0].shape = vec![3, 8], &[none, (&Loader::ALL, O, Refused, No)]);
    breaks(|_, tensors| tensors[0].dtype = safetensors::Dtype::I16, &[none, (&Loader::ALL, O, Refused, No)]);
}

#[test]
fn names_that_do_nothing() {
    let (a, bare) = (format!("{O}.lora_A.weight"), format!("base_model.model.{O}.lora_A.weight"));
    breaks(|_, tensors| tensors[0].name = a.clone(), &[(&[Peft], &a, NoEffect, Yes)]);
    let own = bare.replace("lora_A", "lora_A.default");
    breaks(
        |_, tensors| tensors[0].name = own.clone(),
        &[(&[Vllm, LlamaCpp], &own, Refused, Yes), (&[Peft], &own, Caution, Yes)],
    );
    let other = bare.replace("lora_A", "lora_A.other");
    breaks(
        |_, tensors| tensors[0].name = other.clone(),
        &[(&[Vllm, LlamaCpp], &other, Refused, Yes), (&[Peft], &other, NoEffect, Yes)],
    );
}

#[test]
fn fused_sets_must_be_whole() {
    breaks(
        |settings, tensors| {
            settings["target_modules"] = json!(["o_proj", "up_proj"]);
            tensors.extend(lora("model.layers.0.mlp.up_proj", [8, 6], 4, 5));
        },
        &[(&[Sglang], "up_proj", Caution, Yes)],
    );
    breaks(
        |settings, tensors| {
            settings["target_modules"] = json!(["o_proj", "q_proj", "v_proj"]);
            for kind in ["q_proj", "v_proj"] {
                tensors.extend(lora(&format!("model.layers.0.self_attn.{kind}"), [8, 6], 4, 5));
            }
        },
        &[(&[Sglang], "q_proj", Refused, Yes), (&[Sglang], "v_proj", Refused, Yes)],
    );
}

/// Nemotron, Apertus and others have an `up_proj` and no `gate_proj`; Kimi's `q_proj` has neither `k_proj` nor
/// `v_proj` beside it.
#[test]
fn a_sibling_counts_only_if_the_base_has_it() {
    let home = tempdir().unwrap();
    let (mut settings, mut factors) = good();
    settings["target_modules"] = json!(["o_proj", "up_proj", "q_proj"]);
    let up = "model.layers.0.mlp.up_proj";
    factors.extend(lora(up, [8, 6], 4, 5));
    factors.extend(lora("model.layers.0.self_attn.q_proj", [8, 6], 4, 5));
    let adapter = write_adapter(&home.path().join("adapter"), &factors, &settings);
    let base = |more: &[&str]| {
        let names = ["model.layers.0.self_attn.q_proj", O, up].into_iter().chain(more.iter().copied());
        let weights: Vec<Tensor> =
            names.map(|name| Tensor::bf16(&format!("{name}.weight"), &[8, 6], &noise(3, 48))).collect();
        let config = json!({"model_type": "nemotron", "tie_word_embeddings": false});
        write(&home.path().join("base"), &weights, &config).to_str().unwrap().to_owned()
    };
    let adapter = adapter.to_str().unwrap();
    let verdicts = |base: Option<&str>| {
        let found = check(adapter, base, &Loader::ALL).unwrap();
        found.into_iter().map(|f| (f.at, f.outcome)).collect::<Vec<_>>()
    };
    // SGLang takes it if it is started with --lora-target-modules all.
    assert_eq!(verdicts(Some(&base(&[]))), [(up.to_owned(), Caution)]);
    let gated = base(&["model.layers.0.mlp.gate_proj"]);
    assert_eq!(verdicts(Some(&gated)), [(up.to_owned(), Refused)]);
    assert!(verdicts(None).iter().all(|(_, outcome)| *outcome == Caution), "nothing tells");

    let clean = |name: &str, base: Option<&str>| {
        let out = home.path().join(name);
        let job = Sanitizing {
            adapter: adapter.to_owned(),
            out: out.clone(),
            consumers: Loader::ALL.to_vec(),
            max_rank: None,
            base: base.map(str::to_owned),
            dtype: None,
            memory: 1 << 30,
            overwrite: false,
            other_simd: false,
        };
        sanitize(&job, &Silent).unwrap();
        PeftAdapter::open_folder(&out).unwrap().modules().len()
    };
    assert_eq!(clean("alone", None), 3, "a module is not made up");
    assert_eq!(clean("gated", Some(&gated)), 4);
}

#[test]
fn experts_must_all_be_there() {
    let experts = "model.layers.0.mlp.experts";
    let all = |settings: &mut Value, tensors: &mut Vec<Tensor>| {
        settings["target_modules"] = json!(["o_proj", "gate_proj", "up_proj", "down_proj"]);
        for expert in 0..3 {
            for kind in ["gate_proj", "up_proj", "down_proj"] {
                tensors.extend(lora(&format!("{experts}.{expert}.{kind}"), [8, 6], 4, 5));
            }
        }
    };
    breaks(all, &[]);
    let lacks = |settings: &mut Value, tensors: &mut Vec<Tensor>| {
        all(settings, tensors);
        tensors.retain(|t| !t.name.contains("experts.1.down_proj"));
    };
    breaks(lacks, &[(&[Vllm], experts, Refused, Yes)]);
}

#[test]
fn the_vocabulary_depends_on_the_base() {
    let home = tempdir().unwrap();
    let (mut settings, mut tensors) = good();
    settings["target_modules"] = json!(["o_proj", "lm_head", "embed_tokens"]);
    tensors.extend(lora("lm_head", [10, 6], 4, 5));
    tensors.push(tensor("model.embed_tokens.lora_embedding_A", &[4, 10]));
    tensors.push(tensor("model.embed_tokens.lora_embedding_B", &[6, 4]));
    let folder = write_adapter(home.path(), &tensors, &settings);
    for model in ["llama", "mixtral", "qwen3", "qwen3_moe", "granite"] {
        assert_eq!(found(&folder, Some(model)), [], "{model}");
    }
    for model in ["mistral", "qwen2", "gemma2", "deepseek_v2", "gpt_oss"] {
        let found = found(&folder, Some(model));
        let refused: Vec<&str> = found.iter().filter(|f| f.outcome == Refused).map(|f| &*f.at).collect();
        assert_eq!(refused, ["lm_head", "model.embed_tokens"], "{model}");
        assert!(found.iter().all(|f| f.consumers == [Vllm] && f.mend == ByPruning && f.why.contains(model)));
    }
    let unknown = found(&folder, None);
    assert!(unknown.len() == 2 && unknown.iter().all(|f| f.outcome == Caution), "{unknown:?}");
    assert_eq!(portable(&PeftAdapter::open_folder(&folder).unwrap(), None), []);
    let adapter = PeftAdapter::open_folder(&folder).unwrap();
    let on = |tied: Option<bool>| judge(&adapter, Some(&BaseModules::of_type("qwen3").with_tied(tied)));
    let tied = on(Some(true));
    let of_llama = |f: &RuleFinding| f.consumers == [LlamaCpp] && f.mend == ByPruning;
    assert!(tied.len() == 2 && tied.iter().all(|f| of_llama(f) && f.outcome == Refused), "{tied:?}");
    let unknown = on(None);
    assert!(unknown.len() == 2 && unknown.iter().all(|f| of_llama(f) && f.outcome == Caution), "{unknown:?}");
}

#[test]
fn no_other_weights_lie_beside() {
    let home = tempdir().unwrap();
    let (settings, tensors) = good();
    let folder = write_adapter(home.path(), &tensors, &settings);
    fs::write(folder.join("model.safetensors"), "").unwrap();
    let found = found(&folder, None);
    assert!(
        found.len() == 1 && found[0].consumers == [Sglang] && found[0].at == "model.safetensors",
        "{found:?}"
    );
    assert_eq!((found[0].outcome, found[0].mend), (Wrong, Yes));
}
