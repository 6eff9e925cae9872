//! Adapters on disk, read with the safetensors crate and multiplied in f64: portable, and as good as their records say.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::measure::{Weights, check, check_rules, delta};
use crate::common::pair::{Tensor, changed, config, dense, noise, read_file, write, write_file};
use crate::common::{copied, copy, data, extract_with, manifest, run, trephine};
use serde_json::json;
use tempfile::tempdir;
use trephine::commands::extract::output::Spectrum;

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// Extracts from the repository's pair and checks everything.
fn extracted(home: &Path, base: &str, more: &[&str]) -> PathBuf {
    let out = home.join("out");
    extract_with(&data(base), &data("tuned"), &out, more).code(0);
    check(&out, &Weights::open(&data(base)), &Weights::open(&data("tuned")));
    out
}

#[test]
fn the_default_selection_is_portable_and_as_good_as_it_says() {
    for base in ["base", "base-fp8"] {
        for more in [
            &["--rank", "16"][..],
            &["--rank", "4", "--method", "gram"],
            &["--rank", "4", "--method", "krylov"],
        ] {
            let home = tempdir().unwrap();
            let out = extracted(home.path(), base, more);
            assert_eq!(manifest(&out)["modules"].as_array().unwrap().len(), 21);
        }
    }
}

#[test]
fn every_dtype_is_as_good_as_it_says() {
    for (dtype, name) in [("f32", "F32"), ("f16", "F16"), ("bf16", "BF16")] {
        let home = tempdir().unwrap();
        let out = extracted(home.path(), "base-fp8", &["--rank", "8", "--dtype", dtype]);
        let tensors = read_file(&out.join("adapter_model.safetensors"));
        assert!(tensors.iter().all(|t| t.dtype.to_string() == name), "{dtype}");
    }
}

/// PEFT's wrapper for a task calls a method that only generating models have. Checked with PEFT 0.21.2, which raises
/// AttributeError for the first three kinds with any task, and loads all of them with the task given here.
#[test]
fn the_task_type_is_one_that_the_model_has() {
    for (classes, encodes, task_type) in [
        (json!(["Qwen3Model"]), false, json!(null)),
        (json!(["Qwen3ForSequenceClassification"]), false, json!(null)),
        (json!(["BertForMaskedLM"]), false, json!(null)),
        (json!(["T5ForConditionalGeneration"]), true, json!("SEQ_2_SEQ_LM")),
        (json!(["LlavaForConditionalGeneration"]), false, json!("CAUSAL_LM")),
        (json!(["GPT2LMHeadModel"]), false, json!("CAUSAL_LM")),
        (json!(null), false, json!("CAUSAL_LM")),
    ] {
        let home = tempdir().unwrap();
        let [base, tuned] = ["base", "tuned"].map(|name| {
            let copy = copied(name, home.path());
            let path = copy.join("config.json");
            let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            config["architectures"] = classes.clone();
            config["is_encoder_decoder"] = json!(encodes);
            fs::write(&path, config.to_string()).unwrap();
            text(&copy)
        });
        let out = home.path().join("out");
        extract_with(&base, &tuned, &out, &["--rank", "2", "--include", "*.0.*.o_proj"]).code(0);
        let path = out.join("adapter_config.json");
        let config: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        assert_eq!(config["task_type"], task_type, "{classes}");
    }
}

#[test]
fn fused_siblings_come_as_zeros() {
    for (module, siblings) in [
        ("layers.1.self_attn.k_proj", &["q_proj", "v_proj"][..]),
        ("layers.0.mlp.up_proj", &["gate_proj"]),
        ("layers.2.mlp.down_proj", &[]),
    ] {
        let home = tempdir().unwrap();
        let out = extracted(home.path(), "base", &["--rank", "4", "--include", module]);
        let factors = dense(&out.join("adapter_model.safetensors"));
        assert_eq!(factors.len(), 2 * (1 + siblings.len()));
        for (name, (_, values)) in &factors {
            let zero = siblings.iter().any(|sibling| name.contains(sibling));
            assert_eq!(values.iter().all(|v| *v == 0.0), zero, "{name}");
        }
    }
}

#[test]
fn heads_and_embeddings_come_when_asked() {
    let home = tempdir().unwrap();
    let more = ["--include", "linear", "--include", "lm_head", "--include", "embed_tokens", "--rank", "12"];
    let out = extracted(home.path(), "base", &more);
    let modules = manifest(&out)["modules"].as_array().unwrap().len();
    assert_eq!(modules, 23);
    let names: Vec<String> = dense(&out.join("adapter_model.safetensors")).into_keys().collect();
    assert!(names.contains(&"base_model.model.model.embed_tokens.lora_embedding_A".to_owned()));
    assert!(names.contains(&"base_model.model.lm_head.lora_A.weight".to_owned()));
}

#[test]
fn an_energy_gives_each_module_the_least_rank() {
    let home = tempdir().unwrap();
    let out = extracted(home.path(), "base", &["--energy", "0.9", "--rank", "160", "--dtype", "f32"]);
    let manifest = manifest(&out);
    let packed = fs::read(out.join("spectra.jsonl.zst")).unwrap();
    let lines = String::from_utf8(zstd::decode_all(&packed[..]).unwrap()).unwrap();
    let spectra: Vec<Spectrum> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let modules = manifest["modules"].as_array().unwrap();
    assert_eq!(spectra.len(), modules.len());
    let mut most = 0;
    for (module, spectrum) in modules.iter().zip(&spectra) {
        assert_eq!(module["name"], spectrum.module.as_str());
        let rank = module["rank"].as_u64().unwrap() as usize;
        let due = 0.9 * spectrum.delta_norm.powi(2);
        let captured = |rank: usize| spectrum.singular_values[..rank].iter().map(|s| s * s).sum::<f64>();
        assert!(captured(rank) >= due && captured(rank - 1) < due, "{}: {rank}", spectrum.module);
        assert!(module["captured_energy"].as_f64().unwrap() > 0.9 - 1e-6);
        most = most.max(rank);
    }
    assert_eq!(manifest["rank"], most);
    assert!(modules.iter().any(|module| module["rank"] != most), "all ranks are alike: nothing is padded");
}

#[test]
fn a_rank_above_the_widest_module_is_lowered_and_exact() {
    let home = tempdir().unwrap();
    for (dtype, floor) in [("f32", 1e-5), ("bf16", 1.0 / 256.0)] {
        let out = extracted(home.path(), "base", &["--rank", "500", "--dtype", dtype, "--overwrite"]);
        let notes = &manifest(&out)["notes"];
        let note = "no module has more than 160 singular values: the adapter has rank 160, not 500";
        assert!(notes.as_array().unwrap().iter().any(|said| said == note), "{notes}");
        assert_eq!(manifest(&out)["rank"], 160);
        let config: serde_json::Value =
            serde_json::from_slice(&std::fs::read(out.join("adapter_config.json")).unwrap()).unwrap();
        assert_eq!((&config["r"], &config["lora_alpha"]), (&160.into(), &160.into()));
        for module in manifest(&out)["modules"].as_array().unwrap() {
            let narrow = module["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).min();
            assert!(module["rank"].as_u64() <= narrow, "{module}");
            assert!(module["relative_error"].as_f64().unwrap() <= floor, "{module}");
        }
    }
}

#[test]
fn the_recorded_error_on_the_served_checkpoint_is_true() {
    let home = tempdir().unwrap();
    let out = home.path().join("out");
    let more = ["--rank", "16", "--served", &data("base-fp8")];
    extract_with(&data("base"), &data("tuned"), &out, &more).code(0);
    let [served, tuned] = ["base-fp8", "tuned"].map(|name| Weights::open(&data(name)));
    let manifest = manifest(&out);
    let (mut with2, mut without2) = (0.0, 0.0);
    let near = |recorded: &serde_json::Value, found: f64| {
        let recorded = recorded.as_f64().unwrap();
        assert!((recorded - found).abs() <= 1e-5 * found, "{recorded} is recorded, {found} found");
    };
    for module in manifest["modules"].as_array().unwrap() {
        let found = delta(&out, module, &served, &tuned);
        near(&module["served"]["without_adapter"], found.norm2.sqrt());
        near(&module["served"]["with_adapter"], found.error2.sqrt());
        (with2, without2) = (with2 + found.error2, without2 + found.norm2);
    }
    near(&manifest["total"]["served"]["with_adapter"], with2.sqrt());
    near(&manifest["total"]["served"]["without_adapter"], without2.sqrt());
    assert!(with2 < without2);
}

#[test]
fn unchanged_modules_get_zeros_and_no_error() {
    const CHANGED: &str = "model.layers.1.self_attn.q_proj";
    let home = tempdir().unwrap();
    let folder = copied("base", home.path());
    let path = folder.join("model.safetensors");
    let mut tensors = read_file(&path);
    let other = read_file(Path::new(&format!("{}/model.safetensors", data("tuned"))));
    let name = format!("{CHANGED}.weight");
    let change = other.into_iter().find(|tensor| tensor.name == name).unwrap();
    *tensors.iter_mut().find(|tensor| tensor.name == name).unwrap() = change;
    write_file(&path, &tensors);
    let tuned = folder.to_str().unwrap();
    for more in [&["--rank", "8"][..], &["--rank", "8", "--energy", "0.9"]] {
        let out = home.path().join(more.len().to_string());
        extract_with(&data("base"), tuned, &out, more).code(0);
        let manifest = manifest(&out);
        let modules = manifest["modules"].as_array().unwrap();
        let unchanged: Vec<_> = modules.iter().filter(|module| module["name"] != CHANGED).collect();
        assert_eq!(unchanged.len(), 20);
        assert!(unchanged.iter().all(|m| m["relative_error"] == 0.0 && m["rank"] == 0));
        let factors = dense(&out.join("adapter_model.safetensors"));
        let zeros = |values: &[f64]| values.iter().all(|value| *value == 0.0);
        for (name, (shape, values)) in &factors {
            assert_eq!(zeros(values), !name.contains(CHANGED), "{name}");
            assert_eq!(
                shape[usize::from(name.contains("lora_B"))],
                manifest["rank"].as_u64().unwrap() as usize
            );
        }
        check_rules(&out);
        run(trephine().arg("verify").arg(&out).args(["--base", &data("base"), "--tuned", tuned])).code(0);
    }
}

#[test]
fn a_tied_head_is_the_embedding() {
    let home = tempdir().unwrap();
    let tied = json!({"model_type": "qwen3", "tie_word_embeddings": true});
    let table = noise(1, 60 * 32);
    let tuned_table = changed(&table, [60, 32], 2, 0.1, 5);
    let linear = |seed| Tensor::bf16("model.layers.0.self_attn.o_proj.weight", &[32, 32], &noise(seed, 1024));
    let embedding = |values: &[f32]| Tensor::bf16("model.embed_tokens.weight", &[60, 32], values);
    let base = write(&home.path().join("base"), &[embedding(&table), linear(2)], &tied);
    let tuned = write(&home.path().join("tuned"), &[embedding(&tuned_table), linear(3)], &tied);
    let untied =
        [embedding(&tuned_table), linear(3), Tensor::bf16("lm_head.weight", &[60, 32], &noise(9, 1920))];
    let untied = write(&home.path().join("untied"), &untied, &config());
    for (at, tuned) in [&tuned, &untied].into_iter().enumerate() {
        let out = home.path().join(at.to_string());
        let more =
            ["--rank", "4", "--include", "linear", "--include", "lm_head", "--include", "embed_tokens"];
        extract_with(&text(&base), &text(tuned), &out, &more).code(0);
        assert_eq!(manifest(&out)["modules"].as_array().unwrap().len(), 3);
        check(&out, &Weights::open(&text(&base)), &Weights::open(&text(tuned)));
    }
}

#[test]
fn a_pattern_that_matches_nothing_is_told() {
    let home = tempdir().unwrap();
    let mut command = trephine();
    command.args(["extract", "--rank", "4", "--base", &data("base"), "--tuned", &data("tuned"), "--out"]);
    command.arg(home.path().join("out")).args(["--include", "linear", "--include", "lm_haed"]);
    let ended = run(&mut command).code(0).says("note: --include lm_haed matches no module of the base");
    assert!(!ended.stderr.contains("--include linear"), "{}", ended.stderr);
}

#[test]
fn names_that_differ_by_a_prefix_are_paired() {
    let home = tempdir().unwrap();
    let tuned = copied("tuned", home.path());
    let path = tuned.join("model.safetensors");
    let mut tensors = read_file(&path);
    for tensor in &mut tensors {
        tensor.name = tensor.name.replacen("model.", "model.language_model.", 1);
    }
    write_file(&path, &tensors);
    let out = home.path().join("out");
    let mut command = trephine();
    command
        .args(["extract", "--rank", "4", "--base", &data("base"), "--tuned"])
        .arg(&tuned)
        .arg("--out")
        .arg(&out);
    let words = "names are paired by prefix: 'model.' in the base is 'model.language_model.' in the tuned";
    run(&mut command).code(0).says("note: ").says(words);
    let plain = home.path().join("plain");
    extract_with(&data("base"), &data("tuned"), &plain, &["--rank", "4"]).code(0);
    let weights = [&out, &plain].map(|out| fs::read(out.join("adapter_model.safetensors")).unwrap());
    assert!(weights[0] == weights[1], "the adapter bears the base's names");
    assert_eq!(manifest(&out)["not_represented"], manifest(&plain)["not_represented"]);
}

/// The base as one file, and cut into two with an index.
fn layouts(home: &Path) -> [String; 2] {
    let folder = home.join("sharded");
    copy(Path::new(&data("base")), &folder);
    let whole = folder.join("model.safetensors");
    let tensors = read_file(&whole);
    fs::remove_file(whole).unwrap();
    let (first, second) = tensors.split_at(tensors.len() / 2);
    let mut map = serde_json::Map::new();
    for (at, part) in [first, second].into_iter().enumerate() {
        let name = format!("model-0000{}-of-00002.safetensors", at + 1);
        write_file(&folder.join(&name), part);
        map.extend(part.iter().map(|t| (t.name.clone(), json!(name))));
    }
    fs::write(folder.join("model.safetensors.index.json"), json!({ "weight_map": map }).to_string()).unwrap();
    [format!("{}/model.safetensors", data("base")), text(&folder)]
}

#[test]
fn every_layout_of_a_checkpoint_gives_the_same_weights() {
    let home = tempdir().unwrap();
    let out = |name: &str| home.path().join(name);
    extract_with(&data("base"), &data("tuned"), &out("plain"), &["--rank", "4"]).code(0);
    let weights = |name: &str| fs::read(out(name).join("adapter_model.safetensors")).unwrap();
    let [file, sharded] = layouts(home.path());
    for (name, base) in [("file", file), ("in-two", sharded.clone())] {
        extract_with(&base, &data("tuned"), &out(name), &["--rank", "4"]).code(0);
        assert!(weights(name) == weights("plain"), "{name}");
    }
    // The Hugging Face cache: files are links to blobs.
    let hub = home.path().join("cache/hub/models--some--Model-1.0");
    let snapshot = hub.join("snapshots/0123abcd");
    for folder in [&hub.join("refs"), &hub.join("blobs"), &snapshot] {
        fs::create_dir_all(folder).unwrap();
    }
    fs::write(hub.join("refs/main"), "0123abcd").unwrap();
    for (at, entry) in fs::read_dir(&sharded).unwrap().map(Result::unwrap).enumerate() {
        fs::copy(entry.path(), hub.join("blobs").join(at.to_string())).unwrap();
        std::os::unix::fs::symlink(format!("../../blobs/{at}"), snapshot.join(entry.file_name())).unwrap();
    }
    let mut command = crate::common::extract("some/Model-1.0", &data("tuned"), &out("cached"));
    run(command.args(["--rank", "4"]).env("HF_HOME", home.path().join("cache"))).code(0);
    assert!(weights("cached") == weights("plain"), "cached");
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(out("cached").join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!(config["base_model_name_or_path"], "some/Model-1.0");
    let card = fs::read_to_string(out("cached").join("README.md")).unwrap();
    assert!(card.contains("\nbase_model: some/Model-1.0\n"), "{card}");
}

#[test]
fn odd_shapes_and_names() {
    let home = tempdir().unwrap();
    let shapes = [
        ("model.layers.0.self_attn.o_proj", [1, 40]),
        ("model.layers.1.self_attn.o_proj", [40, 1]),
        ("model.layers.2.self_attn.o_proj", [1, 1]),
        ("model.layers.3.größe.层", [17, 33]),
        ("weiß\u{301} 'quoted\" \\ name.o_proj", [33, 17]),
        ("model.layers.4.self_attn.o_proj", [0, 16]),
        ("model.layers.5.self_attn.o_proj", [16, 0]),
    ];
    let (base, tuned) = crate::common::pair::pair(home.path(), &shapes);
    let out = home.path().join("out");
    extract_with(&base, &tuned, &out, &["--rank", "3", "--dtype", "f32"]).code(0);
    check(&out, &Weights::open(&base), &Weights::open(&tuned));
    let manifest = manifest(&out);
    // Without elements there is no delta: such a weight is left out, which loses nothing.
    assert_eq!(manifest["modules"].as_array().unwrap().len(), 5);
    let narrow = |m: &&serde_json::Value| m["shape"].as_array().unwrap().contains(&json!(1));
    let exact: Vec<_> = manifest["modules"].as_array().unwrap().iter().filter(narrow).collect();
    assert!(
        exact.len() == 3 && exact.iter().all(|m| m["relative_error"].as_f64().unwrap() < 1e-5),
        "{exact:?}"
    );
    let empty = manifest["not_represented"].as_array().unwrap().iter().filter(|l| l["elements"] == 0);
    assert_eq!(empty.filter(|l| l["relative_change"] == 0.0).count(), 2);
    run(trephine().arg("verify").arg(&out).args(["--base", &base, "--tuned", &tuned])).code(0);
}
