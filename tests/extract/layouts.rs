//! One model in the layouts that it is stored in, adapters under the names that different programs give them, heads
//! of other names, and what PEFT refuses.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::common::adapter::{config, lora, write_adapter};
use crate::common::pair::{Tensor, noise, read_file, write};
use crate::common::{Ended, extract_with, run, trephine};
use serde_json::{Value, json};
use tempfile::tempdir;

const PUBLISHED: [&str; 3] = [
    "language_model.model.layers.0.mlp.up_proj",
    "vision_tower.encoder.layers.0.mlp.fc1",
    "multi_modal_projector.linear_1",
];
const IN_MEMORY: [&str; 3] = [
    "model.language_model.layers.0.mlp.up_proj",
    "model.vision_tower.encoder.layers.0.mlp.fc1",
    "model.multi_modal_projector.linear_1",
];

fn checkpoint(folder: &Path, names: &[&str], seed: u64, config: &Value) -> String {
    let weight = |(at, name): (usize, &&str)| {
        Tensor::bf16(&format!("{name}.weight"), &[12, 8], &noise(seed + at as u64, 96))
    };
    let tensors: Vec<Tensor> = names.iter().enumerate().map(weight).collect();
    write(folder, &tensors, config).to_str().unwrap().to_owned()
}

fn llava() -> Value {
    json!({"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava",
        "text_config": {"model_type": "llama"}, "tie_word_embeddings": false})
}

fn modules(adapter: &Path) -> BTreeSet<String> {
    let names = read_file(&adapter.join("adapter_model.safetensors")).into_iter().map(|tensor| tensor.name);
    names
        .filter_map(|name| Some(name.strip_prefix("base_model.model.")?.split(".lora_").next()?.to_owned()))
        .collect()
}

#[test]
fn every_layout_of_a_model_gives_the_names_of_the_model() {
    for (base_names, tuned_names) in
        [(PUBLISHED, PUBLISHED), (IN_MEMORY, IN_MEMORY), (PUBLISHED, IN_MEMORY), (IN_MEMORY, PUBLISHED)]
    {
        let home = tempdir().unwrap();
        let base = checkpoint(&home.path().join("base"), &base_names, 1, &llava());
        let tuned = checkpoint(&home.path().join("tuned"), &tuned_names, 100, &llava());
        let out = home.path().join("adapter");
        extract_with(&base, &tuned, &out, &["--rank", "8"]).code(0);
        assert_eq!(
            modules(&out),
            IN_MEMORY.iter().map(|name| (*name).to_owned()).collect(),
            "{base_names:?}"
        );
        let adapter = out.to_str().unwrap();
        run(trephine().args(["verify", "--quiet", adapter, "--base", &base, "--tuned", &tuned])).code(0);
        let merged = home.path().join("merged");
        let merged_path = merged.to_str().unwrap();
        run(trephine().args([
            "merge",
            "--quiet",
            "--base",
            &base,
            "--adapter",
            adapter,
            "--out",
            merged_path,
        ]))
        .code(0);
        let names: Vec<String> =
            read_file(&merged.join("model.safetensors")).into_iter().map(|tensor| tensor.name).collect();
        let mut same: Vec<String> = base_names.iter().map(|name| format!("{name}.weight")).collect();
        same.sort();
        assert_eq!(names, same);
    }
}

fn merge(base: &str, adapter: &Path, out: &Path) -> Ended {
    run(trephine()
        .args(["merge", "--quiet", "--overwrite", "--base", base, "--adapter"])
        .arg(adapter)
        .arg("--out")
        .arg(out))
}

#[test]
fn an_adapter_under_another_prefix_is_found_and_one_of_another_model_is_an_error() {
    let home = tempdir().unwrap();
    let plain =
        json!({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "tie_word_embeddings": false});
    let base = checkpoint(
        &home.path().join("base"),
        &["model.layers.0.mlp.up_proj", "model.layers.0.mlp.gate_proj"],
        1,
        &plain,
    );
    let from = fs::read(Path::new(&base).join("model.safetensors")).unwrap();
    for prefix in ["model.language_model.", "language_model.model.", "model."] {
        let factors = lora(&format!("{prefix}layers.0.mlp.up_proj"), [12, 8], 4, 7);
        let adapter = write_adapter(&home.path().join("adapter"), &factors, &config(&["up_proj"]));
        let out = home.path().join("merged");
        merge(&base, &adapter, &out).code(0);
        assert_ne!(fs::read(out.join("model.safetensors")).unwrap(), from, "{prefix}");
        let probed = run(trephine().arg("probe").arg(&adapter).args(["--base", &base, "--json"]));
        let probed: Value = serde_json::from_str(&probed.stdout).unwrap();
        let unmatched = probed["matches"][0]["unmatched"].as_array().unwrap().len();
        assert_eq!(
            unmatched,
            usize::from(prefix != "model."),
            "PEFT finds it under the model's name alone: {prefix}"
        );
        // `sanitize` gives it the name of the model.
        let clean = home.path().join("clean");
        let command = ["sanitize", "--quiet", "--overwrite", "--base", &base];
        run(trephine().args(command).arg(&adapter).arg("--out").arg(&clean)).code(0);
        let up = "model.layers.0.mlp.up_proj".to_owned();
        assert!(modules(&clean).contains(&up), "{:?}", modules(&clean));
    }
    let adapter = write_adapter(
        &home.path().join("other"),
        &lora("model.blocks.0.fc1", [12, 8], 4, 7),
        &config(&["fc1"]),
    );
    merge(&base, &adapter, &home.path().join("none")).code(3).says("0 of 1 modules match the base");
    let probed = run(trephine().arg("probe").arg(&adapter).args(["--base", &base])).code(4);
    assert!(probed.stdout.contains("0 of 1 modules match the base"), "{}", probed.stdout);
}

#[test]
fn a_tied_head_of_another_name_is_no_lm_head() {
    let home = tempdir().unwrap();
    let whisper = json!({"architectures": ["WhisperForConditionalGeneration"], "model_type": "whisper",
        "is_encoder_decoder": true, "tie_word_embeddings": true});
    let names = ["model.decoder.embed_tokens", "model.decoder.layers.0.self_attn.q_proj"];
    let [base, tuned] =
        [1, 100].map(|seed| checkpoint(&home.path().join(seed.to_string()), &names, seed, &whisper));
    let out = home.path().join("adapter");
    extract_with(&base, &tuned, &out, &["--rank", "2", "--include", "linear", "--include", "lm_head"])
        .code(0);
    assert_eq!(modules(&out), [names[1].to_owned()].into());
    let out = home.path().join("with-head");
    extract_with(&base, &tuned, &out, &["--rank", "2", "--include", "linear", "--include", "proj_out"])
        .code(0);
    assert_eq!(modules(&out), [names[1].to_owned(), "proj_out".to_owned()].into());
    let merged = home.path().join("merged");
    merge(&base, &out, &merged).code(0);
    let stored: Vec<String> =
        read_file(&merged.join("model.safetensors")).into_iter().map(|t| t.name).collect();
    assert!(
        stored.contains(&"proj_out.weight".to_owned()) && !stored.contains(&"lm_head.weight".to_owned()),
        "{stored:?}"
    );
}

#[test]
fn what_peft_refuses_in_a_state_space_model_is_left_out() {
    let home = tempdir().unwrap();
    let mamba =
        json!({"architectures": ["MambaForCausalLM"], "model_type": "mamba", "tie_word_embeddings": false});
    let names = ["backbone.layers.0.mixer.in_proj", "backbone.layers.0.mixer.out_proj"];
    let [base, tuned] =
        [1, 100].map(|seed| checkpoint(&home.path().join(seed.to_string()), &names, seed, &mamba));
    let extracted = |out: &str, more: &[&str]| {
        let out = home.path().join(out);
        extract_with(&base, &tuned, &out, &[&["--rank", "2"], more].concat()).code(0);
        modules(&out)
    };
    assert_eq!(extracted("usual", &[]), [names[0].to_owned()].into());
    assert_eq!(extracted("asked", &["--include", "linear", "--include", "out_proj"]).len(), 2);
}
