//! Conversions that kill themselves, and finished ones for comparison.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use trephine::Result;
use trephine::checkpoint::Checkpoint;
use trephine::commands::convert::{ConversionOutcome, Dequantization, Merge, dequantize, merge};
use trephine::run::{Progress, Silent};

use super::{assert_same, contents, running};

/// A conversion into a folder: of a checkpoint alone, or of a base with an adapter.
#[derive(Clone, Debug)]
pub struct Made {
    pub base: String,
    pub adapter: Option<String>,
    pub fp8: bool,
    pub max_shard_size: u64,
}

impl Made {
    pub fn run(&self, out: &Path, progress: &dyn Progress) -> Result<ConversionOutcome> {
        match &self.adapter {
            None => {
                let job = Dequantization::new(&self.base, out.to_owned(), running());
                dequantize(&Dequantization { max_shard_size: self.max_shard_size, ..job }, progress)
            }
            Some(adapter) => {
                let job = Merge::new(&self.base, adapter, out.to_owned(), running());
                merge(&Merge { fp8: self.fp8, max_shard_size: self.max_shard_size, ..job }, progress)
            }
        }
    }

    /// Runs to the end in `out` and compares.
    #[track_caller]
    pub fn goes_on(&self, out: &Path, files: &BTreeMap<String, Vec<u8>>, when: &str) {
        self.run(out, &Silent).unwrap();
        assert_same(out, files, when);
    }

    /// The files of an uninterrupted run.
    pub fn files(&self, home: &Path) -> BTreeMap<String, Vec<u8>> {
        let out = home.join("uninterrupted");
        self.run(&out, &Silent).unwrap();
        contents(&out)
    }

    /// Runs this same executable as a process that is killed at `point`. Returns whether that point was reached.
    pub fn killed_at(&self, out: &Path, point: &str) -> bool {
        let adapter = self.adapter.as_deref().unwrap_or_default();
        let (fp8, size) = (self.fp8.to_string(), self.max_shard_size.to_string());
        let text = [&self.base, adapter, &fp8, &size, out.to_str().unwrap(), point].join("\n");
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "common::conversions::child"]).env("TREPHINE_TEST_CONVERSION", text);
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        let killed = std::os::unix::process::ExitStatusExt::signal(&status) == Some(9);
        assert!(status.success() || killed, "{status}");
        killed
    }
}

/// Kills its own process at one point of a run.
struct Killer {
    point: String,
    journaled: AtomicUsize,
    written: AtomicU64,
}

impl Killer {
    fn at(&self, point: &str) {
        if self.point == point {
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
        }
    }
}

impl Progress for Killer {
    fn begin_files(&self, _: usize, _: u64, _: usize, _: u64) {
        self.at("record 0");
    }

    fn written(&self, bytes: u64) {
        let before = self.written.fetch_add(bytes, Ordering::SeqCst);
        let point = self.point.strip_prefix("byte ").and_then(|at| at.parse::<u64>().ok());
        if point.is_some_and(|at| (before..before + bytes).contains(&at)) {
            self.at(&self.point);
        }
    }

    fn file(&self, name: &str, _: std::time::Duration) {
        self.at(name);
    }

    fn journaled(&self) {
        let count = self.journaled.fetch_add(1, Ordering::SeqCst) + 1;
        self.at(&format!("record {count}"));
    }

    fn assembling(&self) {
        self.at("assembling");
    }
}

/// Not a test by itself: it only does something in a process that [`Made::killed_at`] has started, which it kills.
#[test]
fn child() {
    let Ok(text) = std::env::var("TREPHINE_TEST_CONVERSION") else { return };
    let parts: Vec<&str> = text.split('\n').collect();
    let [base, adapter, fp8, size, out, point] = parts[..] else { panic!("{text}") };
    let adapter = (!adapter.is_empty()).then(|| adapter.to_owned());
    let made =
        Made { base: base.into(), adapter, fp8: fp8.parse().unwrap(), max_shard_size: size.parse().unwrap() };
    let killer = Killer { point: point.into(), journaled: AtomicUsize::new(0), written: AtomicU64::new(0) };
    made.run(Path::new(out), &killer).unwrap();
}

/// The values of a module of a written checkpoint, decoded by the library, and its shape.
pub fn decoded(folder: &Path, module: &str) -> (Vec<f32>, [usize; 2]) {
    let checkpoint = Checkpoint::open(folder.to_str().unwrap()).unwrap();
    let module = checkpoint.module(module).unwrap_or_else(|| panic!("no {module}"));
    let [rows, columns] = module.shape();
    let mut values = vec![0f32; rows * columns];
    module.panel(&checkpoint, 0..rows, &mut values).unwrap();
    (values, [rows, columns])
}
