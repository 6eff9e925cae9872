//! Adapters that cannot be sanitized: the command's exit code and message, and no output that looks complete.

use std::fs;
use std::path::Path;

use crate::common::adapter::{config, lora, write_adapter};
use crate::common::pair::Tensor;
use crate::common::{contents, run, trephine};
use serde_json::{Value, json};
use tempfile::tempdir;

const O: &str = "model.layers.0.self_attn.o_proj";

/// Damages a good adapter, sanitizes it, and checks exit code and message against their snapshot.
fn fails(name: &str, spoil: impl FnOnce(&mut Value, &mut Vec<Tensor>), more: &[&str]) {
    fails_with(name, spoil, |_| {}, more);
}

fn fails_with(
    name: &str,
    spoil: impl FnOnce(&mut Value, &mut Vec<Tensor>),
    then: impl FnOnce(&Path),
    more: &[&str],
) {
    let home = tempdir().unwrap();
    let (mut settings, mut tensors) = (config(&["o_proj"]), lora(O, [8, 6], 4, 1));
    spoil(&mut settings, &mut tensors);
    let (adapter, out) = (home.path().join("adapter"), home.path().join("out"));
    write_adapter(&adapter, &tensors, &settings);
    then(&adapter);
    let ended =
        run(trephine().arg("sanitize").arg(&adapter).arg("--out").arg(&out).arg("--quiet").args(more));
    assert!(ended.stdout.is_empty(), "{}", ended.stdout);
    let said = ended.stderr.replace(home.path().to_str().unwrap(), "[home]");
    insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => true }, {
        insta::assert_snapshot!(name, format!("exit {}\n{said}", ended.code.unwrap()));
    });
    let left = if out.exists() { contents(&out) } else { Default::default() };
    assert!(left.keys().all(|name| name.starts_with(".trephine/")), "{name} left {:?}", left.keys());
}

#[test]
fn files_that_are_damaged() {
    let weights = |folder: &Path| folder.join("adapter_model.safetensors");
    let cut = |folder: &Path| {
        let bytes = fs::read(weights(folder)).unwrap();
        fs::write(weights(folder), &bytes[..bytes.len() - 7]).unwrap();
    };
    fails_with("truncated_weights", |_, _| {}, cut, &[]);
    fails_with("no_weights", |_, _| {}, |folder| fs::remove_file(weights(folder)).unwrap(), &[]);
    fails_with(
        "pickled_weights",
        |_, _| {},
        |folder| {
            fs::rename(weights(folder), folder.join("adapter_model.bin")).unwrap();
        },
        &[],
    );
    fails_with(
        "several_files",
        |_, _| {},
        |folder| {
            fs::rename(weights(folder), folder.join("adapter_model-00001-of-00002.safetensors")).unwrap();
        },
        &[],
    );
    fails_with(
        "no_config",
        |_, _| {},
        |folder| fs::remove_file(folder.join("adapter_config.json")).unwrap(),
        &[],
    );
    fails_with(
        "config_no_json",
        |_, _| {},
        |folder| fs::write(folder.join("adapter_config.json"), "{").unwrap(),
        &[],
    );
}

#[test]
fn adapters_that_are_no_plain_lora() {
    fails("peft_type", |settings, _| settings["peft_type"] = json!("LOHA"), &[]);
    fails("dora", |settings, _| settings["use_dora"] = json!(true), &["--for", "peft"]);
    fails(
        "magnitudes",
        |_, tensors| {
            tensors.push(Tensor::f32(
                &format!("base_model.model.{O}.lora_magnitude_vector"),
                &[8],
                &[1.0; 8],
            ));
        },
        &[],
    );
    fails("pissa", |settings, _| settings["init_lora_weights"] = json!("pissa"), &[]);
    fails("alora", |settings, _| settings["alora_invocation_tokens"] = json!([1, 2]), &["--for", "peft"]);
    fails("no_lora", |_, tensors| tensors.clear(), &[]);
    fails("only_rank_0", |_, tensors| *tensors = lora(O, [8, 6], 0, 1), &[]);
}

#[test]
fn factors_that_are_no_factors() {
    fails("misfit", |_, tensors| tensors[0].shape = vec![3, 8], &[]);
    fails("codes", |_, tensors| tensors[1].dtype = safetensors::Dtype::I16, &[]);
    fails("not_a_number", |_, tensors| tensors[1].bytes[..2].copy_from_slice(&[0xc0, 0x7f]), &[]);
    fails(
        "infinity",
        |_, tensors| tensors[0].bytes[..2].copy_from_slice(&[0x80, 0x7f]),
        &["--max-rank", "2"],
    );
    fails(
        "two_adapters",
        |_, tensors| {
            let mut other = tensors[0].clone();
            other.name = other.name.replace("lora_A", "lora_A.other");
            tensors.push(other);
        },
        &[],
    );
}

#[test]
fn what_the_user_must_decide() {
    fails("max_rank_0", |_, _| {}, &["--max-rank", "0"]);
    fails("too_little_memory", |_, _| {}, &["--memory", "1MiB"]);
    fails("too_large_for_f16", |settings, _| settings["lora_alpha"] = json!(1e12), &["--dtype", "f16"]);
    fails(
        "rank_above_vllms",
        |settings, tensors| {
            settings["r"] = json!(600);
            *tensors = lora(O, [8, 6], 600, 1);
        },
        &["--for", "vllm"],
    );
    fails(
        "shape_unknown",
        |settings, tensors| {
            settings["target_modules"] = json!(["k_proj", "v_proj"]);
            *tensors = lora("model.layers.0.self_attn.k_proj", [8, 6], 4, 1);
            tensors.extend(lora("model.layers.0.self_attn.v_proj", [8, 6], 4, 3));
        },
        &["--for", "sglang"],
    );
}
