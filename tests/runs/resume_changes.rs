//! Output folders that are in use: by a finished run, by one with different options or inputs, by one that is running.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use crate::common::runs::{FILES, Reference, killed_at, unassembled};
use crate::common::{assert_same, contents, copied, copy, data, extract_with, flip, run, shards};
use tempfile::tempdir;
use trephine::durable::journal::Journal;
use trephine::durable::lock::Lock;

#[test]
fn shards_are_kept_when_asked() {
    let reference = Reference::real();
    let home = tempdir().unwrap();
    let out = home.path().join("out");
    run(reference.extract(&out).arg("--keep-shards")).code(0);
    let mut found = contents(&out);
    let kept: Vec<String> = found.keys().filter(|name| name.starts_with(".trephine/")).cloned().collect();
    assert_eq!(kept.iter().filter(|name| name.ends_with(".shard")).count(), 21);
    assert_eq!(kept.len(), 21 + 2, "{kept:?}");
    kept.iter().for_each(|name| drop(found.remove(name)));
    assert_eq!(found.keys().collect::<Vec<_>>(), reference.files.keys().collect::<Vec<_>>());
    run(reference.extract(&out).arg("--keep-shards")).code(0);
    assert_eq!(shards(&out).len(), 21);
    reference.goes_on(&out, "shards no longer kept");
}

#[test]
fn a_finished_folder_says_so() {
    let reference = Reference::real();
    let out = &reference.job.out;
    let log = fs::read(out.join("extraction.log")).unwrap();
    let ended = run(&mut reference.extract(out)).code(0);
    assert!(ended.stdout.contains("already complete"), "{}", ended.stdout);
    assert_same(out, &reference.files, "nothing is done");
    assert_eq!(fs::read(out.join("extraction.log")).unwrap(), log);
}

#[test]
fn a_finished_folder_that_was_damaged_is_not_called_done() {
    let reference = Reference::real();
    let home = tempdir().unwrap();
    for (at, file) in FILES.iter().enumerate().filter(|(_, file)| **file != "extraction.json") {
        let out = home.path().join(at.to_string());
        copy(&reference.job.out, &out);
        if at % 2 == 0 {
            flip(&out.join(file), 70);
        } else {
            fs::remove_file(out.join(file)).unwrap();
        }
        if *file == "B3SUMS" {
            // Without checksums the folder is an unfinished one.
            reference.goes_on(&out, file);
            continue;
        }
        let before = contents(&out);
        run(&mut reference.extract(&out)).code(2).says("finished run that is damaged").says(file);
        assert_same(&out, &before, file);
        run(reference.extract(&out).arg("--overwrite")).code(0);
        assert_same(&out, &reference.files, file);
    }
}

/// Options that determine the result, and the message about the difference.
const CHANGES: [(&[&str], &str); 10] = [
    (&["--rank", "9"], "--rank was 8 and is 9"),
    (&["--rank", "8", "--seed", "1"], "--seed was 0 and is 1"),
    (&["--rank", "8", "--energy", "0.5"], "--energy was null and is 0.5"),
    (&["--rank", "8", "--method", "gram"], "--method was \"auto\" and is \"gram\""),
    (&["--rank", "8", "--dtype", "f16"], "--dtype was \"bf16\" and is \"f16\""),
    (&["--rank", "8", "--tolerance", "0.01"], "--tolerance was 0.005 and is 0.01"),
    (&["--rank", "8", "--round-base", "bf16"], "--round-base was \"none\" and is \"bf16\""),
    (&["--rank", "8", "--exclude", "q_proj"], "--exclude was [] and is [\"q_proj\"]"),
    (&["--rank", "8", "--non-finite", "zero"], "--non-finite was \"fail\" and is \"zero\""),
    (&["--rank", "8", "--base-model-name", "B"], "--base-model-name was "),
];

#[test]
fn changed_options_are_refused_and_named() {
    let reference = Reference::real();
    let home = tempdir().unwrap();
    let killed = unassembled(&reference, home.path());
    for out in [&killed, &reference.job.out] {
        let before = contents(out);
        for (more, words) in CHANGES {
            let ended = extract_with(&reference.job.base, &reference.job.tuned, out, more);
            ended.code(2).says(words).says("--overwrite");
        }
        let served = ["--rank", "8", "--served", &reference.job.base];
        let ended = extract_with(&reference.job.base, &reference.job.tuned, out, &served);
        ended.code(2).says("the earlier run had no --served");
        let name = ["--rank", "8", "--base-model-name", &reference.job.base];
        let ended = extract_with(&data("base"), &reference.job.tuned, out, &name);
        ended
            .code(2)
            .says("the base checkpoint is a different one: config.json had 1004 bytes and now has 849");
        assert_same(out, &before, "refused");
    }
    reference.goes_on(&killed, "as before");
}

#[test]
fn another_version_is_refused() {
    let reference = Reference::real();
    let home = tempdir().unwrap();
    for (field, words) in [
        ("trephine", "it was made by version 0.0.0, this is "),
        ("simd", "it was made with 0.0.0 instructions, this machine has "),
    ] {
        let out = home.path().join(field);
        assert!(killed_at(&reference.job, &out, "record 3"));
        let path = out.join(".trephine/journal");
        let (_, mut entries) = Journal::<serde_json::Value>::open(&path).unwrap();
        entries[0]["begin"][field] = "0.0.0".into();
        fs::remove_file(&path).unwrap();
        let (mut journal, _) = Journal::open(&path).unwrap();
        entries.iter().for_each(|entry| journal.append(entry).unwrap());
        drop(journal);
        run(&mut reference.extract(&out)).code(2).says(words);
        let with = run(reference.extract(&out).arg("--other-simd"));
        with.code(if field == "simd" { 0 } else { 2 });
    }
}

/// Changes the modification time of a file.
fn touch(path: &Path, later: u64) {
    let file = File::options().append(true).open(path).unwrap();
    let time = file.metadata().unwrap().modified().unwrap() + Duration::from_secs(later);
    file.set_modified(time).unwrap();
}

/// The offset of a tensor's bytes in a safetensors file.
fn place_of(file: &Path, tensor: &str) -> usize {
    let bytes = fs::read(file).unwrap();
    let length = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    8 + length + header[tensor]["data_offsets"][0].as_u64().unwrap() as usize
}

#[test]
fn touched_inputs_are_read_again() {
    let home = tempdir().unwrap();
    let [base, tuned] = ["base-fp8", "tuned"].map(|name| copied(name, home.path()));
    let reference = Reference::of(base.to_str().unwrap(), tuned.to_str().unwrap());
    let killed = unassembled(&reference, home.path());
    let weights = tuned.join("model.safetensors");
    touch(&weights, 60);
    let out = home.path().join("touched");
    copy(&killed, &out);
    reference.goes_on(&out, "touched");
    let done = reference.job.out.clone();
    reference.goes_on(&done, "touched after the end");
    // A module's weight, and a norm that was only compared.
    for tensor in ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"] {
        let whole = fs::read(&weights).unwrap();
        flip(&weights, place_of(&weights, tensor));
        touch(&weights, 120);
        let words = format!("the tensor {tensor} of the tuned checkpoint has changed since");
        run(&mut reference.extract(&killed)).code(2).says(&words);
        run(&mut reference.extract(&done)).code(2).says(&words);
        fs::write(&weights, whole).unwrap();
    }
    fs::write(tuned.join("config.json"), "{\"model_type\": \"qwen3\"}").unwrap();
    run(&mut reference.extract(&killed)).code(2).says("is a different one: config.json had ");
    assert_same(&done, &reference.files, "refused");
}

#[test]
fn overwrite_starts_anew() {
    let reference = Reference::real();
    let home = tempdir().unwrap();
    let killed = unassembled(&reference, home.path());
    for out in [&killed, &reference.job.out] {
        run(reference.extract(out).args(["--overwrite", "--seed", "5"])).code(0);
        assert_ne!(contents(out), reference.files);
        run(reference.extract(out).arg("--overwrite")).code(0);
        assert_same(out, &reference.files, "overwritten twice");
        let log = fs::read_to_string(out.join("extraction.log")).unwrap();
        assert_eq!(log.matches(" begins: 0 modules of 21 are done").count(), 1, "{log}");
    }
}

#[test]
fn a_lock_keeps_the_second_run_out() {
    let reference = Reference::real();
    let home = tempdir().unwrap();
    let out = home.path().join("out");
    fs::create_dir(&out).unwrap();
    let lock = Lock::acquire(&out).unwrap();
    let words = format!("another run (process {}) is writing to this folder", std::process::id());
    run(&mut reference.extract(&out)).code(2).says(&words);
    run(reference.extract(&out).arg("--overwrite")).code(2).says(&words);
    assert_eq!(contents(&out).keys().collect::<Vec<_>>(), [".trephine/", ".trephine/lock"]);
    drop(lock);
    fs::write(out.join(".trephine/lock"), "1").unwrap();
    reference.goes_on(&out, "a stale lock file");
}
