//! Probes of sound and broken checkpoints and adapters, from their headers alone.

use std::fs;
use std::io::Write;
use std::path::Path;

use crate::common::pair::{Tensor, config, noise, read_file, write, write_file};
use crate::common::{Ended, copied, data, extract_with, run, trephine};
use safetensors::Dtype;
use serde_json::{Value, json};
use tempfile::tempdir;
use trephine::checkpoint::Checkpoint;

fn probe(arguments: &[&str]) -> Ended {
    run(trephine().arg("probe").args(arguments))
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// The JSON of a probe that exits with `code`.
fn probed(path: &str, code: i32) -> Value {
    serde_json::from_str(&probe(&[path, "--json"]).code(code).stdout).unwrap()
}

/// The findings, each as its level and text.
fn findings(found: &Value) -> Vec<String> {
    let list = found["findings"].as_array().unwrap();
    list.iter()
        .map(|f| format!("{}: {}", f["level"].as_str().unwrap(), f["what"].as_str().unwrap()))
        .collect()
}

#[test]
fn a_checkpoint_in_few_lines() {
    let ended = probe(&[&data("base-fp8")]).code(0);
    for words in [
        "qwen3, block FP8 (128 x 128): ",
        ", 1 file\n",
        "quantized weights, F8_E4M3",
        "dense weights, BF16",
        "model.layers.0-2.mlp.up_proj",
        "416 x 160",
        "128 x 128",
        "weight F8_E4M3 [416, 160]; weight_scale_inv F32 [4, 2]",
        "model.layers.0-2.input_layernorm.weight",
    ] {
        assert!(ended.stdout.contains(words), "no '{words}' in {}", ended.stdout);
    }
    assert!(ended.stdout.lines().count() < 30, "{}", ended.stdout);
    let found = probed(&data("base-fp8"), 0);
    assert_eq!(found["values"], 1_030_624);
    assert_eq!(found["findings"], json!([]));
    let up = found["groups"].as_array().unwrap().iter().find(|g| g["name"] == "model.layers.0-2.mlp.up_proj");
    assert_eq!((up.unwrap()["tensors"].as_u64(), &up.unwrap()["gaps"]), (Some(3), &json!(false)));
}

#[test]
fn tensors_and_values_on_demand() {
    let ended = probe(&[&data("base-fp8"), "--include", "*layers.1.*up_proj", "--values", "3"]).code(0);
    assert!(
        ended
            .stdout
            .contains("model.layers.1.mlp.up_proj.weight_scale_inv  F32 [4, 2], 32 B, in model.safetensors")
    );
    let checkpoint = Checkpoint::open(&data("base-fp8")).unwrap();
    let module = checkpoint.module("model.layers.1.mlp.up_proj").unwrap();
    let mut row = vec![0f32; 160];
    module.panel(&checkpoint, 2..3, &mut row).unwrap();
    let last = format!("{:>12.5e} {:>12.5e} {:>12.5e}", row[0], row[1], row[2]);
    assert!(ended.stdout.contains(&last), "{last} in {}", ended.stdout);
    let all = probe(&[&data("base"), "--include", "*", "--json"]).code(0);
    let all: Value = serde_json::from_str(&all.stdout).unwrap();
    assert_eq!(all["tensors"].as_array().unwrap().len(), 36);
    probe(&[&data("base"), "--include", "no_such"]).code(2).says("no tensor matches");
    probe(&[&data("base"), "--values", "3"]).code(2);
    probe(&["/nowhere/at/all"]).code(3).says("no such file or folder");
}

/// A folder with three layers in two files and an index, to be damaged.
fn indexed(home: &Path) -> std::path::PathBuf {
    let folder = copied("base-fp8", home);
    let tensors = read_file(&folder.join("model.safetensors"));
    fs::remove_file(folder.join("model.safetensors")).unwrap();
    let (first, second): (Vec<_>, Vec<_>) = tensors.into_iter().partition(|t| !t.name.contains("layers.2."));
    let mut map = serde_json::Map::new();
    for (file, tensors) in [("1.safetensors", &first), ("2.safetensors", &second)] {
        write_file(&folder.join(file), tensors);
        tensors.iter().for_each(|tensor| drop(map.insert(tensor.name.clone(), json!(file))));
    }
    let index = json!({"metadata": {}, "weight_map": map}).to_string();
    fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
    folder
}

#[test]
fn everything_wrong_is_told_and_not_only_the_first() {
    let home = tempdir().unwrap();
    let folder = indexed(home.path());
    assert_eq!(findings(&probed(&text(&folder), 0)), Vec::<String>::new());
    let path = folder.join("1.safetensors");
    let mut tensors = read_file(&path);
    // One scale is missing, another has a wrong shape, one belongs to no weight.
    tensors.retain(|tensor| tensor.name != "model.layers.0.mlp.up_proj.weight_scale_inv");
    let wrong = tensors.iter_mut().find(|t| t.name == "model.layers.1.mlp.up_proj.weight_scale_inv").unwrap();
    wrong.shape = vec![2, 4];
    tensors.push(Tensor::f32("model.layers.0.alone.weight_scale_inv", &[1, 1], &[1.0]));
    write_file(&path, &tensors);
    let found = probed(&text(&folder), 4);
    let told = findings(&found).join("\n");
    for words in [
        "error: the index puts a tensor in '1.safetensors', which does not hold it: tensor 'model.layers.0.mlp.up_proj.weight_scale_inv'",
        "error: a weight is stored as F8_E4M3 [416, 160] without its scale, 'model.layers.0.mlp.up_proj.weight_scale_inv'",
        "error: a weight of shape [416, 160] in blocks of 128 x 128 needs a scale of shape [4, 2]",
        "warning: F32 [1, 1] does not belong to any weight: tensor 'model.layers.0.alone.weight_scale_inv'",
    ] {
        assert!(told.contains(words), "no '{words}' in\n{told}");
    }
    // The intact rest is still shown.
    assert!(
        found["groups"].as_array().unwrap().iter().any(|g| g["name"] == "model.layers.0-2.mlp.gate_proj")
    );
    probe(&[&text(&folder)]).code(4).says("problems in the checkpoint");
    // Opening the checkpoint still stops at the first error.
    assert!(Checkpoint::open(&text(&folder)).is_err());
}

#[test]
fn a_missing_or_damaged_file_hides_nothing_else() {
    let home = tempdir().unwrap();
    let folder = indexed(home.path());
    fs::remove_file(folder.join("2.safetensors")).unwrap();
    let told = findings(&probed(&text(&folder), 4));
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].starts_with("error: a file with 18 of the index's 57 tensors is missing"), "{told:?}");
    assert!(told[1].contains("the config has 3 layers, but there is no tensor of layer 2"), "{told:?}");
    fs::write(folder.join("2.safetensors"), "what").unwrap();
    let told = findings(&probed(&text(&folder), 4));
    assert!(told[0].contains("the file has 4 bytes, too few for a header"), "{told:?}");
    fs::write(folder.join("model.safetensors.index.json"), "{").unwrap();
    let told = findings(&probed(&text(&folder), 4)).join("\n");
    assert!(told.contains("this is not JSON") && told.contains("too few for a header"), "{told}");
}

#[test]
fn undeclared_codes_are_one_finding_for_all_their_layers() {
    let home = tempdir().unwrap();
    let folder = copied("base-fp8", home.path());
    let mut config: Value = serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
    config.as_object_mut().unwrap().remove("quantization_config");
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let ended = probe(&[&text(&folder)]).code(4);
    assert!(ended.stdout.contains("but nothing declares how it is quantized"), "{}", ended.stdout);
    assert!(ended.stdout.contains("(and 2 more like it)"), "{}", ended.stdout);
    // An unsupported scheme is reported once, whatever it covers.
    config["quantization_config"] = json!({"quant_method": "hqq"});
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let told = findings(&probed(&text(&folder), 4));
    assert_eq!(told.iter().filter(|told| told.starts_with("error")).count(), 1, "{told:?}");
    assert!(told[0].contains("quantization with hqq is not supported yet"), "{told:?}");
}

#[test]
fn experts_and_layers_are_ranges_with_their_gaps() {
    let home = tempdir().unwrap();
    let mut tensors = Vec::new();
    for layer in 0..4 {
        for expert in 0..5 {
            let name = format!("model.layers.{layer}.mlp.experts.{expert}.up_proj.weight");
            tensors.push(Tensor::bf16(&name, &[8, 4], &noise(layer * 9 + expert, 32)));
        }
    }
    tensors.retain(|tensor| !tensor.name.contains("layers.2.mlp.experts.3."));
    let folder = write(home.path(), &tensors, &config());
    let found = probed(&text(&folder), 0);
    let groups = found["groups"].as_array().unwrap();
    assert_eq!(groups.len(), 1);
    assert_eq!(groups[0]["name"], "model.layers.0-3.mlp.experts.0-4.up_proj");
    assert_eq!((&groups[0]["tensors"], &groups[0]["gaps"]), (&json!(19), &json!(true)));
}

#[test]
fn experts_of_a_stack_are_shown_as_modules() {
    let home = tempdir().unwrap();
    let path = "model.layers.0.mlp.experts";
    let tensors = [("gate_up_proj", [3, 64, 64], 3 * 64 * 64), ("down_proj", [3, 64, 32], 3 * 64 * 32)]
        .map(|(name, shape, count)| Tensor::bf16(&format!("{path}.{name}"), &shape, &noise(1, count)));
    let config = json!({"model_type": "qwen3_moe", "hidden_size": 64});
    let found = probed(&text(&write(home.path(), &tensors, &config)), 0);
    let groups: Vec<(&str, u64)> = found["groups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|group| (group["name"].as_str().unwrap(), group["tensors"].as_u64().unwrap()))
        .collect();
    let names = ["down_proj", "gate_proj", "up_proj"].map(|name| format!("{path}.0-2.{name}"));
    assert_eq!(groups, names.each_ref().map(|name| (name.as_str(), 3)));
    assert_eq!((&found["values"], &found["findings"]), (&json!(3 * 64 * 96), &json!([])));
}

#[test]
fn gguf_is_shown_under_the_names_of_transformers() {
    let path = format!("{}/tests/fixtures/gguf_models/qwen2.gguf", env!("CARGO_MANIFEST_DIR"));
    let ended = probe(&[&path]).code(0);
    for words in
        ["qwen2, GGUF (F16, BF16, Q4_0, Q5_1, Q8_0): 10144 values", "model.layers.0.mlp.down_proj", "32 x 64"]
    {
        assert!(ended.stdout.contains(words), "no '{words}' in {}", ended.stdout);
    }
    let found = probed(&path, 0);
    assert_eq!((&found["values"], &found["findings"]), (&json!(10_144), &json!([])));
    assert_eq!(found["groups"].as_array().unwrap().len(), 14);
}

#[test]
fn hundreds_of_gigabytes_are_probed_by_their_headers() {
    // 1000 tensors in 10 sparse files of 70 GB each: only the headers are on the disk and read.
    let home = tempdir().unwrap();
    let shape = [57_344usize, 12_208];
    let size = shape[0] * shape[1];
    for file in 0..10 {
        let mut header = serde_json::Map::new();
        for tensor in 0..100 {
            let entry = json!({"dtype": Dtype::F8_E4M3, "shape": shape, "data_offsets": [tensor * size, (tensor + 1) * size]});
            header.insert(format!("model.layers.{}.up_proj.weight", file * 100 + tensor), entry);
        }
        let header = Value::Object(header).to_string();
        let mut out = fs::File::create(home.path().join(format!("{file}.safetensors"))).unwrap();
        out.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
        out.write_all(header.as_bytes()).unwrap();
        out.set_len(8 + header.len() as u64 + 100 * size as u64).unwrap();
    }
    let declared = json!({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}});
    fs::write(home.path().join("config.json"), declared.to_string()).unwrap();
    let found = probed(&text(home.path()), 4);
    assert_eq!(found["bytes"], 1000 * size as u64);
    let told = findings(&found);
    assert!(told.len() <= 2 && told[0].contains("without its scale"), "{told:?}");
}

#[test]
fn an_adapter_and_who_would_load_it() {
    let home = tempdir().unwrap();
    let out = home.path().join("adapter");
    extract_with(&data("base"), &data("tuned"), &out, &["--rank", "4"]).code(0);
    let ended = probe(&[&text(&out)]).code(0);
    for words in [
        "ranks    4 (21 modules)",
        "lora_alpha 4",
        "targets  down_proj, gate_proj",
        "llama.cpp",
        "q_proj (3)",
    ] {
        assert!(ended.stdout.contains(words), "no '{words}' in {}", ended.stdout);
    }
    let found = probed(&text(&out), 0);
    let works = found["consumers"].as_array().unwrap();
    assert!(works.len() == 4 && works.iter().all(|verdict| verdict["works"] == true), "{works:?}");
    let path = out.join("adapter_config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["modules_to_save"] = json!(["norm"]);
    config["use_dora"] = json!(true);
    fs::write(&path, config.to_string()).unwrap();
    let found = probed(&text(&out), 4);
    let vllm = found["consumers"].as_array().unwrap().iter().find(|v| v["consumer"] == "vllm").unwrap();
    assert_eq!(vllm["loads"], false);
    assert!(!vllm["why"].as_str().unwrap().is_empty());
    probe(&[&text(&out)]).code(4).says("programs would not apply all of the adapter");
    probe(&[&text(&out), "--include", "*"]).code(2).says("--include works only on checkpoints");
}

#[test]
fn a_gguf_file_is_named_by_its_architecture_and_types() {
    let file = format!("{}/tests/fixtures/gguf_models/llama.gguf", env!("CARGO_MANIFEST_DIR"));
    let ended = probe(&[&file]).code(0);
    assert!(ended.stdout.starts_with("llama, GGUF ("), "{}", ended.stdout);
}
