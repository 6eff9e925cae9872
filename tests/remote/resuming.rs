//! Runs from a server that are killed and go on, and content that changed in between.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tempfile::tempdir;

use crate::common::runs::{Reference, killed_at};
use crate::common::{assert_same, contents, copied, extract, job, run};
use crate::fetching::least_memory;
use crate::server::{Reply, Server};
use crate::stores::web;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

#[test]
fn killed_at_every_record_and_resumed() {
    let home = tempdir().unwrap();
    let server = web(&root(), |_, reply| reply);
    let reference = Reference::of(&server.url("base-fp8"), &server.url("tuned"));
    let mut point = 0;
    loop {
        let out = home.path().join(format!("out{point}"));
        let job = job(&reference.job.base, &reference.job.tuned, &out);
        if !killed_at(&job, &out, &format!("record {point}")) {
            break;
        }
        let before = server.sent();
        run(&mut reference.extract(&out)).code(0);
        assert_same(&out, &reference.files, &format!("killed at record {point}"));
        // What was done is not fetched again: only what was in flight, and the headers.
        if point == 8 {
            let fetched = server.sent() - before;
            assert!(fetched < 3_000_000, "{fetched} bytes");
        }
        point += 1;
    }
    // Every module, every comparison, and the beginning.
    let units = reference.units();
    assert_eq!(point, units + 1);
}

#[test]
fn content_that_changed_between_stop_and_resume_is_refused_by_name() {
    let home = tempdir().unwrap();
    ["base-fp8", "tuned"].iter().for_each(|name| drop(copied(name, home.path())));
    let server = web(home.path(), |_, reply| reply);
    let out = home.path().join("out");
    let job = job(&server.url("base-fp8"), &server.url("tuned"), &out);
    assert!(killed_at(&job, &out, "record 3"));
    // The same length and the same header: only the tag tells.
    let file = home.path().join("tuned/model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let last = bytes.len() - 2;
    bytes[last] ^= 1;
    fs::write(&file, bytes).unwrap();
    let mut command = extract(&job.base, &job.tuned, &out);
    run(command.args(["--rank", "8", "--threads", "2"]))
        .code(2)
        .says("model.safetensors was replaced at the server");
}

/// Extracts with a cache beside the output: what is written, and how many bytes were sent for it.
fn cached(home: &Path, server: &Server, out: &str, most: &str) -> (BTreeMap<String, Vec<u8>>, u64) {
    let (before, out) = (server.sent(), home.join(out));
    let mut command = extract(&server.url("base-fp8"), &server.url("tuned"), &out);
    run(command.args(["--rank", "4", "--cache-size", most, "--cache"]).arg(home.join("cache"))).code(0);
    let mut files = contents(&out);
    files.remove("extraction.log");
    (files, server.sent() - before)
}

fn blocks(home: &Path) -> Vec<(PathBuf, u64)> {
    let entries = fs::read_dir(home.join("cache")).unwrap().map(Result::unwrap);
    entries.map(|entry| (entry.path(), entry.metadata().unwrap().len())).collect()
}

#[test]
fn a_cache_serves_the_second_run_and_a_damaged_block_is_fetched_again() {
    let home = tempdir().unwrap();
    let server = web(&root(), |_, reply| reply);
    let (first, fetched) = cached(home.path(), &server, "a", "1GiB");
    let (second, again) = cached(home.path(), &server, "b", "1GiB");
    assert!(first == second);
    assert!(again < fetched / 10, "{again} of {fetched} bytes fetched again");
    for (block, length) in blocks(home.path()).iter().take(3) {
        crate::common::flip(block, *length as usize - 1);
    }
    let (third, mended) = cached(home.path(), &server, "c", "1GiB");
    assert!(first == third);
    assert!(mended > again);
}

#[test]
fn a_cache_keeps_no_more_than_it_may() {
    let home = tempdir().unwrap();
    let server = web(&root(), |_, reply| reply);
    let runs = ["a", "b"].map(|out| {
        let (files, _) = cached(home.path(), &server, out, "600KiB");
        let kept: u64 = blocks(home.path()).iter().map(|(_, length)| length).sum();
        assert!((200 << 10..=600 << 10).contains(&kept), "{kept} bytes are kept");
        files
    });
    assert!(runs[0] == runs[1]);
}

#[test]
fn little_memory_is_refused_or_spills_and_fetches_once() {
    let home = tempdir().unwrap();
    let (base, tuned) =
        crate::common::pair::pair(home.path(), &[("model.layers.0.mlp.up_proj", [3072, 2048])]);
    let server = web(home.path(), |_, reply| reply);
    let (base_at, tuned_at) = (server.url("base"), server.url("tuned"));
    let extracted = |base: &str, tuned: &str, out: &str, more: &[&str]| {
        let out = home.path().join(out);
        let mut command = extract(base, tuned, &out);
        command.args(["--rank", "4", "--threads", "1", "--base-model-name", "b"]).args(more);
        (run(&mut command), out)
    };
    let (ended, on_disk) = extracted(&base, &tuned, "disk", &[]);
    ended.code(0);
    let needed = |more: &[&str]| {
        let mut command = extract(&base_at, &tuned_at, &home.path().join("none"));
        command.args(["--rank", "4", "--threads", "1", "--base-model-name", "b"]).args(more);
        least_memory(&mut command)
    };
    let spilled = needed(&["--scratch", home.path().join("scratch").to_str().unwrap()]);
    let held = needed(&[]);
    assert!(held > spilled + 8, "{held} MiB in memory, {spilled} MiB with a scratch folder");
    let small = format!("{spilled}MiB");
    let (ended, _) = extracted(&base_at, &tuned_at, "none", &["--memory", &small]);
    ended.code(2).says("--scratch DIR");
    // What is said to suffice does.
    let (ended, _) = extracted(&base_at, &tuned_at, "held", &["--memory", &format!("{held}MiB")]);
    ended.code(0);
    let scratch = home.path().join("scratch");
    let before = server.sent();
    let small = ["--memory", &small, "--scratch", scratch.to_str().unwrap()];
    let (ended, out) = extracted(&base_at, &tuned_at, "spilled", &small);
    ended.code(0);
    let weights = |out: &Path| fs::read(out.join("adapter_model.safetensors")).unwrap();
    assert!(weights(&out) == weights(&on_disk));
    let files =
        [&base, &tuned].map(|folder| fs::metadata(format!("{folder}/model.safetensors")).unwrap().len());
    let share = (server.sent() - before) as f64 / files.iter().sum::<u64>() as f64;
    assert!(share < 1.02, "fetched {share} times");
    assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0, "the scratch folder is empty afterwards");
}

#[test]
fn an_interrupted_link_ends_the_run_and_the_same_command_goes_on() {
    let home = tempdir().unwrap();
    let (down, count) = (Arc::new(AtomicBool::new(false)), AtomicU64::new(0));
    let is_down = Arc::clone(&down);
    let server = web(&root(), move |request, reply| {
        let late = request.range().is_some_and(|range| range.start > 0);
        if late && count.fetch_add(1, Ordering::SeqCst) == 20 {
            is_down.store(true, Ordering::SeqCst);
        }
        if is_down.load(Ordering::SeqCst) { Reply { cut: Some(0), ..reply } } else { reply }
    });
    let out = home.path().join("out");
    let command = || {
        let mut command = extract(&server.url("base-fp8"), &server.url("tuned"), &out);
        command.args(["--rank", "8", "--threads", "2", "--retries", "1"]);
        command
    };
    run(&mut command()).code(1).says("the answer ended");
    down.store(false, Ordering::SeqCst);
    run(&mut command()).code(0);
    let reference = Reference::of(&server.url("base-fp8"), &server.url("tuned"));
    assert_same(&out, &reference.files, "after the link came back");
}
