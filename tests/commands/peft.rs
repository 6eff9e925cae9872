//! Adapters from many tools as the library reads them: modules, other tensors, and errors.

use std::fs;
use std::path::Path;

use crate::common::adapter::{config, lora, write_adapter};
use crate::common::pair::{Tensor, noise, values};
use crate::common::{data, extract_with};
use serde_json::json;
use tempfile::tempdir;
use trephine::lora::Place;
use trephine::lora::read::{ExtraKind, Fault, PeftAdapter, Targets};
use trephine::{Kind, Result};

const Q: &str = "model.layers.0.self_attn.q_proj";

fn open(folder: &Path) -> Result<PeftAdapter> {
    PeftAdapter::open(folder.to_str().unwrap())
}

fn bf16(name: &str, shape: &[usize]) -> Tensor {
    Tensor::bf16(name, shape, &noise(77, shape.iter().product()))
}

/// Renames a tensor.
fn renamed(mut tensor: Tensor, from: &str, to: &str) -> Tensor {
    tensor.name = tensor.name.replace(from, to);
    tensor
}

#[test]
fn an_extracted_adapter_is_read_back() {
    let home = tempdir().unwrap();
    let out = home.path().join("out");
    extract_with(
        &data("base"),
        &data("tuned"),
        &out,
        &["--rank", "4", "--include", "linear", "--include", "*embed*"],
    )
    .code(0);
    let adapter = open(&out).unwrap();
    assert_eq!((adapter.modules().len(), adapter.rank()), (22, 4));
    assert!(adapter.problems().is_empty() && adapter.extras().is_empty());
    let q = adapter.module(Q).unwrap();
    assert_eq!((q.place(), q.rank(), q.experts(), q.alpha(), q.scale()), (Place::Linear, 4, 1, 4.0, 1.0));
    let table = adapter.module("model.embed_tokens").unwrap();
    assert_eq!(table.place(), Place::Embedding);
    assert_eq!(table.shape(), [table.b().stored.shape[0], table.a().stored.shape[1]]);
    assert!(matches!(adapter.config().targets(), Targets::Names(names) if names.len() == 8));
}

#[test]
fn factors_are_the_stored_numbers_in_whatever_window_they_are_read() {
    let home = tempdir().unwrap();
    // Wide enough for several windows of lora_A, and tall enough for several of lora_B.
    let tensors = lora("a.q_proj", [3_000_000, 1_500_000], 1, 5);
    let adapter = open(&write_adapter(home.path(), &tensors, &config(&["q_proj"]))).unwrap();
    let module = adapter.module("a.q_proj").unwrap();
    let factors = adapter.factors(module).unwrap();
    for (found, tensor) in [(&factors.a, &tensors[0]), (&factors.b, &tensors[1])] {
        assert!(found.iter().map(|v| f64::from(*v)).eq(values(tensor)), "{}", tensor.name);
    }
    let (mut panels, mut next) = (0, 0);
    adapter
        .panels(module.b(), |rows, part| {
            assert!(rows.start == next && part == &factors.b[rows.clone()] && rows.len() <= 2 << 20);
            (panels, next) = (panels + 1, rows.end);
            Ok(())
        })
        .unwrap();
    assert_eq!((panels, next), (2, 3_000_000));
}

#[test]
fn ranks_are_the_tensors_and_scales_the_configs() {
    let home = tempdir().unwrap();
    let mut tensors = lora(Q, [8, 6], 4, 1);
    tensors.extend(lora("model.layers.0.mlp.up_proj", [8, 6], 2, 3));
    tensors.extend(lora("model.layers.0.mlp.down_proj", [8, 6], 3, 5));
    let mut settings = config(&["q_proj", "up_proj", "down_proj"]);
    settings["rank_pattern"] = json!({"up_proj": 2});
    settings["alpha_pattern"] = json!({"mlp.up_proj": 3.0});
    let adapter = open(&write_adapter(home.path(), &tensors, &settings)).unwrap();
    let scales: Vec<_> = adapter.modules().map(|m| (m.rank(), m.alpha(), m.scale())).collect();
    assert_eq!(scales, [(3, 8.0, 8.0 / 3.0), (2, 3.0, 1.5), (4, 8.0, 2.0)]);
    let [problem] = adapter.problems() else { panic!("{:?}", adapter.problems()) };
    assert_eq!(problem.fault, Fault::OtherRank { config: 4, stored: 3 });
    settings["use_rslora"] = json!(true);
    let adapter = open(&write_adapter(home.path(), &tensors, &settings)).unwrap();
    assert_eq!(adapter.module(Q).unwrap().scale(), 4.0);
}

#[test]
fn names_of_other_makes_are_understood() {
    let home = tempdir().unwrap();
    let [a, b] = lora(Q, [8, 6], 4, 1).try_into().unwrap();
    let tensors = [renamed(a, "lora_A", "lora_A.default"), renamed(b, "base_model.model.", "")];
    let adapter = open(&write_adapter(home.path(), &tensors, &config(&["q_proj"]))).unwrap();
    assert_eq!(adapter.module(Q).unwrap().shape(), [8, 6]);
    let said: Vec<String> = adapter.problems().iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        [
            format!("base_model.model.{Q}.lora_A.default.weight still contains the adapter's name 'default'"),
            format!("{Q}.lora_B.weight lacks the prefix 'base_model.model.'"),
        ]
    );
}

#[test]
fn what_is_no_factor_is_told_apart() {
    let home = tempdir().unwrap();
    let mut tensors = lora(Q, [8, 6], 4, 1);
    let kinds = [
        ("model.layers.0.input_layernorm.weight", &[6][..], ExtraKind::Norm),
        ("model.layers.0.self_attn.q_proj.bias", &[8], ExtraKind::Bias),
        ("lm_head.weight", &[10, 6], ExtraKind::FullWeight),
        ("lm_head.modules_to_save.default.weight", &[10, 6], ExtraKind::FullWeight),
        ("model.embed_tokens.base_layer.weight", &[10, 6], ExtraKind::BaseCopy),
        ("model.layers.0.self_attn.q_proj.lora_B.bias", &[8], ExtraKind::LoraBias),
        ("model.layers.0.self_attn.q_proj.lora_magnitude_vector", &[8], ExtraKind::Magnitude),
        ("model.layers.0.self_attn.q_proj.lora_diag", &[4], ExtraKind::Unknown),
    ];
    for (name, shape, _) in kinds {
        tensors.push(bf16(&format!("base_model.model.{name}"), shape));
    }
    let mut settings = config(&["q_proj"]);
    settings["modules_to_save"] = json!(["lm_head"]);
    let adapter = open(&write_adapter(home.path(), &tensors, &settings)).unwrap();
    assert_eq!((adapter.modules().len(), adapter.extras().len()), (1, kinds.len()));
    for (name, _, kind) in kinds {
        let found =
            adapter.extras().iter().find(|e| e.tensor.name() == format!("base_model.model.{name}")).unwrap();
        assert_eq!(found.kind, kind, "{name}");
    }
    let head = adapter.extras().iter().find(|e| e.tensor.name().contains("modules_to_save")).unwrap();
    assert_eq!(head.target, "lm_head.weight");
    let mut values = [0.0; 12];
    adapter.read(&head.tensor, 1..3, &mut values).unwrap();
    assert_eq!(adapter.config().modules_to_save(), ["lm_head"]);
}

#[test]
fn what_is_wrong_is_told_and_the_rest_is_read() {
    let home = tempdir().unwrap();
    let mut tensors = lora("a.whole", [8, 6], 4, 1);
    tensors.push(lora("a.lone_a", [8, 6], 4, 3).remove(0));
    tensors.push(lora("a.lone_b", [8, 6], 4, 5).remove(1));
    let [mut a, b] = lora("a.misfit", [8, 6], 4, 7).try_into().unwrap();
    a.shape = vec![3, 8];
    tensors.extend([a, b]);
    let [mut a, b] = lora("a.conv", [8, 6], 4, 7).try_into().unwrap();
    a.shape = vec![4, 6, 1, 1];
    tensors.extend([a, b]);
    let [mut a, b] = lora("a.codes", [8, 6], 4, 7).try_into().unwrap();
    a.dtype = safetensors::Dtype::I16;
    tensors.extend([a, b]);
    tensors.extend(lora("a.zero", [8, 6], 0, 9));
    let adapter = open(&write_adapter(home.path(), &tensors, &config(&["whole"]))).unwrap();
    let names: Vec<&str> = adapter.modules().map(|m| m.name()).collect();
    assert_eq!(names, ["a.whole", "a.zero"]);
    let zero = adapter.module("a.zero").unwrap();
    assert_eq!((zero.rank(), zero.scale(), zero.shape()), (0, 0.0, [8, 6]));
    assert_eq!(adapter.factors(zero).unwrap().a.len(), 0);
    let said: Vec<String> = adapter.problems().iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(said.join("\n"), @"
    a.codes has factors of I16, which does not hold plain numbers
    a.conv has a lora_A [4, 6, 1, 1] and a lora_B [8, 4], which are not a pair of factors
    a.lone_a has a lora_A without its lora_B
    a.lone_b has a lora_B without its lora_A
    a.misfit has a lora_A [3, 8] and a lora_B [8, 4], which are not a pair of factors
    a.zero has rank 0
    ");
}

#[test]
fn fused_experts_are_one_module_of_many() {
    let home = tempdir().unwrap();
    let experts = "model.layers.0.mlp.experts";
    let mut tensors = lora(experts, [8, 6], 12, 1);
    tensors.extend(lora(&format!("{experts}.base_layer"), [10, 6], 6, 3));
    let mut settings = config(&[]);
    settings["rank_pattern"] = json!({"gate_up_proj": 2});
    let adapter = open(&write_adapter(home.path(), &tensors, &settings)).unwrap();
    let found: Vec<_> = adapter.modules().map(|m| (m.rank(), m.experts(), m.scale())).collect();
    assert_eq!(found, [(4, 3, 2.0), (2, 3, 4.0)]);
    assert_eq!(adapter.problems(), []);
}

#[test]
fn what_is_no_adapter_that_can_be_read_is_refused_by_name() {
    let home = tempdir().unwrap();
    let folder = home.path().join("adapter");
    let whole = lora(Q, [8, 6], 4, 1);
    let fails = |words: &str| {
        let error = open(&folder).unwrap_err();
        assert_eq!(error.kind(), Kind::Input, "{error}");
        assert!(error.to_string().contains(words), "{error}");
        assert!(error.cure().is_some(), "{error}");
    };
    fs::create_dir(&folder).unwrap();
    fails("this is not an adapter");
    fs::write(folder.join("adapter_config.json"), config(&["q_proj"]).to_string()).unwrap();
    fails("has a config but no weights");
    fs::write(folder.join("adapter_model.bin"), "").unwrap();
    fails("pickle format");
    fs::write(folder.join("adapter_model-00001-of-00002.safetensors"), "").unwrap();
    fails("in several files");
    write_adapter(&folder, &whole, &config(&["q_proj"]));
    assert!(open(&folder).is_ok() && open(&folder.join("adapter_model.safetensors")).is_ok());
    let bytes = fs::read(folder.join("adapter_model.safetensors")).unwrap();
    fs::write(folder.join("adapter_model.safetensors"), &bytes[..bytes.len() - 3]).unwrap();
    fails("but the file holds only");
    let twice = [whole[0].clone(), renamed(whole[0].clone(), "lora_A", "lora_A.other"), whole[1].clone()];
    write_adapter(&folder, &twice, &config(&["q_proj"]));
    fails("are the same factor of one module");
    fs::write(folder.join("adapter_config.json"), r#"{"peft_type": "IA3"}"#).unwrap();
    fails("of peft_type IA3, not LORA");
    fs::remove_file(folder.join("adapter_config.json")).unwrap();
    fails("has no config");
}
