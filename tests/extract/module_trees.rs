//! Adapters of many architectures, by the names that PEFT itself gives to the factors: keys and shapes, and targets
//! that reach what the adapter holds and nothing else. The fixture is made from transformers and PEFT by
//! `scripts/fixtures_module_trees.py`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::common::pair::{Tensor, dense, noise, read_file, write};
use crate::common::{extract_with, run, trephine};
use serde_json::Value;
use tempfile::tempdir;

pub(crate) fn fixture() -> BTreeMap<String, Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/module_trees.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn shapes(of: &Value) -> BTreeMap<String, Vec<usize>> {
    serde_json::from_value(of.clone()).unwrap()
}

/// A checkpoint with these tensors; `scale` tells base and tuned apart.
pub(crate) fn checkpoint(folder: &Path, of: &Value, scale: f32) -> String {
    let tensor = |(seed, (name, shape)): (usize, (String, Vec<usize>))| {
        let values = noise(seed as u64, shape.iter().product());
        Tensor::bf16(&name, &shape, &values.iter().map(|v| v * scale).collect::<Vec<_>>())
    };
    let tensors: Vec<Tensor> = shapes(&of["tensors"]).into_iter().enumerate().map(tensor).collect();
    write(folder, &tensors, &of["config"]).to_str().unwrap().to_owned()
}

/// The modules that PEFT would take for these targets.
fn reached(modules: &Value, targets: &[String]) -> BTreeSet<String> {
    let ends = |name: &str| {
        targets.iter().any(|target| {
            name == target || name.strip_suffix(target.as_str()).is_some_and(|h| h.ends_with('.'))
        })
    };
    modules.as_object().unwrap().keys().filter(|name| ends(name)).cloned().collect()
}

/// What differs from PEFT's own adapter of one class.
fn differences(class: &str, of: &Value) -> Vec<String> {
    let home = tempdir().unwrap();
    let base = checkpoint(&home.path().join("base"), of, 1.0);
    let tuned = checkpoint(&home.path().join("tuned"), of, 1.25);
    let out = home.path().join("adapter");
    let ended = extract_with(&base, &tuned, &out, &["--rank", "2"]);
    if ended.code != Some(0) {
        return vec![format!("{class}: {}", ended.stderr)];
    }
    let got = read_file(&out.join("adapter_model.safetensors"));
    let got: BTreeMap<String, Vec<usize>> = got.into_iter().map(|t| (t.name, t.shape)).collect();
    let want = shapes(&of["keys"]);
    let mut found = Vec::new();
    for name in got.keys().chain(want.keys()).collect::<BTreeSet<_>>() {
        if got.get(name) != want.get(name) {
            found.push(format!("{class}: {name} is {:?}, PEFT's {:?}", got.get(name), want.get(name)));
        }
    }
    let config: Value =
        serde_json::from_slice(&std::fs::read(out.join("adapter_config.json")).unwrap()).unwrap();
    let targets: Vec<String> = serde_json::from_value(config["target_modules"].clone()).unwrap();
    let adapted: BTreeSet<String> = want
        .keys()
        .filter_map(|key| key.strip_prefix("base_model.model.")?.strip_suffix(".lora_A.weight"))
        .map(str::to_owned)
        .collect();
    // What PEFT wraps as parameters is named so, and its factors are under the module that has it.
    let is_linear = |name: &&String| of["modules"].get(name.as_str()).is_some_and(|kind| kind == "linear");
    let parameters: BTreeSet<String> = serde_json::from_value(of["parameters"].clone()).unwrap_or_default();
    let named: Vec<String> = serde_json::from_value(config["target_parameters"].clone()).unwrap_or_default();
    let ends = |name: &String, entry: &String| {
        name.strip_suffix(entry.as_str()).is_some_and(|h| h.is_empty() || h.ends_with('.'))
    };
    for name in parameters.iter().filter(|name| !named.iter().any(|entry| ends(name, entry))) {
        found.push(format!("{class}: target_parameters {named:?} lack {name}"));
    }
    for entry in named.iter().filter(|entry| !parameters.iter().any(|name| ends(name, entry))) {
        found.push(format!("{class}: target_parameters have {entry}, which names nothing"));
    }
    let adapted: BTreeSet<String> = adapted.iter().filter(is_linear).cloned().collect();
    for name in reached(&of["modules"], &targets).symmetric_difference(&adapted) {
        found.push(format!("{class}: targets and keys differ in {name}; target_modules {targets:?}"));
    }
    let adapter = out.to_str().unwrap();
    let probed = run(trephine().args(["probe", adapter, "--base", &base, "--json"]));
    let probed: Value = serde_json::from_str(&probed.stdout).unwrap();
    let unmatched = &probed["matches"][0]["unmatched"];
    if probed["matches"][0]["consumer"] != "peft"
        || unmatched.as_array().is_none_or(|names| !names.is_empty())
    {
        found.push(format!("{class}: probe has unmatched {unmatched}"));
    }
    found
}

#[test]
fn keys_and_targets_are_those_of_peft() {
    let fixture = fixture();
    assert!(fixture.len() >= 40, "{} classes", fixture.len());
    let found: Vec<String> = fixture.iter().flat_map(|(class, of)| differences(class, of)).collect();
    assert!(found.is_empty(), "{} differences:\n{}", found.len(), found.join("\n"));
}

/// Matrices that are several layers in the model, as `Wqkv`, and stacks of experts that the model has otherwise: the
/// merged checkpoint has them as the files do, with the tuned values.
#[test]
fn what_the_model_has_otherwise_is_merged_back() {
    for (class, kinds) in [
        ("NomicBertModel", &["attn.Wqkv.weight"][..]),
        ("GteForMaskedLM", &["qkv_proj.weight", "up_gate_proj.weight"]),
        ("JetMoeForCausalLM", &["mlp.input_linear.weight", "experts.output_linear.weight"]),
        ("DbrxForCausalLM", &["mlp.w1", "mlp.v1", "mlp.w2"]),
        ("Llama4ForCausalLM", &["experts.gate_up_proj", "experts.down_proj"]),
        ("NemotronHForCausalLM", &["experts.1.up_proj.weight", "experts.3.down_proj.weight"]),
        (
            "Step3p7ForConditionalGeneration",
            &["moe.gate_proj.weight", "moe.up_proj.weight", "moe.down_proj.weight"],
        ),
        (
            "Ernie4_5_VLMoeForConditionalGeneration",
            &["experts.1.up_proj.weight", "experts.5.down_proj.weight"],
        ),
        ("GraniteMoeForCausalLM", &["block_sparse_moe.input_linear.weight"]),
    ] {
        let of = &fixture()[class];
        let home = tempdir().unwrap();
        let base = checkpoint(&home.path().join("base"), of, 1.0);
        let tuned = checkpoint(&home.path().join("tuned"), of, 1.25);
        let [out, merged] = ["adapter", "merged"].map(|name| home.path().join(name));
        let ended = extract_with(&base, &tuned, &out, &["--rank", "64", "--dtype", "f32"]);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let (adapter, into) = (out.to_str().unwrap(), merged.to_str().unwrap());
        let ended =
            run(trephine().args(["merge", "--base", &base, "--adapter", adapter, "--out", into, "-q"]));
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let read = |name: &str| dense(&home.path().join(name).join("model.safetensors"));
        let [base, tuned, merged] = ["base", "tuned", "merged"].map(read);
        assert!(base.keys().eq(merged.keys()), "{class}: the files' own names stay");
        for kind in kinds {
            let ending = format!(".{kind}");
            let names: Vec<&String> = base.keys().filter(|name| name.ends_with(&ending)).collect();
            assert!(!names.is_empty(), "{class} has {kind}");
            for name in names {
                let [got, want, was] = [&merged, &tuned, &base].map(|of| &of[name].1);
                let norm = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
                assert!(norm(got, want) < 1e-3 * norm(was, want), "{class}: {name}");
            }
        }
    }
}

/// A base of one class with these weights, and a tuned one under other names of the same modules.
pub(crate) fn small(
    home: &Path,
    class: &str,
    kind: &str,
    base: &[(&str, &[usize])],
    tuned: &[(&str, &[usize])],
) -> Value {
    small_for(home, class, kind, base, tuned, &[])
}

/// The same with more arguments for `extract`.
pub(crate) fn small_for(
    home: &Path,
    class: &str,
    kind: &str,
    base: &[(&str, &[usize])],
    tuned: &[(&str, &[usize])],
    more: &[&str],
) -> Value {
    let mut config = serde_json::json!({"architectures": [class], "model_type": kind, "hidden_size": 8});
    if !class.ends_with("ForCausalLM") {
        config["text_config"] = serde_json::json!({"model_type": "llama", "hidden_size": 8});
    }
    let side = |name: &str, weights: &[(&str, &[usize])], scale: f32| {
        let tensor = |(seed, (name, shape)): (usize, &(&str, &[usize]))| {
            let values: Vec<f32> =
                noise(seed as u64, shape.iter().product()).iter().map(|v| v * scale).collect();
            Tensor::bf16(name, shape, &values)
        };
        let tensors: Vec<Tensor> = weights.iter().enumerate().map(tensor).collect();
        write(&home.join(name), &tensors, &config).to_str().unwrap().to_owned()
    };
    let (base, tuned) = (side("base", base, 1.0), side("tuned", tuned, 1.5));
    let out = home.join("adapter");
    let ended = extract_with(&base, &tuned, &out, &[&["--rank", "4"], more].concat());
    assert_eq!(ended.code, Some(0), "{class}: {}", ended.stderr);
    let probed = run(trephine().args(["probe", out.to_str().unwrap(), "--base", &base, "--json"]));
    let config = std::fs::read(out.join("adapter_config.json")).unwrap();
    let mut found: Value = serde_json::from_str(&probed.stdout).unwrap();
    found["config"] = serde_json::from_slice(&config).unwrap();
    let keys = read_file(&out.join("adapter_model.safetensors"));
    found["keys"] = keys.into_iter().map(|tensor| tensor.name).collect();
    found
}

/// What PEFT 0.21.2 and vLLM 0.32 did with adapters of these classes.
#[test]
fn what_is_known_of_single_classes() {
    let layer = |name: &'static str| [(name, &[8usize, 8][..])];
    let home = || tempdir().unwrap();
    let of = |class, kind, names: &[(&str, &[usize])]| small(home().path(), class, kind, names, names);
    let formula =
        of("PPFormulaNetForConditionalGeneration", "pp_formulanet", &layer("model.a.q_proj.weight"));
    assert_eq!(
        (&formula["consumers"][0]["consumer"], &formula["consumers"][0]["loads"]),
        (&"peft".into(), &false.into())
    );
    let pi0 = of("PI0ForConditionalGeneration", "pi0", &layer("model.a.q_proj.weight"));
    assert!(pi0["config"]["task_type"].is_null(), "it does not generate");
    // PEFT renames these keys as it does files.
    let stored = "model.layers.0.self_attn.q_proj";
    let weight = [("model.layers.0.self_attn.q_proj.weight", &[8usize, 8][..])];
    let ocr = of("DeepseekOcr2ForConditionalGeneration", "deepseek_ocr2", &weight);
    assert_eq!(ocr["keys"][0], format!("base_model.model.{stored}.lora_A.weight"));
    assert_eq!(ocr["matches"][0]["matched"][0], stored);
    // Only where it is told to does vLLM adapt a tower.
    let names = [
        ("language_model.model.layers.0.self_attn.o_proj.weight", &[8usize, 8][..]),
        ("vision_tower.layers.0.fc1.weight", &[8, 8]),
    ];
    let llava = of("LlavaForConditionalGeneration", "llava", &names).to_string();
    assert!(llava.contains("--enable-tower-connector-lora"), "{llava}");
}

/// Single experts on one side and their stacks on the other are one model's, and the adapter holds single ones.
#[test]
fn single_experts_pair_with_the_stacks_of_another_layout() {
    let single =
        |expert: usize, kind: &str| format!("model.layers.1.feed_forward.experts.{expert}.{kind}.weight");
    let names: Vec<String> =
        (0..2).flat_map(|e| ["gate_proj", "up_proj", "down_proj"].map(|kind| single(e, kind))).collect();
    let base: Vec<(&str, &[usize])> = names
        .iter()
        .map(|name| (name.as_str(), if name.contains("down") { &[8usize, 4][..] } else { &[4, 8] }))
        .collect();
    let tuned: [(&str, &[usize]); 2] = [
        ("model.layers.1.feed_forward.experts.gate_up_proj", &[2, 8, 8]),
        ("model.layers.1.feed_forward.experts.down_proj", &[2, 8, 4]),
    ];
    let home = tempdir().unwrap();
    let found = small(home.path(), "JambaForCausalLM", "jamba", &base, &tuned);
    assert_eq!(found["keys"].as_array().unwrap().len(), 2 * 6, "{}", found["keys"]);
    assert_eq!(found["config"]["rank_pattern"][".*\\.gate_up_proj"], 8);
}

/// A tower's layer, whose rows the published files have within a matrix and in another order, is left out, whichever
/// side has which; it is not paired with the language model's layer of the same kind and shape.
#[test]
fn layers_that_lie_in_another_order_are_left_out_in_any_layout() {
    let (class, kind) = ("Step3p7ForConditionalGeneration", "step3p7");
    let text = "self_attn.q_proj.weight";
    let in_model = [
        format!("model.language_model.layers.0.{text}"),
        format!("model.vision_model.layers.0.{text}"),
        "model.vision_model.layers.0.mlp.fc1.weight".to_owned(),
    ];
    let in_files = [
        format!("model.layers.0.{text}"),
        "vision_model.transformer.resblocks.0.attn.in_proj_weight".to_owned(),
        "vision_model.transformer.resblocks.0.mlp.c_fc.weight".to_owned(),
    ];
    let of = |names: &[String; 3], high: usize| -> Vec<(String, Vec<usize>)> {
        let high = [8, high, 8];
        names.iter().zip(high).map(|(name, high)| (name.clone(), vec![high, 8])).collect()
    };
    let [model, files] = [of(&in_model, 8), of(&in_files, 24)];
    for (base, tuned) in [(&model, &files), (&files, &model)] {
        let home = tempdir().unwrap();
        let found = small(home.path(), class, kind, &borrowed(base), &borrowed(tuned));
        let keys = found["keys"].to_string();
        assert!(keys.contains("language_model.layers.0.self_attn.q_proj.lora_A"), "{keys}");
        assert!(!keys.contains("vision_model.layers.0.self_attn"), "{keys}");
        let manifest = crate::common::manifest(&home.path().join("adapter"));
        assert!(manifest["not_represented"].to_string().contains("\"reordered\""), "{manifest}");
    }
}

fn borrowed(of: &[(String, Vec<usize>)]) -> Vec<(&str, &[usize])> {
    of.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect()
}
