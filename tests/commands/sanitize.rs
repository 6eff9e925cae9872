//! Sanitized adapters on disk: each program's requirements hold, the products are unchanged, and omissions
//! are reported.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::common::adapter::{config, lora, write_adapter};
use crate::common::pair::{Tensor, dense, noise, values, write};
use crate::common::{Ended, contents, data, run, trephine};
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};
use trephine::lora::read::{Factors, PeftAdapter};
use trephine::lora::rules::{Loader, judge};
use trephine::lora::tree::BaseModules;

const TARGETS: [(&str, Loader); 4] = [
    ("peft", Loader::Peft),
    ("vllm", Loader::Vllm),
    ("sglang", Loader::Sglang),
    ("llama.cpp", Loader::LlamaCpp),
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/mergekit").join(name)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn sanitize(adapter: &Path, out: &Path, more: &[&str]) -> Ended {
    run(trephine().args(["sanitize", "--quiet", text(adapter), "--out", text(out)]).args(more))
}

/// `scale · B·A` of every module except fused experts, in f64.
fn products(folder: &Path) -> BTreeMap<String, Vec<f64>> {
    let adapter = PeftAdapter::open_folder(folder).unwrap();
    let product = |module: &trephine::lora::read::PeftModule| {
        let Factors { a, b } = adapter.factors(module).unwrap();
        let ([out, inner], r) = (module.shape(), module.rank() * module.experts());
        let mut product = vec![0.0; out * inner];
        for i in 0..out {
            for k in 0..r {
                let factor = module.scale() * f64::from(b[i * r + k]);
                for j in 0..inner {
                    product[i * inner + j] += factor * f64::from(a[k * inner + j]);
                }
            }
        }
        (module.name().to_owned(), product)
    };
    adapter.modules().filter(|module| module.experts() == 1).map(product).collect()
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

/// The largest relative distance of the products in `after` from those in `before`; products only in `after` must
/// be zero.
fn distance(before: &Path, after: &Path) -> f64 {
    let (before, after) = (products(before), products(after));
    let missing: Vec<&String> = before
        .iter()
        .filter(|(name, p)| norm(p) > 0.0 && !after.contains_key(*name))
        .map(|(name, _)| name)
        .collect();
    assert!(missing.is_empty(), "{missing:?} are gone");
    let one = |(name, after): (&String, &Vec<f64>)| match before.get(name) {
        Some(before) if norm(before) > 0.0 => {
            let less: Vec<f64> = before.iter().zip(after).map(|(b, a)| b - a).collect();
            norm(&less) / norm(before)
        }
        _ => {
            assert_eq!(norm(after), 0.0, "{name}");
            0.0
        }
    };
    after.iter().map(one).fold(0.0, f64::max)
}

fn record(out: &Path) -> Value {
    serde_json::from_slice(&fs::read(out.join("sanitized.json")).unwrap()).unwrap()
}

fn settings(out: &Path) -> Value {
    serde_json::from_slice(&fs::read(out.join("adapter_config.json")).unwrap()).unwrap()
}

/// Asserts that nothing keeps the program from loading it, and that the folder is complete.
fn check(out: &Path, consumer: Loader) {
    let adapter = PeftAdapter::open_folder(out).unwrap();
    // vLLM takes stacks of experts on few models alone.
    let stacked = adapter.modules().any(|module| module.experts() > 1);
    let kind = if stacked { "qwen3_vl_moe" } else { "qwen3" };
    let base = BaseModules::of_type(kind).with_tied(Some(false));
    let found = judge(&adapter, Some(&base));
    let failures: Vec<_> = found.iter().filter(|f| f.is_failure() && f.concerns(&[consumer])).collect();
    assert!(failures.is_empty(), "{failures:#?}");
    run(trephine().args(["verify", "--quiet", text(out)])).code(0);
    assert_eq!(adapter.problems(), []);
    assert!(adapter.modules().all(|module| module.scale() == 1.0 && module.rank() == adapter.rank()));
    let names: Vec<&str> = adapter.files().iter().map(String::as_str).collect();
    let files = ["B3SUMS", "README.md", "adapter_config.json", "adapter_model.safetensors", "sanitized.json"];
    assert_eq!(names, files);
}

#[test]
fn mergekits_adapter_is_mended_for_each_program_and_adds_what_it_added() {
    for (name, consumer) in TARGETS {
        let home = tempdir().unwrap();
        let out = home.path().join("out");
        sanitize(&fixture("rank4"), &out, &["--for", name, "--base", &data("base")]).code(0);
        check(&out, consumer);
        assert_eq!(distance(&fixture("rank4"), &out), 0.0, "{name}");
        let record = record(&out);
        let kept = record["kept"].as_array().unwrap().len();
        let pruned = record["pruned"].as_array().unwrap();
        // 3 layers of 4 norms, and one at the end; llama.cpp's converter accepts all except q_norm and k_norm.
        let expected = match consumer {
            Loader::Peft => (13, 0),
            Loader::LlamaCpp => (7, 6),
            _ => (0, 13),
        };
        assert_eq!((kept, pruned.len()), expected, "{name}");
        assert!(
            pruned.iter().all(|p| (0.001..0.01).contains(&p["relative_change"].as_f64().unwrap())),
            "{pruned:?}"
        );
        let saved = settings(&out)["modules_to_save"].as_array().map_or(0, Vec::len);
        assert_eq!(saved, kept, "{name}");
    }
}

#[test]
fn ranks_that_differ_become_one_and_zero_ranks_go() {
    for (name, consumer) in TARGETS {
        let home = tempdir().unwrap();
        let out = home.path().join("out");
        sanitize(&fixture("epsilon"), &out, &["--for", name]).code(0);
        check(&out, consumer);
        assert_eq!(distance(&fixture("epsilon"), &out), 0.0, "{name}");
        let settings = settings(&out);
        assert_eq!((&settings["r"], &settings["lora_alpha"]), (&json!(4), &json!(4)));
        assert_eq!((&settings["rank_pattern"], &settings["alpha_pattern"]), (&json!({}), &json!({})));
        // v_proj has rank 0. SGLang needs it beside q and k.
        let v = PeftAdapter::open_folder(&out).unwrap().module("model.layers.0.self_attn.v_proj").is_some();
        assert_eq!(v, consumer == Loader::Sglang, "{name}");
    }
}

#[test]
fn the_adapter_for_all_is_the_portable_one() {
    let home = tempdir().unwrap();
    let out = home.path().join("out");
    let said = sanitize(&fixture("epsilon"), &out, &[]).code(0).stdout.replace(text(home.path()), "[home]");
    insta::assert_snapshot!(said);
    crate::common::measure::check_rules(&out);
    insta::assert_snapshot!(
        fs::read_to_string(out.join("README.md")).unwrap().replace(text(&fixture("")), "[fixtures]/")
    );
    let json = sanitize(&fixture("epsilon"), &out, &["--json", "--overwrite"]).code(0).stdout;
    let mut said = serde_json::from_str::<Value>(&json).unwrap();
    assert_eq!(said.as_object_mut().unwrap().remove("version"), Some(json!(1)));
    assert_eq!(said, record(&out));
}

/// An adapter in a folder of its own.
fn made(tensors: &[Tensor], config: &Value) -> (TempDir, PathBuf, PathBuf) {
    let home = tempdir().unwrap();
    let adapter = write_adapter(&home.path().join("adapter"), tensors, config);
    let out = home.path().join("out");
    (home, adapter, out)
}

#[test]
fn scales_are_multiplied_in_and_their_rounding_is_told() {
    let tensors = lora("a.o_proj", [40, 30], 4, 1);
    for (alpha, rslora, dtype, exact) in [
        (8.0, false, "bf16", true),
        (1.0, false, "bf16", true),
        (8.0, true, "bf16", true),
        (7.0, false, "bf16", false),
        (7.0, false, "f32", true),
    ] {
        let mut settings = config(&["o_proj"]);
        settings["lora_alpha"] = json!(alpha);
        settings["use_rslora"] = json!(rslora);
        let (_home, adapter, out) = made(&tensors, &settings);
        sanitize(&adapter, &out, &["--dtype", dtype]).code(0);
        check(&out, Loader::Sglang);
        let (stated, found) = (record(&out)["rounding_error"].as_f64().unwrap(), distance(&adapter, &out));
        if exact {
            // In f32 the single rounding of lora_B is below the resolution of f32 products.
            assert!(found < 1e-7 && stated == 0.0, "{alpha} {dtype}: {found}, stated {stated}");
        } else {
            assert!(
                (1e-4..4e-3).contains(&found) && (found / stated - 1.0).abs() < 1e-3,
                "{found}, stated {stated}"
            );
        }
    }
}

#[test]
fn a_lower_rank_is_the_best_and_its_error_exact() {
    let mut tensors = lora("a.o_proj", [40, 30], 8, 1);
    tensors.extend(lora("a.down_proj", [12, 50], 3, 5));
    // A matrix of rank 2 stored in factors of rank 8 loses nothing.
    let [mut a, b] = lora("b.o_proj", [40, 30], 8, 9).try_into().unwrap();
    a.bytes[2 * 30 * 2..].fill(0);
    tensors.extend([a, b]);
    let mut settings = config(&["o_proj", "down_proj"]);
    settings["r"] = json!(8);
    settings["lora_alpha"] = json!(24);
    settings["rank_pattern"] = json!({"down_proj": 3});
    let (_home, adapter, out) = made(&tensors, &settings);
    sanitize(&adapter, &out, &["--max-rank", "3", "--dtype", "f32"]).code(0);
    check(&out, Loader::Vllm);
    assert_eq!(PeftAdapter::open_folder(&out).unwrap().rank(), 3);
    let (before, after) = (products(&adapter), products(&out));
    for module in record(&out)["modules"].as_array().unwrap() {
        let name = module["name"].as_str().unwrap();
        let less: Vec<f64> = before[name].iter().zip(&after[name]).map(|(b, a)| b - a).collect();
        let (found, stated) =
            (norm(&less) / norm(&before[name]), module["truncation_error"].as_f64().unwrap());
        assert!((found - stated).abs() < 1e-6, "{name}: {found}, stated {stated}");
        assert_eq!(stated > 0.1, name == "a.o_proj", "{name}: {stated}");
        assert!((module["norm"].as_f64().unwrap() / norm(&before[name]) - 1.0).abs() < 1e-9, "{name}");
        if name == "a.o_proj" {
            // The optimum from the eigenvalues of the product's Gram matrix, computed independently by deflation.
            assert!((found - optimum(&before[name], 40, 30, 3)).abs() < 1e-4);
        }
    }
}

/// The relative error of the best approximation of rank `r`, by power iteration with deflation.
fn optimum(matrix: &[f64], m: usize, n: usize, r: usize) -> f64 {
    let (mut rest, whole) = (matrix.to_vec(), norm(matrix));
    for _ in 0..r {
        let mut v: Vec<f64> = noise(3, n).into_iter().map(f64::from).collect();
        let mut u = vec![0.0; m];
        for _ in 0..3000 {
            (0..m).for_each(|i| u[i] = (0..n).map(|j| rest[i * n + j] * v[j]).sum());
            let length = norm(&u);
            u.iter_mut().for_each(|x| *x /= length);
            (0..n).for_each(|j| v[j] = (0..m).map(|i| rest[i * n + j] * u[i]).sum());
            let length = norm(&v);
            v.iter_mut().for_each(|x| *x /= length);
        }
        let value: f64 = (0..m).map(|i| u[i] * (0..n).map(|j| rest[i * n + j] * v[j]).sum::<f64>()).sum();
        (0..m * n).for_each(|at| rest[at] -= value * u[at / n] * v[at % n]);
    }
    norm(&rest) / whole
}

#[test]
fn everything_that_can_be_mended_is() {
    let layer = "model.layers.0";
    let mut tensors = lora(&format!("{layer}.self_attn.q_proj"), [16, 12], 4, 1);
    tensors.extend(lora(&format!("{layer}.self_attn.v_proj"), [8, 12], 4, 3));
    tensors.extend(lora(&format!("{layer}.mlp.up_proj"), [20, 12], 4, 5));
    tensors.extend(lora("lm_head", [30, 12], 4, 7));
    let own = tensors.iter_mut().filter(|t| t.name.contains("up_proj"));
    own.for_each(|t| t.name = t.name.replace("lora_A", "lora_A.default").replace("lora_B", "lora_B.default"));
    let bare = tensors.iter_mut().filter(|t| t.name.contains("lm_head"));
    bare.for_each(|t| t.name = t.name.replace("base_model.model.", ""));
    tensors.push(lora(&format!("{layer}.self_attn.o_proj"), [12, 16], 4, 9).remove(0));
    tensors.push(Tensor::bf16(
        &format!("base_model.model.{layer}.mlp.up_proj.lora_B.bias"),
        &[20],
        &noise(4, 20),
    ));
    tensors.push(Tensor::bf16(
        "base_model.model.model.embed_tokens.base_layer.weight",
        &[30, 12],
        &noise(6, 360),
    ));
    let mut settings = config(&["q_proj"]);
    settings["bias"] = json!("lora_only");
    settings.as_object_mut().unwrap().remove("task_type");
    let (home, adapter, out) = made(&tensors, &settings);
    // That there is a gate_proj beside the up_proj is for the base to tell.
    let shapes =
        [("self_attn.q_proj", [16, 12]), ("self_attn.k_proj", [8, 12]), ("self_attn.v_proj", [8, 12])];
    let shapes = shapes.into_iter().chain([("mlp.gate_proj", [20, 12]), ("mlp.up_proj", [20, 12])]);
    let weight = |name: &str, shape: [usize; 2]| {
        Tensor::bf16(&format!("{name}.weight"), &shape, &noise(11, shape[0] * shape[1]))
    };
    let mut weights: Vec<Tensor> =
        shapes.map(|(kind, shape)| weight(&format!("{layer}.{kind}"), shape)).collect();
    weights.extend([weight("lm_head", [30, 12]), weight("model.embed_tokens", [30, 12])]);
    // Without `tie_word_embeddings` the head would be the embedding, on which llama.cpp has no LoRA.
    let settings = json!({"model_type": "qwen3", "tie_word_embeddings": false});
    let base = write(&home.path().join("base"), &weights, &settings);
    sanitize(&adapter, &out, &["--base", text(&base)]).code(0);
    crate::common::measure::check_rules(&out);
    assert_eq!(distance(&adapter, &out), 0.0);
    let names: Vec<String> =
        PeftAdapter::open_folder(&out).unwrap().modules().map(|m| m.name().to_owned()).collect();
    let layer = |kind: &str| format!("{layer}.{kind}");
    let expected = [
        "lm_head".to_owned(),
        layer("mlp.gate_proj"),
        layer("mlp.up_proj"),
        layer("self_attn.k_proj"),
        layer("self_attn.q_proj"),
        layer("self_attn.v_proj"),
    ];
    assert_eq!(names, expected);
    let record = record(&out);
    let completed: Vec<&str> =
        record["completed"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(completed, [&*layer("mlp.gate_proj"), &*layer("self_attn.k_proj")]);
    let pruned: Vec<&str> =
        record["pruned"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert_eq!(pruned.len(), 3, "{pruned:?}");
    assert_eq!(
        settings_list(&out, "target_modules"),
        ["gate_proj", "k_proj", "lm_head", "q_proj", "up_proj", "v_proj"]
    );
}

fn settings_list(out: &Path, key: &str) -> Vec<String> {
    settings(out)[key].as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_owned()).collect()
}

#[test]
fn biases_of_lora_b_are_scaled_as_the_factors_are() {
    let mut tensors = lora("a.o_proj", [8, 6], 4, 1);
    tensors.push(Tensor::bf16("base_model.model.a.o_proj.lora_B.bias", &[8], &noise(4, 8)));
    let mut settings = config(&["o_proj"]);
    settings["lora_bias"] = json!(true);
    let (_home, adapter, out) = made(&tensors, &settings);
    sanitize(&adapter, &out, &["--for", "peft"]).code(0);
    assert_eq!(self::settings(&out)["lora_bias"], json!(true));
    let key = "base_model.model.a.o_proj.lora_B.bias";
    let [before, after] =
        [&adapter, &out].map(|f| dense(&f.join("adapter_model.safetensors"))[key].1.clone());
    assert!(before.iter().zip(&after).all(|(before, after)| 2.0 * before == *after));
}

#[test]
fn experts_are_completed_for_vllm() {
    let experts = "model.layers.0.mlp.experts";
    let mut tensors = Vec::new();
    for (name, shape) in [("0.gate_proj", [10, 6]), ("0.up_proj", [10, 6]), ("2.down_proj", [6, 10])] {
        tensors.extend(lora(&format!("{experts}.{name}"), shape, 4, 1));
    }
    let (home, adapter, out) = made(&tensors, &config(&["gate_proj", "up_proj", "down_proj"]));
    sanitize(&adapter, &out, &["--for", "vllm"]).code(0);
    check(&out, Loader::Vllm);
    assert_eq!(record(&out)["completed"].as_array().unwrap().len(), 9 - 3);
    // The base says how many there are.
    let mut weights = Vec::new();
    for expert in 0..4 {
        for (kind, shape) in [("gate_proj", [10, 6]), ("up_proj", [10, 6]), ("down_proj", [6, 10])] {
            weights.push(Tensor::bf16(&format!("{experts}.{expert}.{kind}.weight"), &shape, &noise(8, 60)));
        }
    }
    let base =
        write(&home.path().join("base"), &weights, &json!({"model_type": "qwen3_moe", "num_experts": 4}));
    sanitize(&adapter, &out, &["--for", "vllm", "--base", text(&base), "--overwrite"]).code(0);
    assert_eq!(record(&out)["completed"].as_array().unwrap().len(), 12 - 3);
}

#[test]
fn fused_experts_are_carried_over() {
    let experts = "model.layers.0.mlp.experts";
    let mut tensors = lora(experts, [8, 6], 12, 1);
    tensors.extend(lora(&format!("{experts}.base_layer"), [10, 6], 6, 3));
    tensors.extend(lora("model.layers.0.self_attn.o_proj", [8, 6], 4, 5));
    let mut settings = config(&["o_proj"]);
    settings["rank_pattern"] = json!({"gate_up_proj": 2});
    settings["target_parameters"] = json!(["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]);
    let (_home, adapter, out) = made(&tensors, &settings);
    sanitize(&adapter, &out, &["--for", "vllm"]).code(0);
    check(&out, Loader::Vllm);
    assert_eq!(distance(&adapter, &out), 0.0);
    let after = PeftAdapter::open_folder(&out).unwrap();
    assert!(
        after
            .modules()
            .all(|m| m.rank() == 4 && m.experts() == if m.name().contains("experts") { 3 } else { 1 })
    );
    // Each expert's product is unchanged: rows e·r + k of lora_A meet columns k·experts + e of lora_B.
    let before = PeftAdapter::open_folder(&adapter).unwrap();
    let name = format!("{experts}.base_layer");
    let of_expert = |adapter: &PeftAdapter, e: usize| {
        let module = adapter.module(&name).unwrap();
        let (Factors { a, b }, r) = (adapter.factors(module).unwrap(), module.rank());
        let term = |i: usize, j: usize, k: usize| {
            module.scale() * f64::from(b[i * r * 3 + k * 3 + e]) * f64::from(a[(e * r + k) * 6 + j])
        };
        let values: Vec<f64> = (0..60).map(|at| (0..r).map(|k| term(at / 6, at % 6, k)).sum()).collect();
        values
    };
    for e in 0..3 {
        assert_eq!(of_expert(&before, e), of_expert(&after, e), "expert {e}");
    }
    sanitize(&adapter, &out, &["--max-rank", "3", "--overwrite"])
        .code(2)
        .says("fused experts of rank 4 cannot be cut to 3");
}

#[test]
fn factors_that_f16_cannot_hold_are_balanced_or_refused() {
    let times = |tensor: &Tensor, factor: f32| {
        let scaled: Vec<f32> = values(tensor).iter().map(|value| *value as f32 * factor).collect();
        Tensor::f32(&tensor.name, &tensor.shape, &scaled)
    };
    let [a, b]: [Tensor; 2] = lora("a.o_proj", [40, 30], 4, 1).try_into().unwrap();
    let (_home, adapter, out) = made(&[times(&a, 1e3), times(&b, 1e-8)], &config(&["o_proj"]));
    sanitize(&adapter, &out, &["--dtype", "f16"]).code(0);
    assert!(distance(&adapter, &out) < 1e-3, "{}", distance(&adapter, &out));
    let (_home, adapter, out) = made(&[times(&a, 1e-8), times(&b, 1e-8)], &config(&["o_proj"]));
    let ended = sanitize(&adapter, &out, &["--dtype", "f16"]).code(2);
    ended.says("F16 cannot hold these factors").says("--dtype bf16");
    sanitize(&adapter, &out, &["--dtype", "bf16", "--overwrite"]).code(0);
}

#[test]
fn names_that_wrappers_left_are_mended() {
    let module = "model.layers.0.self_attn.o_proj";
    let plain = lora(module, [8, 6], 4, 1);
    let renamed = |from: &str, to: &str| {
        let rename = |tensor: &Tensor| Tensor { name: tensor.name.replacen(from, to, 1), ..tensor.clone() };
        plain.iter().map(rename).collect::<Vec<_>>()
    };
    for tensors in [
        renamed("base_model.model.", "base_model.model._orig_mod."),
        renamed("base_model.model.", "module.base_model.model."),
        renamed("base_model.model.", "base_model.model.base_model.model."),
        renamed("self_attn", "_fsdp_wrapped_module.self_attn"),
    ] {
        let (_home, adapter, out) = made(&tensors, &config(&["o_proj"]));
        run(trephine().args(["sanitize", "--check", text(&adapter), "--for", "peft"])).code(4);
        sanitize(&adapter, &out, &[]).code(0);
        let mended = PeftAdapter::open_folder(&out).unwrap();
        assert!(mended.problems().is_empty() && mended.module(module).is_some(), "{:?}", tensors[0].name);
    }
}

#[test]
fn shapes_are_held_against_the_base() {
    let module = "model.layers.0.self_attn.o_proj";
    let weights = [Tensor::bf16(&format!("{module}.weight"), &[8, 6], &noise(8, 48))];
    for (shape, says) in [([6, 8], "are swapped"), ([8, 12], "gives a change of shape [8, 12]")] {
        let (home, adapter, out) = made(&lora(module, shape, 4, 1), &config(&["o_proj"]));
        let base = write(&home.path().join("base"), &weights, &json!({"model_type": "llama"}));
        sanitize(&adapter, &out, &["--base", text(&base)]).code(3).says(says).says("[8, 6]");
        assert!(!out.exists());
        let probed = run(trephine().args(["probe", text(&adapter), "--base", text(&base)])).code(4);
        assert!(probed.stdout.contains(says), "{}", probed.stdout);
    }
}

#[test]
fn a_vocabulary_goes_where_the_base_does_not_take_it() {
    let mut tensors = lora("model.layers.0.self_attn.o_proj", [8, 6], 4, 1);
    tensors.extend(lora("lm_head", [10, 6], 4, 5));
    let (home, adapter, out) = made(&tensors, &config(&["o_proj", "lm_head"]));
    let weights = [
        Tensor::bf16("model.layers.0.self_attn.o_proj.weight", &[8, 6], &noise(8, 48)),
        Tensor::bf16("lm_head.weight", &[10, 6], &noise(9, 60)),
    ];
    let base = write(&home.path().join("base"), &weights, &json!({"model_type": "qwen2"}));
    sanitize(&adapter, &out, &["--for", "vllm", "--base", text(&base)]).code(0);
    let record = record(&out);
    let pruned = &record["pruned"][0];
    assert_eq!((&pruned["name"], &pruned["kind"]), (&json!("lm_head"), &json!(null)));
    let expected = norm(&products(&adapter)["lm_head"]);
    assert!((pruned["norm"].as_f64().unwrap() / expected - 1.0).abs() < 1e-6);
    sanitize(&adapter, &out, &["--for", "peft", "--base", text(&base), "--overwrite"]).code(0);
    assert_eq!(distance(&adapter, &out), 0.0);
}

#[test]
fn llama_cpp_takes_no_lora_on_a_head_that_is_the_embedding() {
    let mut tensors = lora("model.layers.0.self_attn.o_proj", [8, 6], 4, 1);
    tensors.extend(lora("lm_head", [10, 6], 4, 5));
    let (home, adapter, out) = made(&tensors, &config(&["o_proj", "lm_head"]));
    let base = |tied: bool| {
        let mut weights = vec![
            Tensor::bf16("model.layers.0.self_attn.o_proj.weight", &[8, 6], &noise(8, 48)),
            Tensor::bf16("model.embed_tokens.weight", &[10, 6], &noise(9, 60)),
        ];
        if !tied {
            weights.push(Tensor::bf16("lm_head.weight", &[10, 6], &noise(10, 60)));
        }
        let settings = json!({"model_type": "llama", "tie_word_embeddings": tied});
        write(&home.path().join(format!("base-{tied}")), &weights, &settings)
    };
    let check = |base: &Path, loader: &str| {
        run(trephine().args(["sanitize", "--check", text(&adapter), "--for", loader, "--base", text(base)]))
    };
    let (tied, untied) = (base(true), base(false));
    let ended = check(&tied, "llama.cpp").code(4);
    assert!(
        ended.stdout.contains("lm_head is a LoRA on a head or embedding that are tied"),
        "{}",
        ended.stdout
    );
    check(&tied, "peft").code(0);
    check(&untied, "llama.cpp").code(0);
    let probe = |base: &Path| run(trephine().args(["probe", text(&adapter), "--base", text(base)]));
    let ended = probe(&tied).code(4);
    assert!(ended.stdout.contains("that are tied in the base (llama.cpp: refused)"), "{}", ended.stdout);
    probe(&untied).code(0);
    // Made for llama.cpp it goes, with its norm in the record.
    sanitize(&adapter, &out, &["--for", "llama.cpp", "--base", text(&tied)]).code(0);
    assert_eq!(record(&out)["pruned"][0]["name"], json!("lm_head"));
}

#[test]
fn the_output_folder_is_respected() {
    let (home, adapter, out) = made(&lora("a.o_proj", [8, 6], 4, 1), &config(&["o_proj"]));
    fs::create_dir(&out).unwrap();
    fs::write(out.join("notes.txt"), "mine").unwrap();
    sanitize(&adapter, &out, &["--overwrite"]).code(2).says("holds something else ('notes.txt')");
    sanitize(&adapter, &adapter, &["--overwrite"]).code(2).says("is the adapter itself");
    let other =
        write_adapter(&home.path().join("other"), &lora("a.o_proj", [8, 6], 4, 1), &config(&["o_proj"]));
    let before = contents(&other);
    sanitize(&adapter, &other, &["--overwrite"]).code(2).says("holds something else ('adapter_config.json')");
    assert_eq!(contents(&other), before);
    fs::remove_file(out.join("notes.txt")).unwrap();
    sanitize(&adapter, &out, &[]).code(0);
    let first = contents(&out);
    sanitize(&adapter, &out, &["--max-rank", "2"]).code(2).says("--max-rank was null and is 2");
    assert_eq!(contents(&out), first);
    sanitize(&adapter, &out, &["--max-rank", "2", "--overwrite"]).code(0);
    assert_ne!(contents(&out), first);
    // A kill before the checksums leaves a folder that the next run continues.
    fs::remove_file(out.join("B3SUMS")).unwrap();
    fs::write(out.join(".tmp-1-1"), "left").unwrap();
    sanitize(&adapter, &out, &[]).code(0);
    assert_eq!(contents(&out), first);
}

#[test]
fn a_sanitized_adapter_needs_no_mending() {
    let home = tempdir().unwrap();
    let out = home.path().join("out");
    sanitize(&fixture("rank4"), &out, &[]).code(0);
    let ended = run(trephine().args(["sanitize", "--check", text(&out)])).code(0);
    let vocabulary = "nothing to fix\n";
    assert_eq!(ended.stdout, vocabulary);
    let again = home.path().join("again");
    sanitize(&out, &again, &[]).code(0);
    let [first, second] = [&out, &again].map(|f| fs::read(f.join("adapter_model.safetensors")).unwrap());
    assert_eq!(first, second);
}

#[test]
fn check_says_what_would_be_refused() {
    for (name, _) in TARGETS {
        let ended =
            run(trephine().args(["sanitize", "--check", "--for", name, text(&fixture("epsilon"))])).code(4);
        insta::assert_snapshot!(format!("check_{name}"), ended.stdout);
    }
    let json =
        run(trephine().args(["sanitize", "--check", "--json", text(&fixture("epsilon"))])).code(4).stdout;
    let found: Vec<trephine::lora::rules::RuleFinding> = serde_json::from_str(&json).unwrap();
    assert!(found.iter().any(|f| f.is_failure()));
}
