//! Bases whose activation scales are folded into norms and neighbouring weights, as AWQ and SmoothQuant leave them.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;
use tempfile::tempdir;

use crate::common::pair::{Tensor, changed, dense, noise, write};
use crate::common::{Ended, extract_with, manifest};

const LAYER: &str = "model.layers.0";
const WEIGHTS: [(&str, [usize; 2]); 7] = [
    ("self_attn.q_proj", [48, 32]),
    ("self_attn.k_proj", [24, 32]),
    ("self_attn.v_proj", [40, 32]),
    ("self_attn.o_proj", [32, 40]),
    ("mlp.gate_proj", [56, 32]),
    ("mlp.up_proj", [56, 32]),
    ("mlp.down_proj", [32, 56]),
];

type Model = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// A layer, or what a change of rank 2 in every weight makes of it.
fn model(tuned: bool) -> Model {
    let mut model = Model::new();
    for (seed, (name, shape)) in WEIGHTS.into_iter().enumerate() {
        let plain = noise(seed as u64, shape[0] * shape[1]);
        let values = if tuned { changed(&plain, shape, 2, 0.02, 70 + seed as u64) } else { plain };
        model.insert(format!("{LAYER}.{name}.weight"), (shape.to_vec(), values));
    }
    for norm in ["input_layernorm", "post_attention_layernorm"] {
        let values = noise(30, 32).iter().map(|value| 1.0 + 0.1 * value).collect();
        model.insert(format!("{LAYER}.{norm}.weight"), (vec![32], values));
    }
    model
}

/// Multiplies columns (or rows) of weights.
fn times(model: &mut Model, name: &str, factors: &[f32], rows: bool) {
    let (shape, values) = model.get_mut(&format!("{LAYER}.{name}.weight")).unwrap();
    let columns = shape.last().copied().unwrap();
    for (at, value) in values.iter_mut().enumerate() {
        *value *= factors[if rows { at / columns } else { at % columns }];
    }
}

fn scales(seed: u64, count: usize) -> Vec<f32> {
    noise(seed, count).iter().map(|value| (0.5 * value).exp()).collect()
}

fn inverse(factors: &[f32]) -> Vec<f32> {
    factors.iter().map(|factor| 1.0 / factor).collect()
}

/// The same function with scales moved from the norms to the weights behind them, and between neighbours.
fn fold(model: &mut Model) {
    for (norm, behind, seed) in [
        ("input_layernorm", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"].as_slice(), 40),
        ("post_attention_layernorm", &["mlp.gate_proj", "mlp.up_proj"], 41),
    ] {
        let s = scales(seed, 32);
        times(model, norm, &inverse(&s), false);
        behind.iter().for_each(|name| times(model, name, &s, false));
    }
    for (first, second, seed, count) in
        [("mlp.up_proj", "mlp.down_proj", 42, 56), ("self_attn.v_proj", "self_attn.o_proj", 43, 40)]
    {
        let s = scales(seed, count);
        times(model, first, &inverse(&s), true);
        times(model, second, &s, false);
    }
}

fn saved(home: &Path, name: &str, model: &Model) -> String {
    let tensors: Vec<Tensor> =
        model.iter().map(|(name, (shape, values))| Tensor::f32(name, shape, values)).collect();
    write(&home.join(name), &tensors, &json!({"model_type": "llama"})).to_str().unwrap().to_owned()
}

fn extracted(base: &str, tuned: &str, out: &Path, more: &[&str]) -> Ended {
    extract_with(base, tuned, out, &[&["--dtype", "f32", "--overwrite"], more].concat())
}

/// `W + B·A` of a module.
fn sum(base: &Model, out: &Path, name: &str) -> Vec<f64> {
    let (shape, values) = &base[&format!("{LAYER}.{name}.weight")];
    let factors = dense(&out.join("adapter_model.safetensors"));
    let [a, b] = ["A", "B"].map(|f| &factors[&format!("base_model.model.{LAYER}.{name}.lora_{f}.weight")].1);
    let (columns, rank) = (shape[1], a.len() / shape[1]);
    let product = |at: usize| {
        (0..rank).map(|k| b[at / columns * rank + k] * a[k * columns + at % columns]).sum::<f64>()
    };
    values.iter().enumerate().map(|(at, value)| f64::from(*value) + product(at)).collect()
}

#[test]
fn the_tuned_weights_are_brought_to_where_the_scales_are() {
    let home = tempdir().unwrap();
    let (mut folded, tuned) = (model(false), model(true));
    fold(&mut folded);
    let (base, tuned_path, out) =
        (saved(home.path(), "base", &folded), saved(home.path(), "tuned", &tuned), home.path().join("out"));
    extracted(&base, &tuned_path, &out, &["--rank", "4", "--absorb-norms=never"]).code(0);
    let before = manifest(&out)["total"]["relative_error"].as_f64().unwrap();
    assert!(before > 0.3, "the difference as it is has no low rank: {before}");
    extracted(&base, &tuned_path, &out, &["--rank", "4"]).code(0);
    let written = manifest(&out);
    let note = written["notes"].to_string();
    assert!(note.contains("the base's activation scales are folded into its norms"), "{note}");
    for module in written["modules"].as_array().unwrap() {
        let (name, error) = (module["name"].as_str().unwrap(), module["relative_error"].as_f64().unwrap());
        // How far a row was moved is known but for the part of its change that lies along it.
        let neighbour = ["up_proj", "down_proj", "v_proj", "o_proj"].iter().any(|end| name.ends_with(end));
        assert!(error < if neighbour { 0.45 } else { 1e-3 }, "{name}: {error}");
    }
    let norms =
        [format!("{LAYER}.input_layernorm.weight"), format!("{LAYER}.post_attention_layernorm.weight")];
    assert_eq!(written["absorbed_norms"], json!(norms));
    assert_eq!(written["not_represented"][0]["reason"], "absorbed");
    let card = std::fs::read_to_string(out.join("README.md")).unwrap();
    assert!(card.contains("The base's norms differ from the tuned model's (2 of them)"), "{card}");
    extracted(&base, &tuned_path, &out, &["--rank", "56"]).code(0);
    // The function: columns behind a norm by its ratio, and the products of neighbours.
    let ratio = |norm: &str| {
        let name = format!("{LAYER}.{norm}.weight");
        let pairs = tuned[&name].1.iter().zip(&folded[&name].1);
        pairs.map(|(t, b)| f64::from(*t) / f64::from(*b)).collect::<Vec<_>>()
    };
    for (norm, name) in
        [("input_layernorm", "self_attn.q_proj"), ("post_attention_layernorm", "mlp.gate_proj")]
    {
        let (ratio, got) = (ratio(norm), sum(&folded, &out, name));
        for (at, value) in tuned[&format!("{LAYER}.{name}.weight")].1.iter().enumerate() {
            let want = f64::from(*value) * ratio[at % 32];
            assert!((got[at] - want).abs() < 2e-3, "{name} {at}: {} is not {want}", got[at]);
        }
    }
    for (norm, first, second, width) in [
        ("post_attention_layernorm", "mlp.up_proj", "mlp.down_proj", 56),
        ("input_layernorm", "self_attn.v_proj", "self_attn.o_proj", 40),
    ] {
        let (ratio, up, down) = (ratio(norm), sum(&folded, &out, first), sum(&folded, &out, second));
        let weight = |name: &str, at: usize| f64::from(tuned[&format!("{LAYER}.{name}.weight")].1[at]);
        for (i, j) in (0..32).flat_map(|i| (0..32).map(move |j| (i, j))) {
            let got: f64 = (0..width).map(|k| down[i * width + k] * up[k * 32 + j]).sum();
            let want: f64 = (0..width)
                .map(|k| weight(second, i * width + k) * weight(first, k * 32 + j) * ratio[j])
                .sum();
            assert!((got - want).abs() < 2e-2, "{second} · {first} at {i}, {j}: {got} is not {want}");
        }
    }
    crate::common::run(crate::common::trephine().args(["verify", "--quiet"]).arg(&out).args([
        "--base",
        &base,
        "--tuned",
        &tuned_path,
    ]))
    .code(0);
}

#[test]
fn a_norm_that_was_trained_is_absorbed_when_asked_for() {
    let home = tempdir().unwrap();
    let (base, mut tuned) = (model(false), model(true));
    let trained: Vec<f32> = noise(50, 32).iter().map(|value| 1.0 + 0.05 * value).collect();
    times(&mut tuned, "input_layernorm", &trained, false);
    let (base_path, tuned_path, out) =
        (saved(home.path(), "base", &base), saved(home.path(), "tuned", &tuned), home.path().join("out"));
    extracted(&base_path, &tuned_path, &out, &[]).code(0);
    assert_eq!(manifest(&out)["absorbed_norms"], json!(null), "nothing is folded");
    extracted(&base_path, &tuned_path, &out, &["--rank", "32", "--absorb-norms"]).code(0);
    let note = manifest(&out)["notes"].to_string();
    assert!(note.contains("the norms that differ are absorbed"), "{note}");
    assert_eq!(manifest(&out)["absorbed_norms"], json!([format!("{LAYER}.input_layernorm.weight")]));
    let got = sum(&base, &out, "self_attn.k_proj");
    for (at, value) in tuned[&format!("{LAYER}.self_attn.k_proj.weight")].1.iter().enumerate() {
        let want = f64::from(*value) * f64::from(trained[at % 32]);
        assert!((got[at] - want).abs() < 1e-4, "{at}: {} is not {want}", got[at]);
    }
}

#[test]
fn what_cannot_be_undone_is_refused() {
    let home = tempdir().unwrap();
    let (mut folded, tuned) = (model(false), model(true));
    fold(&mut folded);
    folded.get_mut(&format!("{LAYER}.input_layernorm.weight")).unwrap().1[5] = 0.0;
    let (base, tuned_path, out) =
        (saved(home.path(), "base", &folded), saved(home.path(), "tuned", &tuned), home.path().join("out"));
    extracted(&base, &tuned_path, &out, &[]).code(3).says("it has zeros").says("input_layernorm.weight");
    extracted(&base, &tuned_path, &out, &["--absorb-norms=never"]).code(0);
}
