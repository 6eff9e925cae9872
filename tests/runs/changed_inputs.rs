//! Inputs that change while they are read: nothing that was made of two states is recorded or called finished.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tempfile::{TempDir, tempdir};
use trephine::commands::analyze::{AnalysisOptions, Analyzing, analyze};
use trephine::commands::calibrate::{Calibration, calibrate};
use trephine::commands::convert::{Dequantization, Merge, dequantize, merge};
use trephine::commands::extract::extract;
use trephine::corpus::Corpus;
use trephine::run::{Progress, Silent};
use trephine::{Error, Kind};

use crate::common::{copied, job, running};

/// When a file is written to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum When {
    Beginning,
    FirstRecord,
    Assembling,
}

/// Changes the last bytes of a file once, in place.
struct Writer {
    file: PathBuf,
    when: When,
    done: AtomicBool,
}

impl Writer {
    fn at(&self, when: When) {
        if self.when == when && !self.done.swap(true, Ordering::SeqCst) {
            // Time as file systems count it has to pass since the file was made.
            std::thread::sleep(Duration::from_millis(20));
            let mut bytes = fs::read(&self.file).unwrap();
            let length = bytes.len();
            // A finite number of every type.
            bytes[length - 64..].fill(0x22);
            let file = fs::OpenOptions::new().write(true).open(&self.file).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).unwrap();
        }
    }
}

impl Progress for Writer {
    fn begin(&self, _: usize, _: u64, _: usize, _: u64) {
        self.at(When::Beginning);
    }

    fn begin_files(&self, _: usize, _: u64, _: usize, _: u64) {
        self.at(When::Beginning);
    }

    fn journaled(&self) {
        self.at(When::FirstRecord);
    }

    fn assembling(&self) {
        self.at(When::Assembling);
    }
}

struct Inputs {
    home: TempDir,
}

impl Inputs {
    fn new() -> Inputs {
        let home = tempdir().unwrap();
        ["base", "base-fp8", "tuned"].iter().for_each(|name| drop(copied(name, home.path())));
        Inputs { home }
    }

    fn text(&self, name: &str) -> String {
        self.home.path().join(name).to_str().unwrap().to_owned()
    }

    fn out(&self) -> PathBuf {
        self.home.path().join("out")
    }
}

/// A command on these inputs, with its output folder and who is told of its progress.
type Command = dyn Fn(&Inputs, &Path, &dyn Progress) -> Result<(), Error>;

/// Runs a command on inputs of which one changes. It has to end with an error that names the file, and to leave
/// nothing that passes for finished; run again it starts from what the file holds then, or refuses.
fn changed(file: &str, run: &Command) {
    for when in [When::Beginning, When::FirstRecord, When::Assembling] {
        let inputs = Inputs::new();
        let path = inputs.home.path().join(file);
        let writer = Writer { file: path.clone(), when, done: AtomicBool::new(false) };
        let error = run(&inputs, &inputs.out(), &writer).expect_err(&format!("{file} {when:?}"));
        assert!(writer.done.load(Ordering::SeqCst), "{file} {when:?}: it was never written to");
        assert_eq!(error.kind(), Kind::Input, "{file} {when:?}: {error}");
        let text = error.to_string();
        assert!(text.contains("was written to after it had been opened") && text.contains(file), "{text}");
        assert!(!inputs.out().join("B3SUMS").exists(), "{file} {when:?}");
        if let Err(again) = run(&inputs, &inputs.out(), &Silent) {
            let refusal = again.to_string();
            let known =
                ["has changed since", "is a different one"].iter().any(|words| refusal.contains(words));
            assert!(known, "{file} {when:?}: {again}");
        }
    }
}

#[test]
fn an_extraction_of_two_states_is_none() {
    for file in ["tuned/model.safetensors", "base-fp8/model.safetensors"] {
        changed(file, &|inputs, out, progress| {
            extract(&job(&inputs.text("base-fp8"), &inputs.text("tuned"), out), progress).map(drop)
        });
    }
}

#[test]
fn an_extraction_by_a_calibration_of_two_states_is_none() {
    changed("calibration/calibration-00000.safetensors", &|inputs, out, progress| {
        let calibration = inputs.home.path().join("calibration");
        if !calibration.exists() {
            let job = Calibration {
                model: inputs.text("base"),
                corpus: Corpus { files: vec![], tokenizer: None, sequence: 32, tokens: 64 },
                out: calibration.clone(),
                k: 16,
                seed: 0,
                threads: 2,
                memory: 1 << 30,
                overwrite: false,
            };
            calibrate(&job, &Silent)?;
        }
        let mut job = job(&inputs.text("base-fp8"), &inputs.text("tuned"), out);
        job.calibration = Some(inputs.text("calibration"));
        extract(&job, progress).map(drop)
    });
}

#[test]
fn a_conversion_of_two_states_is_none() {
    changed("base-fp8/model.safetensors", &|inputs, out, progress| {
        let job = Dequantization {
            max_shard_size: 300_000,
            ..Dequantization::new(&inputs.text("base-fp8"), out.to_owned(), running())
        };
        dequantize(&job, progress).map(drop)
    });
}

#[test]
fn a_merge_of_two_states_is_none() {
    for file in ["base-fp8/model.safetensors", "adapter/adapter_model.safetensors"] {
        changed(file, &|inputs, out, progress| {
            let adapter = inputs.home.path().join("adapter");
            if !adapter.exists() {
                extract(&job(&inputs.text("base"), &inputs.text("tuned"), &adapter), &Silent)?;
            }
            let merging = Merge {
                max_shard_size: 300_000,
                ..Merge::new(&inputs.text("base-fp8"), adapter.to_str().unwrap(), out.to_owned(), running())
            };
            merge(&merging, progress).map(drop)
        });
    }
}

#[test]
fn an_analysis_of_two_states_is_none() {
    for file in ["tuned/model.safetensors", "base-fp8/model.safetensors"] {
        changed(file, &|inputs, out, progress| {
            let job = Analyzing {
                base: inputs.text("base"),
                base_quantized: inputs.text("base-fp8"),
                tuned: inputs.text("tuned"),
                tuned_quantized: None,
                out: out.to_owned(),
                asking: AnalysisOptions { rank: 8, ..AnalysisOptions::default() },
                running: running(),
            };
            analyze(&job, progress).map(drop)
        });
    }
}
