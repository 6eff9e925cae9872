//! What a model is run on and calibrated by, made to do harm: calibrations, tokenizers, chat templates, conversations.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use crate::common::{Ended, copied, data, run, trephine};
use crate::hostile_inputs::{replaced, text, within};

/// A calibration of the small base, in a folder of its own.
fn calibration() -> (TempDir, PathBuf) {
    let home = tempdir().unwrap();
    let folder = home.path().join("calibration");
    let mut command = trephine();
    command.args(["calibrate", "--quiet", "--model", &data("base"), "--tokens", "64", "--sequence", "32"]);
    run(command.args(["--k", "16", "--out"]).arg(&folder)).code(0);
    (home, folder)
}

fn calibrated(calibration: &Path, out: &Path) -> Vec<String> {
    let words = ["extract", "--quiet", "--rank", "4", "--base", &data("base-fp8"), "--tuned", &data("tuned")];
    let paths = ["--calibration", text(calibration), "--out", text(out)];
    words.iter().chain(&paths).map(|word| (*word).to_owned()).collect()
}

#[test]
fn pipes_and_devices_in_place_of_a_calibration() {
    let (home, folder) = calibration();
    let out = home.path().join("out");
    let command = calibrated(&folder, &out);
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    for name in ["calibration-00000.safetensors", "calibration.json"] {
        let file = folder.join(name);
        let content = fs::read(&file).unwrap();
        replaced(&file, &command, &[3]);
        fs::write(&file, content).unwrap();
    }
    for name in ["imatrix.gguf", "imatrix.dat", "one.safetensors"] {
        let file = home.path().join(name);
        let command = calibrated(&file, &out);
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        replaced(&file, &command, &[3]);
    }
}

#[test]
fn a_calibrations_index_leads_to_no_other_folder() {
    let (home, folder) = calibration();
    let index = folder.join("calibration.json");
    let whole: Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    for (at, name) in
        ["..", ".", "/", "../calibration/calibration-00000.safetensors", "", "a/b"].iter().enumerate()
    {
        let mut changed = whole.clone();
        for input in changed["inputs"].as_object_mut().unwrap().values_mut() {
            input["file"] = json!(name);
        }
        fs::write(&index, changed.to_string()).unwrap();
        let command = calibrated(&folder, &home.path().join(at.to_string()));
        run(trephine().args(command)).code(3).says("the index names a file outside of its folder");
    }
}

#[test]
fn an_importance_matrix_of_very_many_tensors_is_refused() {
    let home = tempdir().unwrap();
    let path = home.path().join("imatrix.dat");
    let mut bytes = 3_000_000u32.to_le_bytes().to_vec();
    for name in 0..3_000_000u32 {
        // A name of four letters, one call, no values.
        let letters = [0, 8, 16, 24].map(|shift| b'a' + (name >> shift) as u8 % 26);
        bytes.extend([&4u32.to_le_bytes()[..], &letters, &1u32.to_le_bytes(), &0u32.to_le_bytes()].concat());
    }
    fs::write(&path, bytes).unwrap();
    let command = calibrated(&path, &home.path().join("out"));
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    within(500, &command).code(3).says("claims 3000000 tensors");
}

/// `evaluate` on a text and a tokenizer.
fn evaluate(tokenizer: &Path, file: &Path, more: &[&str]) -> Ended {
    let base = data("base");
    let words = ["evaluate", "--quiet", "--model", &base, "--tokens", "32", "--sequence", "16"];
    let paths = ["--tokenizer", text(tokenizer), "--text", text(file)];
    // Matrix products reserve addresses by the hundred megabytes.
    within(3000, &[&words[..], &paths, more].concat())
}

/// A tokenizer's folder with this chat template, and a file with one conversation.
fn conversation(home: &Path, template: &str) -> (PathBuf, PathBuf) {
    let folder = copied("base", home);
    fs::write(folder.join("chat_template.jinja"), template).unwrap();
    let file = home.join("text.jsonl");
    let talk = json!({"messages": [{"role": "user", "content": "How are you today, and where?"}]});
    fs::write(&file, format!("{talk}\n")).unwrap();
    (folder, file)
}

#[test]
fn chat_templates_that_loop_or_grow_are_refused() {
    for (template, works) in [
        ("{{ messages[0].content }}", true),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{{ i }}{% endfor %}{% endfor %}", false),
        (
            "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
            false,
        ),
        ("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", false),
    ] {
        let home = tempdir().unwrap();
        let (folder, file) = conversation(home.path(), template);
        let ended = evaluate(&folder, &file, &[]);
        match works {
            true => ended.code(0),
            false => ended.code(3).says("the chat template"),
        };
    }
}

#[test]
fn a_pipe_in_place_of_a_chat_template_or_a_tokenizer_is_none() {
    let home = tempdir().unwrap();
    let (folder, file) = conversation(home.path(), "{{ messages[0].content }}");
    let base = data("base");
    let words = ["evaluate", "--quiet", "--model", &base, "--tokens", "32", "--sequence", "16"];
    let command = [&words[..], &["--tokenizer", text(&folder), "--text", text(&file)]].concat();
    for path in [
        folder.join("chat_template.jinja"),
        folder.join("tokenizer_config.json"),
        folder.join("tokenizer.json"),
        file.clone(),
    ] {
        let content = fs::read(&path).unwrap();
        replaced(&path, &command, &[3]);
        fs::write(&path, content).unwrap();
    }
}

#[test]
fn a_conversation_without_an_end_is_refused() {
    let home = tempdir().unwrap();
    let (folder, file) = conversation(home.path(), "{{ messages[0].content }}");
    fs::write(&file, vec![b' '; 80 << 20]).unwrap();
    evaluate(&folder, &file, &[]).code(3).says("line 1 has more than 67108864 bytes");
    let zeros = home.path().join("zeros.jsonl");
    symlink("/dev/zero", &zeros).unwrap();
    evaluate(&folder, &zeros, &[]).code(3).says("not a regular file");
}

#[test]
fn a_large_vocabulary_is_refused_before_it_is_read() {
    let home = tempdir().unwrap();
    let (folder, file) = conversation(home.path(), "{{ messages[0].content }}");
    // 200 MB would take 3 GB in the tokenizer's tables.
    fs::File::options().write(true).open(folder.join("tokenizer.json")).unwrap().set_len(200 << 20).unwrap();
    evaluate(&folder, &file, &["--memory", "1GiB"])
        .code(2)
        .says("not enough memory: 1024 MiB given, at least 28");
    let tokens = u64::MAX.to_string();
    let base = data("base");
    let words = ["evaluate", "--model", &base, "--tokens", &tokens, "--text", text(&file)];
    run(trephine().args(words)).code(2).says("not enough memory");
}
