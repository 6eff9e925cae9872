//! Runs that are killed, by others or by themselves, and a finished run for comparison.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::{TempDir, tempdir};
use trephine::commands::extract::Extraction;
use trephine::run::{Progress, Silent};

use super::{assert_same, contents, data, extract, job, run};

/// The files of a finished run in the order in which they are written.
pub const FILES: [&str; 6] = [
    "adapter_model.safetensors",
    "adapter_config.json",
    "spectra.jsonl.zst",
    "extraction.json",
    "README.md",
    "B3SUMS",
];

/// A finished run, for comparison with others.
pub struct Reference {
    pub job: Extraction,
    pub files: BTreeMap<String, Vec<u8>>,
    _home: TempDir,
}

impl Reference {
    pub fn of(base: &str, tuned: &str) -> Reference {
        let home = tempdir().unwrap();
        let job = job(base, tuned, &home.path().join("out"));
        trephine::commands::extract::extract(&job, &Silent).unwrap();
        let files = contents(&job.out);
        Reference { job, files, _home: home }
    }

    pub fn real() -> Reference {
        Reference::of(&data("base-fp8"), &data("tuned"))
    }

    /// Number of modules and comparisons, each of which the journal records.
    pub fn units(&self) -> usize {
        let manifest: serde_json::Value = serde_json::from_slice(&self.files["extraction.json"]).unwrap();
        let compared = manifest["not_represented"].as_array().unwrap();
        manifest["modules"].as_array().unwrap().len() + compared.len()
    }

    pub fn extract(&self, out: &Path) -> Command {
        let mut command = extract(&self.job.base, &self.job.tuned, out);
        command.args(["--rank", "8", "--threads", "2"]);
        command
    }

    /// Runs to the end in `out` and compares.
    #[track_caller]
    pub fn goes_on(&self, out: &Path, when: &str) {
        run(&mut self.extract(out)).code(0);
        assert_same(out, &self.files, when);
    }
}

/// Kills its own process at one point of a run.
struct Killer {
    point: String,
    journaled: AtomicUsize,
}

impl Killer {
    fn at(&self, point: &str) {
        if self.point == point {
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
        }
    }
}

impl Progress for Killer {
    fn begin(&self, _: usize, _: u64, _: usize, _: u64) {
        self.at("record 0");
    }

    fn journaled(&self) {
        let count = self.journaled.fetch_add(1, Ordering::SeqCst) + 1;
        self.at(&format!("record {count}"));
    }

    fn assembling(&self) {
        self.at("assembling");
    }
}

/// Not a test by itself: it only does something in a process that [`killed_at`] has started, which it kills.
#[test]
fn child() {
    let Ok(text) = std::env::var("TREPHINE_TEST_CHILD") else { return };
    let words: Vec<&str> = text.split('\n').collect();
    let [base, tuned, out, point, part] = words[..] else { panic!("{text}") };
    let killer = Killer { point: point.into(), journaled: AtomicUsize::new(0) };
    let job = job(base, tuned, Path::new(out));
    match part {
        "" => drop(trephine::commands::extract::extract(&job, &killer).unwrap()),
        part => {
            drop(trephine::commands::extract::extract_part(&job, part.parse().unwrap(), &killer).unwrap());
        }
    }
}

/// Runs this same executable as a process that is killed at `point`. Returns whether that point was reached.
pub fn killed_at(job: &Extraction, out: &Path, point: &str) -> bool {
    part_killed_at(job, out, point, "")
}

/// The same with one part of the run.
pub fn part_killed_at(job: &Extraction, out: &Path, point: &str, part: &str) -> bool {
    let text = [&job.base, &job.tuned, out.to_str().unwrap(), point, part].join("\n");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "common::runs::child"]).env("TREPHINE_TEST_CHILD", text);
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    assert!(
        status.success() || std::os::unix::process::ExitStatusExt::signal(&status) == Some(9),
        "{status}"
    );
    !status.success()
}

/// A run of `reference` in which every shard is on the disk and nothing is assembled.
pub fn unassembled(reference: &Reference, home: &Path) -> PathBuf {
    let out = home.join("unassembled");
    assert!(killed_at(&reference.job, &out, "assembling"));
    out
}
