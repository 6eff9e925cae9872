//! Mixtures of experts through `merge` and `dequantize`: nothing of the base is lost, and an adapter of stacks is
//! merged whichever way the base stores its experts.

use std::collections::BTreeMap;
use std::path::Path;

use crate::common::adapter::{config, lora, write_adapter};
use crate::common::conversions::decoded;
use crate::common::pair::{Tensor, read_file, values};
use crate::common::{extract_with, run, trephine};
use safetensors::Dtype;
use tempfile::tempdir;

use crate::moe::{EXPERTS, ExpertLayout, Model};

fn tensors(folder: &Path) -> BTreeMap<String, Tensor> {
    read_file(&folder.join("model.safetensors")).into_iter().map(|t| (t.name.clone(), t)).collect()
}

fn merged(base: &str, adapter: &Path, out: &Path) -> BTreeMap<String, Tensor> {
    merged_with(base, adapter, out, &[])
}

fn merged_with(base: &str, adapter: &Path, out: &Path, more: &[&str]) -> BTreeMap<String, Tensor> {
    let mut command = trephine();
    command.args(["merge", "--quiet", "--base", base, "--adapter"]).arg(adapter).arg("--out").arg(out);
    run(command.args(more)).code(0);
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

/// Half a step of FP8 with a scale for each block of 128 x 128, which these matrices fit into: 2^-4 of a normal number,
/// 2^-10 of the scale below.
fn half_step(value: f64, scale: f64) -> f64 {
    (value.abs() / 16.0).max(scale / 1024.0) * 1.0001
}

/// A base of stacks whose model exists with single experts becomes single experts in FP8: each is the dense merge's
/// within one rounding, which what the base had is not.
#[test]
fn stacks_become_fp8_with_the_change_of_every_expert() {
    use ExpertLayout::{Singly, Stacked, Turned};
    for (kind, layout) in [
        ("qwen3_moe", Stacked),
        ("qwen3_moe", Turned),
        ("deepseek_v3", Stacked),
        ("glm4_moe", Stacked),
        ("dots1", Stacked),
    ] {
        let (model, home) = (Model::new(kind), tempdir().unwrap());
        let pair = model.write(home.path(), layout, Singly);
        let adapter = home.path().join("adapter");
        extract_with(&pair[0], &pair[1], &adapter, &["--rank", "16", "--dtype", "f32"]).code(0);
        // The dense merge, expert by expert: into the same base with its experts singly.
        let [single, _] = model.write(home.path(), Singly, Singly);
        let dense = merged_with(&single, &adapter, &home.path().join("dense"), &["--dtype", "f32"]);
        let from = tensors(Path::new(&single));
        let out = home.path().join("fp8");
        let written = merged_with(&pair[0], &adapter, &out, &["--fp8"]);
        let experts: Vec<&String> = dense.keys().filter(|name| name.contains(".experts.")).collect();
        assert_eq!(experts.len(), 2 * 3 * EXPERTS, "{kind}");
        let mut changed = 0;
        for name in experts {
            let what = format!("{kind}, {layout:?}: {name}");
            let got = written.get(name).unwrap_or_else(|| panic!("{what} is not written"));
            assert_eq!((got.dtype, &got.shape), (Dtype::F8_E4M3, &dense[name].shape), "{what}");
            let scale = values(&written[&format!("{name}_scale_inv")]);
            assert_eq!(scale.len(), 1, "{what}");
            let (got, _) = decoded(&out, name.trim_end_matches(".weight"));
            let (want, base) = (values(&dense[name]), values(&from[name]));
            let is_far = |value: f64, want: f64| (value - want).abs() > half_step(want, scale[0]);
            for (at, (got, want)) in got.iter().zip(&want).enumerate() {
                assert!(!is_far(f64::from(*got), *want), "{what} at {at}: {got} for {want}");
            }
            changed += usize::from(base.iter().zip(&want).any(|(base, want)| is_far(*base, *want)));
        }
        // One expert of each layer is as it was.
        assert_eq!(changed, 2 * 3 * (EXPERTS - 1), "{kind}: a change that no rounding hides");
    }
}

/// Where the model has no form with single experts, its stacks stay dense, with every change in them.
#[test]
fn stacks_that_stay_hold_every_change_beside_fp8() {
    use ExpertLayout::{Turned, TurnedByTurns};
    for (kind, layout) in [("qwen3_vl_moe", Turned), ("gpt_oss", TurnedByTurns)] {
        let (model, home) = (Model::new(kind), tempdir().unwrap());
        let pair = model.write(home.path(), layout, layout);
        let adapter = home.path().join("adapter");
        extract_with(&pair[0], &pair[1], &adapter, &["--rank", "16", "--dtype", "f32"]).code(0);
        let dense = merged(&pair[0], &adapter, &home.path().join("dense"));
        let written = merged_with(&pair[0], &adapter, &home.path().join("fp8"), &["--fp8"]);
        let from = tensors(Path::new(&pair[0]));
        let stacks: Vec<&String> = from.keys().filter(|name| name.contains(".experts.")).collect();
        assert_eq!(stacks.len(), 4, "{kind}");
        for name in stacks {
            assert_eq!(written[name].bytes, dense[name].bytes, "{kind}: {name}");
            let (was, is) = (&from[name].bytes, &written[name].bytes);
            let one = was.len() / EXPERTS;
            let differ = (0..EXPERTS).filter(|e| was[e * one..(e + 1) * one] != is[e * one..(e + 1) * one]);
            assert_eq!(differ.count(), EXPERTS - 1, "{kind}: {name}");
        }
        assert_eq!(written["model.layers.0.self_attn.o_proj.weight"].dtype, Dtype::F8_E4M3, "{kind}");
    }
}
