//! Shared code of the tests of whole runs: the binary, folders as bytes, and generated checkpoints.

// Each test binary uses only a part of this.
#![allow(dead_code)]

pub mod adapter;
pub mod conversions;
pub mod measure;
pub mod pair;
pub mod runs;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use trephine::commands::extract::{Allowances, Extraction, ResultOptions};

use trephine::pipeline::RunOptions;

/// A checkpoint of the repository: `base`, `base-fp8` or `tuned`.
pub fn data(name: &str) -> String {
    format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// The program, with two threads by default and without the user's cache.
pub fn trephine() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trephine"));
    command.env("HF_HOME", "/nonexistent").env_remove("HF_HUB_CACHE").env_remove("HUGGINGFACE_HUB_CACHE");
    command
}

/// `trephine extract`, quiet.
pub fn extract(base: &str, tuned: &str, out: &Path) -> Command {
    let mut command = trephine();
    command.args(["extract", "--quiet", "--base", base, "--tuned", tuned, "--out"]).arg(out);
    command
}

/// The outcome of a command.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    pub fn of(output: Output) -> Ended {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Asserts the exit code, and shows the output if it differs.
    #[track_caller]
    pub fn code(self, code: i32) -> Ended {
        assert_eq!(self.code, Some(code), "{}\n{}", self.stdout, self.stderr);
        self
    }

    /// Asserts that stderr contains these words.
    #[track_caller]
    pub fn says(self, words: &str) -> Ended {
        assert!(self.stderr.contains(words), "no '{words}' in: {}", self.stderr);
        self
    }

    /// Asserts that stdout contains these words.
    #[track_caller]
    pub fn shows(self, words: &str) -> Ended {
        assert!(self.stdout.contains(words), "no '{words}' in: {}", self.stdout);
        self
    }
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Ended {
    Ended::of(command.output().unwrap())
}

/// Runs `extract` with more arguments.
pub fn extract_with<S: AsRef<OsStr>>(base: &str, tuned: &str, out: &Path, more: &[S]) -> Ended {
    run(extract(base, tuned, out).args(more))
}

/// Every file below `folder` except the log, with its bytes (none for a lock, which contains a process ID); folders
/// too, with a trailing slash.
pub fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    fn walk(folder: &Path, prefix: &str, found: &mut BTreeMap<String, Vec<u8>>) {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if entry.path().is_dir() {
                walk(&entry.path(), &format!("{name}/"), found);
                found.insert(name + "/", Vec::new());
            } else if name != "extraction.log" {
                let lock = name.ends_with("/lock");
                let bytes = if lock { Vec::new() } else { fs::read(entry.path()).unwrap() };
                found.insert(name, bytes);
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(folder, "", &mut found);
    found
}

/// Asserts that two folders hold the same files with the same bytes, except for their logs.
#[track_caller]
pub fn assert_same(folder: &Path, expected: &BTreeMap<String, Vec<u8>>, when: &str) {
    let found = contents(folder);
    let names: [Vec<&String>; 2] = [&found, expected].map(|files| files.keys().collect());
    assert_eq!(names[0], names[1], "{when}");
    for (name, bytes) in &found {
        assert!(*bytes == expected[name], "{when}: {name} has other bytes");
    }
}

/// Copies a folder with everything in it.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), &to).unwrap();
        }
    }
}

/// A copy of one of the repository's checkpoints that may be damaged.
pub fn copied(name: &str, to: &Path) -> PathBuf {
    let to = to.join(name);
    copy(Path::new(&data(name)), &to);
    to
}

/// Changes one byte of a file.
pub fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// The manifest of an adapter.
pub fn manifest(out: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(out.join("extraction.json")).unwrap()).unwrap()
}

/// The shard file of an unfinished run in name order.
pub fn shards(out: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(out.join(".trephine/shards")).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// An extraction by the library: rank 8, two threads, and the command line's defaults.
pub fn job(base: &str, tuned: &str, out: &Path) -> Extraction {
    Extraction {
        base: base.into(),
        tuned: tuned.into(),
        served: None,
        calibration: None,
        hybrid: None,
        out: out.to_owned(),
        deciding: ResultOptions { rank: 8, ..ResultOptions::for_base(base) },
        allow: Allowances::default(),
        running: running(),
    }
}

/// Two threads, 2 GiB.
pub fn running() -> RunOptions {
    RunOptions::new(2, 2 << 30)
}
