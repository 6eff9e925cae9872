//! Numbers that are at the ends of what a type holds, and declarations of another type than they should have.

use serde_json::json;
use tempfile::tempdir;

use crate::common::adapter::{config as adapter_config, lora, write_adapter};
use crate::common::pair::{Tensor, config, noise, write};
use crate::common::{copied, extract_with, run, trephine};
use crate::hostile_inputs::within;
use safetensors::Dtype;

const NAME: &str = "model.layers.0.self_attn.q_proj.weight";

#[test]
fn a_change_below_what_f32_holds_is_no_change_of_nothing() {
    let home = tempdir().unwrap();
    let f64s = |folder: &str, value: fn(usize) -> f64| {
        let bytes: Vec<u8> = (0..1024).flat_map(|at| value(at).to_le_bytes()).collect();
        let tensor = Tensor { name: NAME.into(), dtype: Dtype::F64, shape: vec![32, 32], bytes };
        write(&home.path().join(folder), &[tensor], &config()).to_str().unwrap().to_owned()
    };
    let (base, tuned) = (f64s("base", |_| 0.0), f64s("tuned", |at| 1e-60 * at as f64));
    extract_with(&base, &tuned, &home.path().join("out"), &["--rank", "4"])
        .code(3)
        .says("all of a weight's change (1023 elements) is below what f32 can hold")
        .says("--exclude");
}

#[test]
fn an_analysis_of_a_base_of_zeros_prints_short_numbers() {
    let home = tempdir().unwrap();
    let folder = |name: &str, values: &[f32]| {
        let tensor = Tensor::f32(NAME, &[32, 32], values);
        write(&home.path().join(name), &[tensor], &config()).to_str().unwrap().to_owned()
    };
    // Small enough that its norm, relative to the smallest positive number, is no infinity.
    let change: Vec<f32> = noise(1, 1024).iter().map(|value| value * 1e-3).collect();
    let (base, tuned) = (folder("base", &[0.0; 1024]), folder("tuned", &change));
    let mut fp8 = config();
    fp8["quantization_config"] = json!({"quant_method": "fp8", "weight_block_size": [128, 128]});
    let codes =
        Tensor { name: NAME.into(), dtype: Dtype::F8_E4M3, shape: vec![32, 32], bytes: vec![0; 1024] };
    let scale = Tensor::f32(&format!("{NAME}_scale_inv"), &[1, 1], &[1.0]);
    let quantized = write(&home.path().join("quantized"), &[codes, scale], &fp8);
    let mut command = trephine();
    command.args(["analyze", "--base", &base, "--tuned", &tuned, "--rank", "4", "--base-quantized"]);
    command.arg(quantized);
    let ended = run(command.arg("--out").arg(home.path().join("out"))).code(0);
    let longest = ended.stdout.split(|c: char| !c.is_ascii_digit()).map(str::len).max();
    assert!(longest < Some(20), "{}", ended.stdout);
}

#[test]
fn symmetric_is_true_or_false() {
    let home = tempdir().unwrap();
    for (at, symmetric) in [json!("yes"), json!(1), json!("false"), json!([])].into_iter().enumerate() {
        let weights = json!({"num_bits": 8, "type": "int", "symmetric": symmetric, "strategy": "channel"});
        let quantization = json!({
            "quant_method": "compressed-tensors", "format": "int-quantized", "ignore": [],
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        });
        let mut config = config();
        config["quantization_config"] = quantization;
        let codes = Tensor { name: NAME.into(), dtype: Dtype::I8, shape: vec![8, 8], bytes: vec![1; 64] };
        let scales = Tensor::f32(&format!("{NAME}_scale"), &[8, 1], &[1.0; 8]);
        let input = write(&home.path().join(at.to_string()), &[codes, scales], &config);
        let mut command = trephine();
        command.arg("dequantize").arg(&input).arg("--out").arg(home.path().join(format!("out-{at}")));
        run(&mut command).code(3).says("neither true nor false");
    }
}

#[test]
fn one_part_of_very_many_says_little() {
    let home = tempdir().unwrap();
    let out = home.path().join("out");
    let [base, tuned] = ["base-fp8", "tuned"].map(crate::common::data);
    let ended = extract_with(&base, &tuned, &out, &["--rank", "4", "--part", "1/100000"]).code(0);
    assert!(ended.stdout.len() + ended.stderr.len() < 4096);
    let ended = run(trephine().arg("assemble").arg(&out)).code(4);
    assert!(ended.stdout.len() + ended.stderr.len() < 16 << 10, "{}", ended.stderr.len());
    let ended = run(trephine().arg("status").arg(&out)).code(0);
    assert!(ended.stdout.len() < 16 << 10, "{}", ended.stdout.len());
}

#[test]
fn numbers_in_names_and_configs_stand_for_no_work() {
    let home = tempdir().unwrap();
    let path = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
    let mut config = config();
    config["num_hidden_layers"] = json!(u64::MAX);
    config["num_experts"] = json!(u64::MAX);
    write(&home.path().join("model"), &[Tensor::f32(NAME, &[8, 8], &[1.0; 64])], &config);
    within(500, &["probe", &path("model")])
        .code(4)
        .shows("there is no tensor of layer 1, 2, 3")
        .shows("and 18446744073709551594 more");
    // An adapter of one expert.
    for (number, words) in [("18446744073709551615", "names expert"), ("99999999", "names expert 99999999")] {
        let folder = format!("adapter-{number}");
        let module = format!("model.layers.0.mlp.experts.{number}.up_proj");
        let config = adapter_config(&["up_proj"]);
        write_adapter(&home.path().join(&folder), &lora(&module, [8, 8], 4, 1), &config);
        within(500, &["probe", &path(&folder)]).code(4).shows(words);
        let out = path("sanitized");
        within(500, &["sanitize", &path(&folder), "--for", "vllm", "--out", &out]).code(3).says(words);
    }
    // The base says how many experts there are.
    let weight = |kind: &str| {
        let name = format!("model.layers.0.mlp.experts.1.{kind}_proj.weight");
        Tensor::f32(&name, &[8, 8], &[1.0; 64])
    };
    config["model_type"] = json!("qwen3_moe");
    write(&home.path().join("experts"), &["gate", "up", "down"].map(weight), &config);
    let module = "model.layers.0.mlp.experts.1.up_proj";
    write_adapter(&home.path().join("adapter"), &lora(module, [8, 8], 4, 1), &adapter_config(&["up_proj"]));
    let out = path("sanitized");
    within(500, &["sanitize", &path("adapter"), "--for", "vllm", "--base", &path("experts"), "--out", &out])
        .code(3)
        .says("a layer of 18446744073709551615 experts is larger than any that is known");
}

#[test]
fn a_model_of_very_many_layers_is_not_run() {
    let home = tempdir().unwrap();
    for (at, key) in ["num_hidden_layers", "num_attention_heads", "num_key_value_heads"].iter().enumerate() {
        let folder = copied("base", &home.path().join(at.to_string()));
        let path = folder.join("config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config[*key] = json!(1u64 << 39);
        std::fs::write(&path, config.to_string()).unwrap();
        let model = folder.to_str().unwrap().to_owned();
        within(900, &["evaluate", "--model", &model, "--tokens", "32", "--sequence", "16"])
            .code(3)
            .says(&format!("no usable '{key}'"));
    }
}
