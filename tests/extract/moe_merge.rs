//! Mixtures of experts through `merge` and `dequantize`: nothing of the base is lost, and an adapter of stacks is
//! merged whichever way the base stores its experts.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::common::adapter::{config, lora, write_adapter};
use crate::common::pair::{Tensor, read_file, values};
use crate::common::{extract_with, run, trephine};
use serde_json::Value;
use tempfile::tempdir;

use crate::moe::{ExpertLayout, Model};

fn tensors(folder: &Path) -> BTreeMap<String, Tensor> {
    read_file(&folder.join("model.safetensors")).into_iter().map(|t| (t.name.clone(), t)).collect()
}

fn merged(base: &str, adapter: &Path, out: &Path) -> BTreeMap<String, Tensor> {
    let mut command = trephine();
    command.args(["merge", "--quiet", "--base", base, "--adapter"]).arg(adapter).arg("--out").arg(out);
    run(&mut command).code(0);
    tensors(out)
}

#[test]
fn no_tensor_of_single_experts_is_lost() {
    for kind in
        ["qwen3_5_moe_text", "qwen3_omni_moe_thinker", "interns1_pro", "qwen3_vl_moe", "gpt_oss", "qwen3_moe"]
    {
        let (model, home) = (Model::new(kind), tempdir().unwrap());
        let [base, _] = model.write(home.path(), ExpertLayout::Singly, ExpertLayout::Singly);
        let from = tensors(Path::new(&base));
        let module = "model.layers.0.self_attn.o_proj";
        let factors = lora(module, [16, 64], 4, 1);
        let adapter = write_adapter(&home.path().join("adapter"), &factors, &config(&["o_proj"]));
        let mut got = merged(&base, &adapter, &home.path().join("merged"));
        let changed = got.remove(&format!("{module}.weight")).unwrap();
        assert_ne!(changed.bytes, from[&changed.name].bytes);
        let out = home.path().join("dequantized");
        run(trephine().args(["dequantize", "--quiet", &base, "--out"]).arg(&out)).code(0);
        for (what, mut got) in [("merge", got), ("dequantize", tensors(&out))] {
            got.entry(changed.name.clone()).or_insert_with(|| from[&changed.name].clone());
            let names: Vec<&String> = got.keys().collect();
            assert_eq!(names, from.keys().collect::<Vec<_>>(), "{what} of {kind}");
            for (name, tensor) in &got {
                assert_eq!(tensor.bytes, from[name].bytes, "{what} of {kind}: {name}");
            }
        }
    }
}

/// Every changed expert comes as near to the tuned one as bf16 holds it, in the base's own layout.
fn comes_to_the_tuned(kind: &'static str, base_layout: ExpertLayout, tuned_layout: ExpertLayout) {
    let (model, home) = (Model::new(kind), tempdir().unwrap());
    let what = format!("{kind}, {base_layout:?} and {tuned_layout:?}");
    let pair = model.write(home.path(), base_layout, tuned_layout);
    let adapter = home.path().join("adapter");
    extract_with(&pair[0], &pair[1], &adapter, &["--rank", "16", "--dtype", "f32"]).code(0);
    let got = merged(&pair[0], &adapter, &home.path().join("merged"));
    let from = tensors(Path::new(&pair[0]));
    let mut experts = 0;
    for want in model.tensors(&model.tuned, base_layout, 1.0).iter().filter(|t| t.name.contains(".experts."))
    {
        let got = got.get(&want.name).unwrap_or_else(|| panic!("{what}: {} is not written", want.name));
        assert_eq!((&got.shape, got.dtype), (&want.shape, want.dtype), "{what}: {}", want.name);
        let (got, want_values, base) = (values(got), values(want), values(&from[&want.name]));
        let distance =
            |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
        let (error, change) = (distance(&got, &want_values), distance(&base, &want_values));
        assert!(error <= 0.02 * change, "{what}: {} is {error} away, the change was {change}", want.name);
        experts += usize::from(change > 0.0);
    }
    assert!(experts > 0, "{what}");
}

#[test]
fn an_adapter_of_stacks_is_merged_into_every_layout() {
    use ExpertLayout::{Singly, Stacked, Turned, TurnedByTurns};
    for (base, tuned) in [(Stacked, Turned), (Turned, Stacked), (Singly, Turned)] {
        comes_to_the_tuned("qwen3_vl_moe", base, tuned);
    }
    for (base, tuned) in [(TurnedByTurns, Singly), (Singly, TurnedByTurns)] {
        comes_to_the_tuned("gpt_oss", base, tuned);
    }
    for (base, tuned) in [(Singly, Stacked), (Stacked, Singly), (Stacked, Stacked), (Singly, Singly)] {
        comes_to_the_tuned("qwen3_moe", base, tuned);
    }
}

/// An adapter may change an expert by a stack's factors and by its own: neither takes the other's place.
#[test]
fn factors_of_a_stack_and_of_a_single_expert_are_both_added() {
    let (model, home) = (Model::new("qwen3_moe"), tempdir().unwrap());
    let [base, tuned] = model.write(home.path(), ExpertLayout::Singly, ExpertLayout::Stacked);
    let stacks = home.path().join("stacks");
    extract_with(&base, &tuned, &stacks, &["--rank", "16", "--dtype", "f32"]).code(0);
    let stored = read_file(&stacks.join("adapter_model.safetensors"));
    assert!(stored.iter().any(|tensor| tensor.name.contains("experts.base_layer.")), "no stack");
    let settings: Value =
        serde_json::from_slice(&fs::read(stacks.join("adapter_config.json")).unwrap()).unwrap();
    let shapes = [("gate_proj", [32, 64]), ("up_proj", [32, 64]), ("down_proj", [64, 32])];
    let module = |kind: &str| format!("model.layers.0.mlp.experts.0.{kind}");
    let single: Vec<Tensor> =
        shapes.iter().flat_map(|(kind, shape)| lora(&module(kind), *shape, 16, 3)).collect();
    let with = |name: &str, tensors: &[Tensor]| {
        let adapter = write_adapter(&home.path().join(name), tensors, &settings);
        merged(&base, &adapter, &home.path().join(format!("{name}-merged")))
    };
    let both = with("both", &[stored.clone(), single.clone()].concat());
    let (stack, alone, from) = (with("stack", &stored), with("alone", &single), tensors(Path::new(&base)));
    for (kind, _) in shapes {
        let name = format!("{}.weight", module(kind));
        let [both, stack, alone, from] = [&both, &stack, &alone, &from].map(|all| values(&all[&name]));
        let off: f64 = (0..both.len()).map(|i| (both[i] - stack[i] - (alone[i] - from[i])).powi(2)).sum();
        let change: f64 = alone.iter().zip(&from).map(|(a, b)| (a - b).powi(2)).sum();
        let other: f64 = stack.iter().zip(&from).map(|(a, b)| (a - b).powi(2)).sum();
        assert!(off < 0.01 * change && other > 0.0, "{name}: {off} off of {change}");
    }
}
