//! Tensors far larger than what the link may hold: every byte crosses it once, whatever is read of it and how often.

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::tempdir;

use crate::common::pair::pair;
use crate::common::{contents, extract, run, trephine};
use crate::server::Server;
use crate::stores::web;

/// The least memory for a command in MiB, by the program's own word.
pub fn least_memory(command: &mut Command) -> u64 {
    let ended = run(command.args(["--memory", "32MiB"])).code(2).says("not enough memory");
    let words: Vec<&str> = ended.stderr.split_whitespace().collect();
    let needed = words.iter().position(|word| word.trim_end_matches(':') == "needed");
    let needed = needed.unwrap_or_else(|| panic!("{}", ended.stderr));
    words[needed - 2].parse().unwrap()
}

/// Runs a command with the least memory that it accepts, and says how often the `weights` crossed the link.
#[track_caller]
fn fetched_once(server: &Server, weights: &[&Path], command: impl Fn() -> Command) {
    let least = least_memory(&mut command());
    let before = server.sent();
    run(command().args(["--memory", &format!("{least}MiB")])).code(0);
    let needed: u64 = weights.iter().map(|file| fs::metadata(file).unwrap().len()).sum();
    let share = (server.sent() - before) as f64 / needed as f64;
    assert!((0.99..=1.02).contains(&share), "{share} times what is needed, with {least} MiB");
}

#[test]
fn large_tensors_cross_the_link_once_in_every_command() {
    let home = tempdir().unwrap();
    let at = |name: &str| home.path().join(name);
    // Each has 32 MiB, as much as all blocks that are read ahead.
    let shape = [4096, 4096];
    let weights = ["q_proj", "k_proj", "v_proj"].map(|name| format!("model.layers.0.self_attn.{name}"));
    pair(home.path(), &weights.each_ref().map(|name| (name.as_str(), shape)));
    let server = web(home.path(), |_, reply| reply);
    let file = |name: &str| at(name).join("model.safetensors");
    let extraction = |places: &dyn Fn(&str) -> String, base: &str, out: &str| {
        let mut command = extract(&places(base), &places("tuned"), &at(out));
        command.args(["--rank", "4", "--threads", "2", "--base-model-name", "b", "--overwrite"]);
        command
    };
    let there = |name: &str| server.url(name);
    let here = |name: &str| at(name).display().to_string();
    let convert = |command: &str, base: &str, out: &str| {
        let mut convert = trephine();
        convert.args([command, "-q", "--threads", "2", "--overwrite", "--out"]).arg(at(out));
        convert.args(["--base"].iter().filter(|_| command == "merge")).arg(there(base));
        convert
    };
    // Method A, and then on the base in FP8 that is made of it.
    for (base, out) in [("base", "a"), ("fp8", "b")] {
        if base == "fp8" {
            fetched_once(&server, &[&file("base")], || {
                let mut merge = convert("merge", "base", "fp8");
                merge.arg("--adapter").arg(at("a")).arg("--fp8");
                merge
            });
        }
        let both = [&*file(base), &*file("tuned")];
        fetched_once(&server, &both, || extraction(&there, base, out));
        run(&mut extraction(&here, base, "disk")).code(0);
        let [from_link, from_disk] = [out, "disk"].map(|folder| contents(&at(folder)));
        let bytes = "adapter_model.safetensors";
        assert!(from_link[bytes] == from_disk[bytes], "{base}");
        let digests = |folder: &str| crate::common::manifest(&at(folder))["tensors"].to_string();
        assert_eq!(digests(out), digests("disk"));
        fetched_once(&server, &both, || {
            let mut verify = trephine();
            verify.args([
                "verify",
                "-q",
                "--threads",
                "2",
                "--base",
                &there(base),
                "--tuned",
                &there("tuned"),
            ]);
            verify.arg(at(out));
            verify
        });
    }
    fetched_once(&server, &[&file("fp8")], || convert("dequantize", "fp8", "bridge"));
    run(trephine().args(["verify", "-q"]).arg(at("bridge"))).code(0);
}

/// A command with at most so many MiB of address space. One arena for all threads: each further one reserves 64 MiB.
fn within(mebibytes: u64, command: &Command) -> Command {
    let mut limited = Command::new("sh");
    limited.args(["-c", &format!("ulimit -v {}; exec \"$@\"", mebibytes << 10), "sh"]);
    limited.arg(command.get_program()).args(command.get_args());
    limited.env("MALLOC_ARENA_MAX", "1").env("RAYON_NUM_THREADS", "2");
    limited
}

#[test]
fn memory_is_held_and_a_limit_of_the_system_is_an_error_by_name() {
    let home = tempdir().unwrap();
    let (base, tuned) = pair(
        home.path(),
        &[("model.layers.0.mlp.up_proj", [6144, 2048]), ("model.layers.0.mlp.down_proj", [2048, 6144])],
    );
    let server = web(home.path(), |_, reply| reply);
    let extraction = |base: &str, tuned: &str| {
        let mut command = extract(base, tuned, &home.path().join("out"));
        command.args(["--rank", "4", "--threads", "2", "--base-model-name", "b", "--overwrite", "--json"]);
        command
    };
    let there = || extraction(&server.url("base"), &server.url("tuned"));
    let least = least_memory(&mut there());
    let ended = run(there().args(["--memory", &format!("{least}MiB")])).code(0);
    let outcome: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    let peak = outcome["peak_memory"].as_u64().unwrap();
    assert!(peak <= least << 20, "a peak of {peak} bytes with {least} MiB");
    let bytes = || fs::read(home.path().join("out/adapter_model.safetensors")).unwrap();
    let from_link = bytes();
    run(&mut extraction(&base, &tuned)).code(0);
    assert!(bytes() == from_link);
    // Address space is limited where no matrix products reserve it by the size of the processor's caches.
    let examination = || {
        let mut command = trephine();
        command.args(["autopsy", "-q", "--threads", "2", &server.url("tuned"), "--against"]);
        command.arg(server.url("base"));
        command
    };
    let least = least_memory(&mut examination());
    let mut command = examination();
    command.args(["--memory", &format!("{least}MiB")]);
    // Beside the memory proper: the program's code, the stacks of all threads.
    run(&mut within(least + 96, &command)).code(0);
    // A system that gives less than was promised.
    let ended = run(&mut within(least / 2, &command)).code(1);
    assert!(ended.stderr.contains("ulimit -v"), "{}", ended.stderr);
}
