//! `trephine merge`: W + scale · B·A with one rounding, the round trip with `extract`, block FP8, and refusals.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::common::adapter::{config, lora, write_adapter};
use crate::common::conversions::{Made, decoded};
use crate::common::pair::{Tensor, noise, read_file, values, write};
use crate::common::{Ended, assert_same, data, extract_with, run, trephine};
use half::bf16;
use serde_json::{Value, json};
use tempfile::tempdir;

const Q: &str = "model.layers.0.self_attn.q_proj";
const EMBED: &str = "model.embed_tokens";

fn command(base: &str, adapter: &Path, out: &Path, more: &[&str]) -> Ended {
    let mut command = trephine();
    command.args(["merge", "--quiet", "--base", base, "--adapter"]).arg(adapter).arg("--out").arg(out);
    run(command.args(more))
}

fn tensors(folder: &Path) -> BTreeMap<String, Tensor> {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|end| end == "safetensors"));
    files.flat_map(|path| read_file(&path)).map(|tensor| (tensor.name.clone(), tensor)).collect()
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// `B·A` `[out, in]` in f64.
fn product(factors: &[Tensor]) -> Vec<f64> {
    let ([rank, inner], [out, _]) = (
        <[usize; 2]>::try_from(&factors[0].shape[..]).unwrap(),
        <[usize; 2]>::try_from(&factors[1].shape[..]).unwrap(),
    );
    let (a, b) = (values(&factors[0]), values(&factors[1]));
    let at = |i: usize| (0..rank).map(|k| b[i / inner * rank + k] * a[k * inner + i % inner]).sum();
    (0..out * inner).map(at).collect()
}

/// A small model in bf16, with a tied head or a head of its own.
fn model(home: &Path, tied: bool) -> String {
    let weight = |name: &str, shape: [usize; 2], seed| {
        Tensor::bf16(&format!("{name}.weight"), &shape, &noise(seed, shape[0] * shape[1]))
    };
    let mut tensors = vec![
        weight(EMBED, [50, 24], 1),
        weight(Q, [40, 24], 2),
        weight("model.layers.0.self_attn.o_proj", [24, 40], 3),
        Tensor::bf16("model.norm.weight", &[24], &noise(4, 24)),
    ];
    if !tied {
        tensors.push(weight("lm_head", [50, 24], 5));
    }
    let config = json!({"model_type": "qwen3", "tie_word_embeddings": tied, "torch_dtype": "bfloat16"});
    write(&home.join("model"), &tensors, &config).to_str().unwrap().to_owned()
}

fn embedding_lora(seed: u64) -> Vec<Tensor> {
    let stem = format!("base_model.model.{EMBED}");
    vec![
        Tensor::bf16(&format!("{stem}.lora_embedding_A"), &[4, 50], &noise(seed, 200)),
        Tensor::bf16(&format!("{stem}.lora_embedding_B"), &[24, 4], &noise(seed + 1, 96)),
    ]
}

/// Asserts that every value is the bf16 nearest to the sum, except for sums so close to the midpoint of two that the
/// product in f32 determines the rounding.
#[track_caller]
fn is_sum(got: &Tensor, base: &Tensor, change: &[f64], scale: f64) {
    let (got, base) = (values(got), values(base));
    assert_eq!(got.len(), change.len());
    let mut other = 0;
    for ((got, base), change) in got.iter().zip(&base).zip(change) {
        let sum = base + scale * change;
        if *got != bf16::from_f64(sum).to_f64() {
            other += 1;
            assert!((got - sum).abs() <= 2f64.powi(-8) * sum.abs() + 1e-5, "{got} for {sum}");
        }
    }
    assert!(other * 500 <= got.len(), "{other} of {} are not the nearest", got.len());
}

#[test]
fn weights_are_rounded_once_by_pefts_scales() {
    let home = tempdir().unwrap();
    let base = model(home.path(), false);
    let (q, o) = (lora(Q, [40, 24], 4, 10), lora("model.layers.0.self_attn.o_proj", [24, 40], 2, 20));
    let (head, embed) = (lora("lm_head", [50, 24], 4, 30), embedding_lora(40));
    let all: Vec<Tensor> = [&q, &o, &head, &embed].into_iter().flatten().cloned().collect();
    let mut config = config(&["q_proj", "o_proj", "lm_head", "embed_tokens"]);
    config["rank_pattern"] = json!({"o_proj": 2});
    config["alpha_pattern"] = json!({"lm_head": 3});
    for (rslora, scales) in [(false, [2.0, 4.0, 0.75]), (true, [4.0, 8.0 / 2f64.sqrt(), 1.5])] {
        config["use_rslora"] = json!(rslora);
        let adapter = write_adapter(&home.path().join("adapter"), &all, &config);
        let out = home.path().join(rslora.to_string());
        command(&base, &adapter, &out, &[]).code(0);
        let (got, from) = (tensors(&out), tensors(Path::new(&base)));
        assert_eq!(got.keys().collect::<Vec<_>>(), from.keys().collect::<Vec<_>>());
        for (factors, module, scale) in [
            (&q, Q, scales[0]),
            (&o, "model.layers.0.self_attn.o_proj", scales[1]),
            (&head, "lm_head", scales[2]),
        ] {
            let name = format!("{module}.weight");
            is_sum(&got[&name], &from[&name], &product(factors), scale);
        }
        // The change of the embedding's weight is the transpose of B·A.
        let change = product(&embed);
        let turned: Vec<f64> = (0..50 * 24).map(|i| change[i % 24 * 50 + i / 24]).collect();
        let name = format!("{EMBED}.weight");
        is_sum(&got[&name], &from[&name], &turned, scales[0]);
        assert_eq!(got["model.norm.weight"].bytes, from["model.norm.weight"].bytes);
        run(trephine().arg("verify").arg(&out)).code(0);
    }
}

#[test]
fn a_tied_head_gets_a_weight_of_its_own() {
    let home = tempdir().unwrap();
    let base = model(home.path(), true);
    let from = tensors(Path::new(&base));
    let name = format!("{EMBED}.weight");
    let head = lora("lm_head", [50, 24], 4, 30);
    for (word, factors) in [("head", &head), ("embedding", &embedding_lora(40))] {
        let adapter = write_adapter(&home.path().join(word), factors, &config(&["lm_head", "embed_tokens"]));
        let out = home.path().join(format!("{word}-out"));
        command(&base, &adapter, &out, &[]).code(0);
        let got = tensors(&out);
        assert_eq!(json_of(&out.join("config.json"))["tie_word_embeddings"], false);
        let (same, other) =
            if word == "head" { (&name[..], "lm_head.weight") } else { ("lm_head.weight", &name[..]) };
        assert_eq!(got[same].bytes, from[&name].bytes, "{word}: {same}");
        assert_ne!(got[other].bytes, from[&name].bytes, "{word}: {other}");
        if word == "head" {
            is_sum(&got[other], &from[&name], &product(factors), 2.0);
        }
    }
}

/// ||B'A' - BA|| <= 2.1 ||bf16(W + BA) - (W + BA)|| + 2^-7 ||BA||.
#[test]
fn extract_gives_the_merged_adapter_back() {
    let home = tempdir().unwrap();
    let (base, adapter) = (data("base"), home.path().join("adapter"));
    extract_with(&base, &data("tuned"), &adapter, &["--rank", "8"]).code(0);
    let (merged, back) = (home.path().join("merged"), home.path().join("back"));
    command(&base, &adapter, &merged, &[]).code(0);
    extract_with(&base, merged.to_str().unwrap(), &back, &["--rank", "8"]).code(0);
    let [first, second] = [&adapter, &back].map(|folder| tensors(folder));
    let from = tensors(Path::new(&base));
    let mut modules = 0;
    for a in first.keys().filter(|name| name.ends_with(".lora_A.weight")) {
        let b = a.replace("lora_A", "lora_B");
        let [before, after] = [&first, &second].map(|all| product(&[all[a].clone(), all[&b].clone()]));
        let module = a.strip_prefix("base_model.model.").unwrap().replace(".lora_A", "");
        let w = values(&from[&module]);
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
        let rounding =
            norm(&mut w.iter().zip(&before).map(|(w, d)| bf16::from_f64(w + d).to_f64() - (w + d)));
        let change = norm(&mut before.iter().copied());
        let error = norm(&mut before.iter().zip(&after).map(|(a, b)| a - b));
        assert!(error <= 2.1 * rounding + change / 128.0, "{module}: {error}, {rounding}, {change}");
        assert!(change > 0.0);
        modules += 1;
    }
    assert_eq!(modules, 21);
}

#[test]
fn fp8_has_the_error_of_one_rounding() {
    let home = tempdir().unwrap();
    let base = data("base");
    let adapter = home.path().join("adapter");
    extract_with(&base, &data("tuned"), &adapter, &["--rank", "8"]).code(0);
    let (dense, out) = (home.path().join("dense"), home.path().join("out"));
    command(&base, &adapter, &dense, &["--dtype", "f32"]).code(0);
    command(&base, &adapter, &out, &["--fp8", "--max-shard-size", "300kB"]).code(0);
    let config = json_of(&out.join("config.json"));
    let quantization = &config["quantization_config"];
    assert_eq!(
        *quantization,
        json!({"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
            "modules_to_not_convert": ["lm_head"]})
    );
    let (written, names) = (tensors(&out), tensors(Path::new(&data("base-fp8"))));
    assert_eq!(written.keys().collect::<Vec<_>>(), names.keys().collect::<Vec<_>>(), "Qwen3-FP8's names");
    let mut count = 0;
    for name in names.keys().filter_map(|name| name.strip_suffix(".weight_scale_inv")) {
        let ((got, shape), (want, _)) = (decoded(&out, name), decoded(&dense, name));
        let scales = values(&written[&format!("{name}.weight_scale_inv")]);
        let (mut error2, mut norm2) = (0.0, 0.0);
        for (at, (got, want)) in got.iter().zip(&want).enumerate() {
            let (row, column) = (at / shape[1], at % shape[1]);
            let scale = scales[row / 128 * shape[1].div_ceil(128) + column / 128];
            let (got, want) = (f64::from(*got), f64::from(*want));
            // Half a step: 2^-4 of a normal number, 2^-10 of the scale below.
            let step = (want.abs() / 16.0).max(scale / 1024.0);
            assert!((got - want).abs() <= step * 1.0001, "{name} at {at}: {got} for {want}");
            (error2, norm2) = (error2 + (got - want).powi(2), norm2 + want * want);
        }
        let relative = (error2 / norm2).sqrt();
        assert!((0.015..0.035).contains(&relative), "{name}: {relative}");
        count += 1;
    }
    assert_eq!(count, 21);
}

#[test]
fn a_quantized_base_is_dequantized_or_kept() {
    let home = tempdir().unwrap();
    let base = data("base-fp8");
    let from = tensors(Path::new(&base));
    let shape = <[usize; 2]>::try_from(&from[&format!("{Q}.weight")].shape[..]).unwrap();
    let factors = lora(Q, shape, 4, 10);
    let adapter = write_adapter(&home.path().join("adapter"), &factors, &config(&["q_proj"]));
    let (out, bridge) = (home.path().join("out"), home.path().join("bridge"));
    command(&base, &adapter, &out, &[]).code(0);
    run(trephine().args(["dequantize", "--quiet", &base, "--out"]).arg(&bridge)).code(0);
    let (got, dense) = (tensors(&out), tensors(&bridge));
    assert_eq!(got.keys().collect::<Vec<_>>(), dense.keys().collect::<Vec<_>>());
    let name = format!("{Q}.weight");
    for (other, tensor) in dense.iter().filter(|(other, _)| **other != name) {
        assert_eq!(got[other].bytes, tensor.bytes, "{other}");
    }
    // The adapter is added to the exact values of the base, not to rounded ones.
    let exact: Vec<f32> = decoded(Path::new(&base), Q).0;
    is_sum(&got[&name], &Tensor::f32(&name, &shape, &exact), &product(&factors), 2.0);
    let kept = home.path().join("kept");
    command(&base, &adapter, &kept, &["--fp8"]).code(0);
    let kept = tensors(&kept);
    for (other, tensor) in from.iter().filter(|(other, _)| !other.starts_with(Q)) {
        assert_eq!(kept[other].bytes, tensor.bytes, "{other}");
    }
    assert_ne!(kept[&name].bytes, from[&name].bytes);
}

#[test]
fn parameters_that_the_adapter_holds_whole_take_the_bases_place() {
    let home = tempdir().unwrap();
    let base = model(home.path(), false);
    let norm = Tensor::bf16("base_model.model.model.norm.weight", &[24], &noise(9, 24));
    let mut all = lora(Q, [40, 24], 4, 10);
    all.push(norm.clone());
    let adapter = write_adapter(&home.path().join("adapter"), &all, &config(&["q_proj"]));
    let out = home.path().join("out");
    command(&base, &adapter, &out, &[]).code(0);
    assert_eq!(tensors(&out)["model.norm.weight"].bytes, norm.bytes);
    assert_eq!(json_of(&out.join("conversion.json"))["replaced"], json!(["model.norm.weight"]));
}

/// Both matrices of a model that ties them, saved whole and unequal: the result unties them and keeps both.
#[test]
fn whole_matrices_of_a_tied_vocabulary_are_both_kept() {
    let home = tempdir().unwrap();
    let base = model(home.path(), true);
    let whole = |name: &str, seed| {
        Tensor::bf16(&format!("base_model.model.{name}.weight"), &[50, 24], &noise(seed, 1200))
    };
    let (head, table) = (whole("lm_head", 20), whole(EMBED, 21));
    for (word, saved) in [("both", vec![&head, &table]), ("head", vec![&head]), ("table", vec![&table])] {
        let mut all = lora(Q, [40, 24], 4, 10);
        all.extend(saved.iter().map(|tensor| (*tensor).clone()));
        let adapter = write_adapter(&home.path().join(word), &all, &config(&["q_proj"]));
        let out = home.path().join(format!("{word}-out"));
        command(&base, &adapter, &out, &[]).code(0);
        let (got, from) = (tensors(&out), tensors(Path::new(&base)));
        assert_eq!(json_of(&out.join("config.json"))["tie_word_embeddings"], false, "{word}");
        let before = &from[&format!("{EMBED}.weight")].bytes;
        let is = |name: &str, saved: &Tensor, changed: bool| {
            assert_eq!(&got[name].bytes, if changed { &saved.bytes } else { before }, "{word}: {name}");
        };
        is("lm_head.weight", &head, word != "table");
        is(&format!("{EMBED}.weight"), &table, word != "head");
    }
    // More tokens than the base has.
    let enlarged = Tensor::bf16(&format!("base_model.model.{EMBED}.weight"), &[53, 24], &noise(22, 53 * 24));
    let all = [lora(Q, [40, 24], 4, 10), vec![enlarged]].concat();
    let adapter = write_adapter(&home.path().join("enlarged"), &all, &config(&["q_proj"]));
    command(&base, &adapter, &home.path().join("no"), &[])
        .code(3)
        .says("trained with 53 tokens and the base has 50");
}

/// A head that the files hold beside a config that ties it would be dropped by a loader once it is changed.
#[test]
fn a_stored_head_that_changes_is_no_longer_tied() {
    let home = tempdir().unwrap();
    let base = model(home.path(), false);
    let config_file = Path::new(&base).join("config.json");
    let mut tied = json_of(&config_file);
    tied["tie_word_embeddings"] = json!(true);
    fs::write(&config_file, tied.to_string()).unwrap();
    let merged = |word: &str, factors: &[Tensor]| {
        let adapter = write_adapter(&home.path().join(word), factors, &config(&["lm_head", "q_proj"]));
        let out = home.path().join(format!("{word}-out"));
        command(&base, &adapter, &out, &[]).code(0);
        json_of(&out.join("config.json"))["tie_word_embeddings"].clone()
    };
    assert_eq!(merged("head", &lora("lm_head", [50, 24], 4, 30)), false);
    assert_eq!(merged("q", &lora(Q, [40, 24], 4, 30)), true);
}

#[test]
fn what_would_do_nothing_or_something_else_is_refused() {
    let home = tempdir().unwrap();
    let base = model(home.path(), false);
    let out = home.path().join("out");
    let q = || lora(Q, [40, 24], 4, 10);
    let refused = |tensors: &[Tensor], change: &dyn Fn(&mut Value)| {
        let mut config = config(&["q_proj"]);
        change(&mut config);
        let adapter = write_adapter(&home.path().join("adapter"), tensors, &config);
        let ended = command(&base, &adapter, &out, &[]).code(3);
        assert!(!out.exists());
        ended
    };
    let none = |_: &mut Value| {};
    refused(&[q(), lora("model.layers.7.self_attn.q_proj", [40, 24], 4, 1)].concat(), &none)
        .says("the base does not have 1 of the adapter's modules: 'model.layers.7.self_attn.q_proj'")
        .says("would have no effect");
    refused(&lora(Q, [40, 20], 4, 1), &none).says("a change of shape [40, 20]").says("[40, 24]");
    refused(&q()[..1], &none).says("a lora_A without its lora_B").says(Q);
    refused(&q(), &|config| config["use_dora"] = json!(true)).says("DoRA");
    refused(&q(), &|config| config["init_lora_weights"] = json!("pissa")).says("pissa");
    refused(&q(), &|config| config["fan_in_fan_out"] = json!(true)).says("transposed");
    refused(&q(), &|config| config["alora_invocation_tokens"] = json!([5, 6])).says("aLoRA");
    refused(&q(), &|config| config["layer_replication"] = json!([[0, 1], [0, 1]])).says("repeats layers");
    refused(&[], &none).says("holds no factors");
    let stem = format!("base_model.model.{Q}");
    let with = |name: String, shape: &[usize]| {
        let tensor = Tensor::bf16(&name, shape, &noise(3, shape.iter().product()));
        [q(), vec![tensor]].concat()
    };
    refused(&with(format!("{stem}.lora_B.bias"), &[40]), &none).says("a bias of a lora_B");
    refused(&with(format!("{stem}.lora_magnitude_vector"), &[40]), &none).says("DoRA's magnitudes");
    refused(&with("base_model.model.model.other.weight".into(), &[40]), &none)
        .says("that the base does not have");
    refused(&with("base_model.model.model.norm.weight".into(), &[25]), &none).says("but the base has it as");
    let mut infinite = q();
    infinite[0].bytes[..2].copy_from_slice(&bf16::INFINITY.to_le_bytes());
    let adapter = write_adapter(&home.path().join("adapter"), &infinite, &config(&["q_proj"]));
    command(&base, &adapter, &out, &[]).code(3).says("are NaN or infinite").says(Q);
    assert!(!out.join("model.safetensors").exists());
    // The same folder with another adapter: the inputs differ.
    let adapter = write_adapter(&home.path().join("adapter"), &q(), &config(&["q_proj"]));
    command(&base, &adapter, &out, &[]).code(2).says("the adapter is a different one");
    command(&base, &adapter, &out, &["--overwrite"]).code(0);
    command(&base, &adapter, &out, &["--fp8"]).code(2).says("--fp8 was false and is true");
}

#[test]
fn killed_runs_end_with_the_same_bytes() {
    let home = tempdir().unwrap();
    let adapter = home.path().join("adapter");
    extract_with(&data("base-fp8"), &data("tuned"), &adapter, &["--rank", "8"]).code(0);
    let adapter = Some(adapter.to_str().unwrap().to_owned());
    for fp8 in [false, true] {
        let size = if fp8 { 150_000 } else { 300_000 };
        let made = Made { base: data("base-fp8"), adapter: adapter.clone(), fp8, max_shard_size: size };
        let files = made.files(&home.path().join(fp8.to_string()));
        for point in ["record 0", "record 1", "record 4", "byte 0", "byte 400000", "assembling"] {
            let out = home.path().join(format!("{fp8} {point}"));
            assert!(made.killed_at(&out, point), "{point} was never reached");
            made.goes_on(&out, &files, &format!("killed at {point}"));
        }
        let out = home.path().join(format!("{fp8} threads"));
        let mut more = vec!["--threads", "5", "--max-shard-size", if fp8 { "150000" } else { "300000" }];
        more.extend(fp8.then_some("--fp8"));
        command(&made.base, Path::new(made.adapter.as_ref().unwrap()), &out, &more).code(0);
        assert_same(&out, &files, "five threads");
    }
}
