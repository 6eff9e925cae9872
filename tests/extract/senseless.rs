//! Inputs that are well-formed but make no sense together: swapped, given twice, incomplete.

use std::fs;
use std::path::Path;

use crate::common::pair::{read_file, write_file};
use crate::common::{copied, data, extract_with, manifest, run, trephine};
use tempfile::tempdir;

/// A copy of one of the repository's checkpoints without the tensors whose name contains `part`.
fn without(name: &str, part: &str, home: &Path) -> String {
    let folder = copied(name, home);
    let path = folder.join("model.safetensors");
    let mut tensors = read_file(&path);
    tensors.retain(|tensor| !tensor.name.contains(part));
    write_file(&path, &tensors);
    folder.to_str().unwrap().to_owned()
}

const NO_OPTIONS: [&str; 0] = [];

#[test]
fn a_quantized_tuned_checkpoint_on_a_dense_base_is_a_swap() {
    let home = tempdir().unwrap();
    let out = home.path().join("out");
    let ended = extract_with(&data("tuned"), &data("base-fp8"), &out, &NO_OPTIONS).code(2);
    ended.says("is quantized (block FP8").says("are they swapped?").says("--allow-quantized-tuned continues");
    assert!(!out.exists());
    let allowed = ["--allow-quantized-tuned", "--rank", "4"];
    extract_with(&data("tuned"), &data("base-fp8"), &out, &allowed).code(0);
    let notes = manifest(&out)["notes"].to_string();
    assert!(notes.contains("its quantization error becomes part of the adapter"), "{notes}");
}

#[test]
fn one_checkpoint_twice_has_no_difference() {
    let home = tempdir().unwrap();
    let out = home.path().join("out");
    let same = extract_with(&data("base"), &format!("{}/", data("base")), &out, &NO_OPTIONS).code(2);
    same.says("base and tuned are the same checkpoint");
    let copy = copied("base", home.path());
    let ended = extract_with(&data("base"), copy.to_str().unwrap(), &out, &["--rank", "4"]).code(3);
    ended.says("base and tuned are equal in every selected module").says("are they copies of one model?");
    assert!(!out.join("adapter_model.safetensors").exists());
}

#[test]
fn a_module_without_a_partner_stops_the_run() {
    let home = tempdir().unwrap();
    let out = home.path().join("out");
    let layer = without("tuned", "layers.1.", &home.path().join("a"));
    let ended = extract_with(&data("base"), &layer, &out, &NO_OPTIONS).code(2);
    let ended = ended.says("7 selected modules have no partner: model.layers.1.mlp.down_proj, ");
    ended.says("is only in the base").says("--allow-missing continues");
    extract_with(&data("base"), &layer, &out, &["--allow-missing", "--rank", "4"]).code(0);
    assert_eq!(manifest(&out)["modules"].as_array().unwrap().len(), 14);
    // One module suffices, on either side; one that is left out by name is not missed.
    let one = without("base", "layers.2.mlp.up_proj", &home.path().join("b"));
    let out = home.path().join("one");
    let ended = extract_with(&one, &data("tuned"), &out, &NO_OPTIONS).code(2);
    ended.says("'model.layers.2.mlp.up_proj' is only in the tuned checkpoint");
    extract_with(&one, &data("tuned"), &out, &["--exclude", "*layers.2.mlp.up_proj", "--rank", "4"]).code(0);
}

#[test]
fn analyze_wants_dense_and_quantized_in_their_places() {
    let home = tempdir().unwrap();
    let out = home.path().join("out");
    for ([base, quantized], words) in [
        (["base-fp8", "base"], "--base is quantized (block FP8"),
        (["base", "base"], "--base-quantized is not quantized (dense)"),
    ] {
        let mut command = trephine();
        command.args(["analyze", "--quiet", "--base", &data(base), "--base-quantized", &data(quantized)]);
        command.args(["--tuned", &data("tuned"), "--rank", "4", "--out"]).arg(&out);
        run(&mut command).code(2).says(words).says("are two of them swapped?");
    }
}

#[test]
fn files_that_an_adapter_does_not_carry_are_named_and_copied() {
    let home = tempdir().unwrap();
    let tuned = copied("tuned", home.path());
    fs::write(tuned.join("chat_template.jinja"), "{{ messages }}").unwrap();
    fs::write(tuned.join("generation_config.json"), r#"{"temperature": 0.6, "transformers_version": "9"}"#)
        .unwrap();
    let tuned = tuned.to_str().unwrap();
    let out = home.path().join("out");
    extract_with(&data("base"), tuned, &out, &["--rank", "4"]).code(0);
    let notes = manifest(&out)["notes"].to_string();
    assert!(notes.contains("another chat template, another generation config ("), "{notes}");
    assert!(notes.contains("temperature") && !notes.contains("transformers_version"), "{notes}");
    let with = home.path().join("with");
    extract_with(&data("base"), tuned, &with, &["--rank", "4", "--copy-tokenizer"]).code(0);
    assert_eq!(fs::read(with.join("chat_template.jinja")).unwrap(), b"{{ messages }}");
    assert!(with.join("tokenizer.json").exists() && !with.join("config.json").exists());
    run(trephine().arg("verify").arg(&with)).code(0);
    let again = extract_with(&data("base"), tuned, &with, &["--rank", "4", "--copy-tokenizer"]).code(0);
    assert!(again.stdout.contains("already complete"), "{}", again.stdout);
    // Without them it is another run, and overwriting it leaves none of them behind.
    extract_with(&data("base"), tuned, &with, &["--rank", "4"]).code(2);
    extract_with(&data("base"), tuned, &with, &["--rank", "4", "--overwrite"]).code(0);
    assert!(!with.join("tokenizer.json").exists());
}
