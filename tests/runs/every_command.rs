//! The engine's features in every command: parts that give the bytes of one machine, a status, finished work that is
//! kept while its inputs are unchanged, and folders of different runs that are refused.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};
use trephine::commands::fidelity::{Measuring, fidelity};
use trephine::commands::sanitize::{Sanitizing, sanitize};
use trephine::lora::rules::Loader;
use trephine::run::{Progress, Silent};

use crate::common::{assert_same, contents, copied, copy, flip, run, running, trephine};

/// Checkpoints and an adapter that may be touched and damaged.
pub struct Inputs {
    home: TempDir,
}

impl Inputs {
    pub fn new() -> Inputs {
        let home = tempdir().unwrap();
        ["base", "base-fp8", "tuned"].iter().for_each(|name| drop(copied(name, home.path())));
        let inputs = Inputs { home };
        run(&mut inputs.command("extract", "adapter", &[])).code(0);
        inputs
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// A command on these inputs, run in their folder.
    pub fn command(&self, name: &str, out: &str, more: &[&str]) -> Command {
        let words: &[&str] = match name {
            "extract" => &["extract", "--base", "base-fp8", "--tuned", "tuned", "--rank", "8"],
            "dequantize" => &["dequantize", "base-fp8", "--max-shard-size", "300kB"],
            "merge" => &["merge", "--base", "base-fp8", "--adapter", "adapter", "--max-shard-size", "300kB"],
            "analyze" => {
                let base = ["analyze", "--base", "base", "--base-quantized", "base-fp8"];
                &[&base[..], &["--tuned", "tuned", "--rank", "8"]].concat()
            }
            "fidelity" => &["fidelity", "--served", "base-fp8", "--tuned", "tuned", "--adapter", "adapter"],
            "sanitize" => &["sanitize", "adapter", "--for", "vllm", "--max-rank", "4"],
            _ => panic!("{name}"),
        };
        let mut command = trephine();
        command.current_dir(self.home.path()).args(words).args(["--quiet", "--out", out]).args(more);
        command
    }

    /// Changes the modification time of a checkpoint's weights; with `spoilt` also the first byte of every tensor.
    fn touch(&self, name: &str, spoilt: bool) {
        let path = self.path(name).join("model.safetensors");
        if spoilt {
            tensor_places(&path).into_iter().for_each(|at| flip(&path, at));
        }
        let later = SystemTime::now() + Duration::from_secs(60);
        File::options().append(true).open(&path).unwrap().set_modified(later).unwrap();
    }
}

/// The offsets of the tensors' bytes in a safetensors file.
fn tensor_places(path: &Path) -> Vec<usize> {
    let bytes = fs::read(path).unwrap();
    let length = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let tensors = header.as_object().unwrap().values();
    let offsets = tensors.filter_map(|tensor| tensor["data_offsets"][0].as_u64());
    offsets.map(|at| 8 + length + at as usize).collect()
}

/// The commands whose work can be split, each with a checkpoint that it reads.
const SPLIT: [(&str, &str); 4] =
    [("extract", "tuned"), ("dequantize", "base-fp8"), ("merge", "base-fp8"), ("analyze", "tuned")];

fn assemble(inputs: &Inputs, out: &str, more: &[&str]) -> crate::common::Ended {
    run(trephine().current_dir(inputs.home.path()).args(["assemble", "--quiet", out]).args(more))
}

fn status(inputs: &Inputs, out: &str) -> Value {
    let ended = run(trephine().arg("status").arg(inputs.path(out)).arg("--json")).code(0);
    serde_json::from_str(&ended.stdout).unwrap()
}

#[test]
fn parts_in_any_order_give_the_bytes_of_one_machine() {
    let inputs = Inputs::new();
    for (name, _) in SPLIT {
        let one = format!("{name}-one");
        run(&mut inputs.command(name, &one, &[])).code(0);
        let files = contents(&inputs.path(&one));
        // This includes more parts than units of work.
        for of in [1, 3, 40] {
            let out = format!("{name}-{of}");
            for index in (1..=of).rev() {
                let (part, threads) = (format!("{index}/{of}"), ["1", "2"][index % 2]);
                run(&mut inputs.command(name, &out, &["--part", &part, "--threads", threads])).code(0);
            }
            let now = status(&inputs, &out);
            assert_eq!((&now["state"], &now["command"]), (&"complete".into(), &name.into()), "{now}");
            assert_eq!(now["modules"], now["total"]["modules"], "{name}");
            assemble(&inputs, &out, &[]).code(0);
            assert_same(&inputs.path(&out), &files, &format!("{name} in {of} parts"));
            assert_eq!(status(&inputs, &out)["state"], "assembled");
            let again = assemble(&inputs, &out, &[]).code(0);
            assert!(again.stdout.contains("already complete"), "{name}: {}", again.stdout);
            let late = run(&mut inputs.command(name, &out, &["--part", "1/2"])).code(0);
            assert!(late.stdout.contains("is already assembled"), "{name}: {}", late.stdout);
            let whole = run(&mut inputs.command(name, &out, &[])).code(0);
            assert!(whole.stdout.contains("already complete"), "{name}: {}", whole.stdout);
        }
    }
}

#[test]
fn what_is_missing_is_named_with_the_command_that_does_it() {
    let inputs = Inputs::new();
    for (name, _) in SPLIT {
        let one = format!("{name}-one");
        run(&mut inputs.command(name, &one, &[])).code(0);
        let files = contents(&inputs.path(&one));
        let out = format!("{name}-parts");
        run(&mut inputs.command(name, &out, &["--part", "2/3"])).code(0);
        let now = status(&inputs, &out);
        assert_eq!((&now["state"], &now["not_begun"]), (&"idle".into(), &json!([1, 3])), "{now}");
        let unit = if ["dequantize", "merge"].contains(&name) { "file" } else { "module" };
        assert_eq!((&now["unit"], &now["attempts"][0]["part"]), (&unit.into(), &"2/3".into()), "{now}");
        assert!(now["modules"].as_u64().unwrap() > 0 && now["read_bytes"].as_u64().unwrap() > 0, "{now}");
        let before = inputs.path("before");
        copy(&inputs.path(&out), &before);
        let ended = assemble(&inputs, &out, &[]).code(4).says("are missing").says("--finish");
        let commands: Vec<&str> = ended.stdout.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(commands.len(), 2, "{name}: {}", ended.stdout);
        for line in commands {
            let words = shlex::split(line).unwrap();
            assert_eq!((&*words[0], &*words[1]), ("trephine", name));
            run(trephine().args(&words[1..])).code(0);
        }
        assemble(&inputs, &out, &[]).code(0);
        assert_same(&inputs.path(&out), &files, &format!("{name} by the commands that were given"));
        assemble(&inputs, "before", &["--finish"]).code(0);
        assert_same(&before, &files, &format!("{name} finished by the assembly"));
        // The unsplit run takes over what a part has done.
        let taken = format!("{name}-taken");
        run(&mut inputs.command(name, &taken, &["--part", "1/2"])).code(0);
        run(&mut inputs.command(name, &taken, &[])).code(0);
        assert_same(&inputs.path(&taken), &files, &format!("{name}, a part and then the whole"));
        fs::remove_dir_all(before).unwrap();
    }
}

#[test]
fn a_touched_input_is_hashed_again_before_finished_work_is_kept() {
    for (name, input) in SPLIT {
        let inputs = Inputs::new();
        run(&mut inputs.command(name, "one", &[])).code(0);
        let files = contents(&inputs.path("one"));
        run(&mut inputs.command(name, "parts", &["--part", "1/2"])).code(0);
        copy(&inputs.path("parts"), &inputs.path("unsplit"));
        copy(&inputs.path("parts"), &inputs.path("spoilt"));
        inputs.touch(input, false);
        // The content is the same: finished work is kept.
        run(&mut inputs.command(name, "parts", &["--part", "2/2"])).code(0);
        assemble(&inputs, "parts", &[]).code(0);
        assert_same(&inputs.path("parts"), &files, name);
        let mut whole = inputs.command(name, "unsplit", &[]);
        whole.args(["--threads", "1"]);
        let ended = run(&mut whole).code(0);
        assert!(!ended.stderr.contains("done again"), "{name}: {}", ended.stderr);
        assert_same(&inputs.path("unsplit"), &files, name);
        let again = run(&mut inputs.command(name, "one", &[])).code(0);
        assert!(again.stdout.contains("already complete"), "{name}: {}", again.stdout);
        // The content differs: refused by name, finished or not.
        inputs.touch(input, true);
        let before = contents(&inputs.path("spoilt"));
        for (out, more) in [("spoilt", &["--part", "1/2"][..]), ("one", &[])] {
            let ended = run(&mut inputs.command(name, out, more)).code(2);
            ended.says("the tensor ").says(" has changed since").says("--overwrite");
        }
        assert_same(&inputs.path("spoilt"), &before, name);
        assert_same(&inputs.path("one"), &files, name);
    }
}

#[test]
fn a_finished_measurement_or_adapter_is_held_against_its_inputs() {
    let inputs = Inputs::new();
    for (name, words) in [
        ("fidelity", "the tensor "),
        ("sanitize", "the adapter is a different one: adapter_model.safetensors has a different header"),
    ] {
        run(&mut inputs.command(name, name, &[])).code(0);
        let files = contents(&inputs.path(name));
        inputs.touch("tuned", false);
        run(&mut inputs.command(name, name, &[])).code(0);
        assert_same(&inputs.path(name), &files, name);
        let adapter = inputs.path("adapter/adapter_model.safetensors");
        match name {
            "fidelity" => inputs.touch("tuned", true),
            _ => flip(&adapter, fs::metadata(&adapter).unwrap().len() as usize - 2),
        }
        run(&mut inputs.command(name, name, &[])).code(2).says(words).says("--overwrite");
        assert_same(&inputs.path(name), &files, name);
        run(&mut inputs.command(name, name, &["--overwrite"])).code(0);
        assert_ne!(contents(&inputs.path(name)), files, "{name}");
    }
}

#[test]
fn a_folder_of_a_different_run_is_refused_and_left_alone() {
    let inputs = Inputs::new();
    let changes: [(&str, &[&str], &str); 6] = [
        ("extract", &["--seed", "1"], "--seed was 0 and is 1"),
        ("dequantize", &["--dtype", "f32"], "--dtype was \"bf16\" and is \"f32\""),
        ("merge", &["--dtype", "f32"], "--dtype was \"bf16\" and is \"f32\""),
        ("analyze", &["--seed", "1"], "--seed was 0 and is 1"),
        (
            "fidelity",
            &["--adapter", "other"],
            "the adapter is a different one: 2/adapter_config.json was not there before",
        ),
        ("sanitize", &["--dtype", "f32"], "--dtype was null and is \"f32\""),
    ];
    run(&mut inputs.command("extract", "other", &["--seed", "3"])).code(0);
    for (name, more, words) in changes {
        run(&mut inputs.command(name, name, &[])).code(0);
        let files = contents(&inputs.path(name));
        run(&mut inputs.command(name, name, more)).code(2).says(words).says("--overwrite");
        assert_same(&inputs.path(name), &files, name);
        run(&mut inputs.command(name, name, &[more, &["--overwrite"]].concat())).code(0);
        assert_ne!(contents(&inputs.path(name)), files, "{name}");
        run(&mut inputs.command(name, name, &["--overwrite"])).code(0);
        assert_same(&inputs.path(name), &files, name);
    }
    // An unfinished run of another command.
    run(&mut inputs.command("dequantize", "mixed", &["--part", "1/2"])).code(0);
    let before = contents(&inputs.path("mixed"));
    for name in ["merge", "analyze", "fidelity"] {
        let ended = run(&mut inputs.command(name, "mixed", &[])).code(2);
        ended.says("it was made by `trephine dequantize`");
        assert_eq!(
            contents(&inputs.path("mixed")).len(),
            before.len() + 1,
            "{name}: but for the lock nothing is new"
        );
    }
}

/// Panics at the record of this number.
struct StopAt(usize, AtomicUsize);

impl Progress for StopAt {
    fn journaled(&self) {
        assert_ne!(self.1.fetch_add(1, Ordering::SeqCst) + 1, self.0, "stopped here");
    }
}

/// The result of `work`. A process that another test starts at this moment holds a copy of a lock for an instant; this
/// waits for it.
fn once_unlocked<T>(work: impl Fn() -> trephine::Result<T>) -> T {
    loop {
        match work() {
            Err(error) if error.to_string().contains("another run") => {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            done => return done.unwrap(),
        }
    }
}

/// Runs `work` until every record has been the last one once; finished work must not be done again.
fn stopped_at_every_record(out: &Path, units: usize, work: &dyn Fn(&Path, &dyn Progress)) {
    work(&out.join("whole"), &Silent);
    let files = contents(&out.join("whole"));
    let stopped = out.join("stopped");
    for done in 0..units {
        let stop = StopAt(1, AtomicUsize::new(0));
        let work = std::panic::AssertUnwindSafe(|| work(&stopped, &stop));
        assert!(std::panic::catch_unwind(work).is_err(), "{done}");
        assert!(!stopped.join("B3SUMS").exists() && stopped.join(".trephine/journal").exists());
    }
    let counted = StopAt(0, AtomicUsize::new(0));
    work(&stopped, &counted);
    assert_eq!(counted.1.load(Ordering::SeqCst), 0, "nothing was left to do");
    assert_eq!(contents(&stopped), files);
}

#[test]
fn a_measurement_that_is_stopped_continues() {
    let inputs = Inputs::new();
    let text = |name: &str| inputs.path(name).to_str().unwrap().to_owned();
    stopped_at_every_record(inputs.home.path(), 21, &|out, progress| {
        let job = Measuring {
            adapters: vec![text("adapter")],
            served: text("base-fp8"),
            tuned: text("tuned"),
            out: Some(out.to_owned()),
            running: running(),
        };
        once_unlocked(|| fidelity(&job, progress));
    });
}

#[test]
fn sanitizing_that_is_stopped_continues() {
    let inputs = Inputs::new();
    stopped_at_every_record(inputs.home.path(), 21, &|out, progress| {
        let job = Sanitizing {
            adapter: inputs.path("adapter").to_str().unwrap().to_owned(),
            out: out.to_owned(),
            consumers: vec![Loader::Vllm],
            max_rank: Some(4),
            base: None,
            dtype: None,
            memory: 1 << 30,
            overwrite: false,
            other_simd: false,
        };
        once_unlocked(|| sanitize(&job, progress));
    });
}
