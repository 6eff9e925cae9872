//! Verification: it finds every flipped bit, and every adapter that does not match its checkpoints and manifest.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::common::pair::{Tensor, read_file, write_file};
use crate::common::{Ended, assert_same, contents, copy, data, extract_with, flip, run, running, trephine};
use tempfile::{TempDir, tempdir};
use trephine::commands::extract::{AdapterVerification, Content, verify};
use trephine::durable::checksums;
use trephine::run::Silent;

/// A small adapter, with fused siblings that are zeros.
fn adapter() -> (TempDir, PathBuf) {
    let home = tempdir().unwrap();
    let out = home.path().join("out");
    let more =
        ["--rank", "2", "--include", "*.layers.1.self_attn.q_proj", "--include", "*.layers.1.mlp.down_proj"];
    extract_with(&data("base"), &data("tuned"), &out, &more).code(0);
    (home, out)
}

fn verified(folder: &Path, more: &[&str]) -> Ended {
    run(trephine().args(["verify", "--quiet"]).arg(folder).args(more))
}

fn content() -> Content {
    Content { base: data("base"), tuned: data("tuned") }
}

fn against(folder: &Path, content: &Content) -> AdapterVerification {
    verify(folder, Some(content), &running(), &Silent).unwrap()
}

/// Writes new checksums of the folder's files, like somebody who hides a change.
fn recompute_checksums(folder: &Path) {
    let files = contents(folder).into_iter().filter(|(name, _)| name != "B3SUMS");
    let files: BTreeMap<_, _> = files.map(|(name, bytes)| (name, blake3::hash(&bytes))).collect();
    checksums::write(folder, &files).unwrap();
}

#[test]
fn every_flipped_bit_is_found() {
    let (_home, out) = adapter();
    let files = contents(&out);
    assert_eq!(files.len(), 6);
    let passes = || verify(&out, None, &running(), &Silent).unwrap().failures() == 0;
    assert!(passes());
    let mut flips = 0;
    for (name, bytes) in &files {
        // All bits of small files; some bits of large ones, at a step that is not a multiple of 8.
        let bits = bytes.len() * 8;
        let step = if name == "B3SUMS" { 1 } else { bits.div_ceil(1200) | 1 };
        for bit in (0..bits).step_by(step) {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(out.join(name), flipped).unwrap();
            assert!(!passes(), "bit {bit} of {name}");
            flips += 1;
        }
        fs::write(out.join(name), bytes).unwrap();
    }
    assert!(flips > 6000, "{flips}");
    assert!(passes());
}

#[test]
fn the_command_ends_with_4_and_names_the_file() {
    let (_home, out) = adapter();
    let ended = verified(&out, &[]).code(0);
    assert!(
        ended.stdout.contains("5 files, ") && ended.stdout.contains("all as recorded"),
        "{}",
        ended.stdout
    );
    flip(&out.join("adapter_model.safetensors"), 1000);
    let ended = verified(&out, &[]).code(4).says("verification found 1 failure:");
    assert!(ended.stdout.contains("\"adapter_model.safetensors\" has the BLAKE3"), "{}", ended.stdout);
    let ended = verified(&out, &["--json"]).code(4);
    let json: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(json["checksums"][0]["problem"], "mismatch");
    fs::remove_file(out.join("README.md")).unwrap();
    let ended = verified(&out, &[]).code(4).says("verification found 2 failures");
    assert!(ended.stdout.contains("\"README.md\" is missing"), "{}", ended.stdout);
}

#[test]
fn any_folder_with_checksums_can_be_verified() {
    let home = tempdir().unwrap();
    let folder = home.path().join("a model");
    verified(&folder, &[]).code(3).says("no such folder").says("hint: ");
    fs::create_dir_all(folder.join("sub")).unwrap();
    fs::write(folder.join("sub/größe.bin"), "bytes").unwrap();
    verified(&folder.join("sub/größe.bin"), &[]).code(3).says("this is a file, not a folder").says("hint: ");
    fs::write(folder.join("empty"), "").unwrap();
    verified(&folder, &[]).code(3).says("the folder has no B3SUMS");
    let files = contents(&folder).into_iter().filter(|(name, _)| !name.ends_with('/'));
    let files = files.map(|(name, bytes)| (name, blake3::hash(&bytes))).collect();
    checksums::write(&folder, &files).unwrap();
    verified(&folder, &[]).code(0);
    run(trephine().arg("status").arg(&folder))
        .code(2)
        .says("checksums, but no run's")
        .says("hint: give the folder");
    let slash = format!("{}/", folder.display());
    verified(Path::new(&slash), &[]).code(0);
    fs::write(folder.join("more"), "").unwrap();
    let ended = verified(&folder, &[]).code(0);
    assert!(ended.stdout.contains("note: \"more\" is not listed"), "{}", ended.stdout);
    fs::write(folder.join("sub/größe.bin"), "Bytes").unwrap();
    verified(&folder, &[]).code(4);
    verified(&home.path().join("nowhere"), &[]).code(3);
    fs::write(folder.join("extraction.json"), "{").unwrap();
    let ended = verified(&folder, &["--base", &data("base"), "--tuned", &data("tuned")]).code(3);
    ended.says("the manifest cannot be read").says("hint: run verify without --base and --tuned");
}

#[test]
fn a_right_adapter_passes_against_its_checkpoints() {
    let home = tempdir().unwrap();
    for (at, (base, more)) in [
        ("base", &[][..]),
        ("base-fp8", &["--energy", "0.5"]),
        ("base-fp8", &["--dtype", "f32", "--round-base", "bf16"]),
        ("base", &["--include", "embed_tokens", "--include", "lm_head", "--include", "k_proj"]),
    ]
    .into_iter()
    .enumerate()
    {
        let out = home.path().join(at.to_string());
        extract_with(&data(base), &data("tuned"), &out, &[&["--rank", "8"], more].concat()).code(0);
        let before = contents(&out);
        let ended = verified(&out, &["--base", &data(base), "--tuned", &data("tuned")]).code(0);
        assert!(
            ended.stdout.contains(" modules against their checkpoints: all as recorded"),
            "{}",
            ended.stdout
        );
        assert_same(&out, &before, "verify writes nothing");
    }
}

#[test]
fn other_checkpoints_are_found() {
    let (_home, out) = adapter();
    let [base, tuned] = [data("base"), data("tuned")];
    let swapped = verified(&out, &["--base", &tuned, "--tuned", &base]).code(4);
    assert!(
        swapped.stdout.contains("q_proj.weight in the base is not the tensor that was read"),
        "{}",
        swapped.stdout
    );
    let same = verified(&out, &["--base", &base, "--tuned", &base]).code(4);
    assert!(same.stdout.contains("in the tuned is not the tensor"), "{}", same.stdout);
    assert!(same.stdout.contains("has a delta of norm 0, but the manifest says"), "{}", same.stdout);
    verified(&out, &["--base", &base]).code(2);
    verified(&out, &["--base", "/nowhere", "--tuned", &tuned]).code(3);
}

/// Changes the adapter's tensors, updates the checksums to hide it, and returns the findings of the content check.
fn tampered(out: &Path, home: &Path, change: impl FnOnce(&mut Vec<Tensor>)) -> AdapterVerification {
    let folder = home.join("tampered");
    copy(out, &folder);
    let path = folder.join("adapter_model.safetensors");
    let mut tensors = read_file(&path);
    change(&mut tensors);
    write_file(&path, &tensors);
    recompute_checksums(&folder);
    assert_eq!(
        verify(&folder, None, &running(), &Silent).unwrap().failures(),
        0,
        "the checksums see nothing"
    );
    let found = against(&folder, &content());
    fs::remove_dir_all(&folder).unwrap();
    found
}

#[track_caller]
fn finds(found: &AdapterVerification, at: &str, why: &str) {
    assert!(found.content.iter().any(|f| f.at.contains(at) && f.why.contains(why)), "{:?}", found.content);
}

#[test]
fn factors_that_were_changed_are_found() {
    let (home, out) = adapter();
    assert_eq!(against(&out, &content()).failures(), 0);
    let named = |tensors: &mut Vec<Tensor>, name: &str| -> usize {
        tensors.iter().position(|t| t.name.contains(name)).unwrap()
    };
    let found = tampered(&out, home.path(), |tensors| {
        let at = named(tensors, "q_proj.lora_A");
        tensors[at].bytes.iter_mut().for_each(|b| *b = 0);
    });
    finds(&found, "q_proj", "the manifest says");
    finds(&found, "q_proj", "has factors whose digest differs from the manifest's");
    // The last bit of one number: too small a change for the recorded error to show it.
    let found = tampered(&out, home.path(), |tensors| {
        let at = named(tensors, "q_proj.lora_B");
        tensors[at].bytes[0] ^= 1;
    });
    finds(&found, "q_proj", "has factors whose digest differs from the manifest's");
    // A nonzero value in a module that must be zero.
    let found = tampered(&out, home.path(), |tensors| {
        let at = named(tensors, "v_proj.lora_B");
        tensors[at].bytes[1] = 0x3f;
    });
    finds(&found, "v_proj", "has factors whose digest differs from the manifest's");
    let found = tampered(&out, home.path(), |tensors| tensors.retain(|t| !t.name.contains("down_proj")));
    finds(&found, "down_proj", "cannot be read: the shard holds no such tensor");
    let found = tampered(&out, home.path(), |tensors| tensors.retain(|t| !t.name.contains("k_proj.lora_A")));
    finds(&found, "k_proj", "has a lora_B without its lora_A");
    let found = tampered(&out, home.path(), |tensors| {
        tensors.push(Tensor::f32("base_model.model.model.norm.weight", &[1], &[1.0]));
    });
    finds(&found, "model.norm.weight", "is not a factor");
}

#[test]
fn a_config_that_was_changed_is_found() {
    let (_home, out) = adapter();
    let path = out.join("adapter_config.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("\"lora_alpha\": 2", "\"lora_alpha\": 4")).unwrap();
    recompute_checksums(&out);
    finds(&against(&out, &content()), "lora_alpha", "is not r");
    fs::write(&path, "{").unwrap();
    recompute_checksums(&out);
    finds(&against(&out, &content()), "adapter_config.json", "is not JSON");
}

#[test]
fn what_is_missing_is_found_by_both_checks() {
    let (_home, out) = adapter();
    fs::remove_file(out.join("adapter_model.safetensors")).unwrap();
    let found = against(&out, &content());
    finds(&found, "adapter_model.safetensors", "cannot");
    assert_eq!(found.failures(), 2);
    fs::remove_file(out.join("extraction.json")).unwrap();
    let [base, tuned] = [data("base"), data("tuned")];
    verified(&out, &["--base", &base, "--tuned", &tuned]).code(3).says("the folder has no manifest");
}
