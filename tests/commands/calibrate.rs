//! `trephine calibrate` against transformers' hooks (scripts/fixtures_decoders.py), and independence of its bytes from
//! threads, memory and interruptions.

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tempfile::tempdir;
use trephine::Kind;
use trephine::commands::calibrate::{Calibration, CalibrationOutcome, calibrate};
use trephine::corpus::Corpus;
use trephine::run::{Progress, Silent};

use crate::common::{contents, data, trephine};

const MEMORY: u64 = 1 << 30;

pub fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/decoders").join(path)
}

pub fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

pub fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

/// The text of a fixture: token IDs, one sequence on each line.
pub fn text(case: &str) -> Corpus {
    Corpus {
        files: vec![fixture(case).join("text.jsonl")],
        tokenizer: Some(fixture("")),
        sequence: 64,
        tokens: 1000,
    }
}

fn job(model: &str, corpus: Corpus, out: &Path, k: usize) -> Calibration {
    let (model, out) = (model.to_owned(), out.to_owned());
    Calibration { model, corpus, out, k, seed: 0, threads: 2, memory: MEMORY, overwrite: false }
}

/// The beginning of the built-in text, as in `pair.json`.
fn beginning() -> Corpus {
    Corpus { files: Vec::new(), tokenizer: None, sequence: 128, tokens: 1000 }
}

/// The counts and diagonals of a calibration, and the diagonals of its sketches, by input.
struct Read {
    count: u64,
    diagonal: Vec<f64>,
    of_sketch: Vec<f64>,
    rows: usize,
}

fn read(folder: &Path) -> BTreeMap<String, Read> {
    let index = json(&folder.join("calibration.json"));
    let mut found = BTreeMap::new();
    for (name, about) in index["inputs"].as_object().unwrap() {
        let bytes = fs::read(folder.join(about["file"].as_str().unwrap())).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensor = |end: &str| file.tensor(&format!("{name}.{end}")).unwrap();
        let count = u64::from_le_bytes(tensor("count").data().try_into().unwrap());
        assert_eq!((count, about["count"].as_u64()), (count, Some(count)));
        let diagonal = tensor("diagonal");
        assert_eq!(diagonal.dtype(), Dtype::F32);
        let diagonal: Vec<f64> =
            diagonal.data().as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect();
        let sketch = tensor("sketch");
        assert_eq!((sketch.dtype(), sketch.shape()[1]), (Dtype::BF16, diagonal.len()));
        assert_eq!(sketch.shape()[0] as u64, about["rows"].as_u64().unwrap());
        let mut of_sketch = vec![0f64; diagonal.len()];
        for row in sketch.data().chunks(2 * diagonal.len()) {
            for (sum, b) in of_sketch.iter_mut().zip(row.as_chunks::<2>().0) {
                *sum += f64::from(half::bf16::from_le_bytes(*b)).powi(2);
            }
        }
        found.insert(name.clone(), Read { count, diagonal, of_sketch, rows: sketch.shape()[0] });
    }
    found
}

/// Asserts that a calibration agrees with the reference: equal counts, diagonals within 1e-4 of the largest of an
/// input, the loss within 2e-4.
#[track_caller]
fn assert_agrees(what: &str, folder: &Path, outcome: &CalibrationOutcome, expected: &Value) {
    let found = read(folder);
    let inputs = expected["inputs"].as_object().unwrap();
    for (name, expected) in inputs {
        let (count, squares) = (expected["count"].as_u64().unwrap(), numbers(&expected["squares"]));
        if name.ends_with("mlp.gate") || name.ends_with("moe.gate") {
            // A router is not part of an adapter by default: its input is not kept.
            continue;
        }
        let found = found.get(name).unwrap_or_else(|| panic!("{what}: no {name}"));
        assert_eq!(found.count, count, "{what}: {name}");
        let most = squares.iter().fold(0.0, |most: f64, v| most.max(*v));
        for (found, expected) in found.diagonal.iter().zip(&squares) {
            assert!(
                (found - expected).abs() <= 1e-3 * expected + 1e-6 * most,
                "{what}: {name}: {found} {expected}"
            );
        }
        for (sketch, exact) in found.of_sketch.iter().zip(&squares) {
            assert!(
                (sketch - exact).abs() <= 8e-3 * exact + 1e-6 * most,
                "{what}: {name}: the rows themselves"
            );
        }
        assert_eq!(found.rows as u64, count);
    }
    let routers =
        inputs.keys().filter(|name| name.ends_with("mlp.gate") || name.ends_with("moe.gate")).count();
    assert_eq!(found.len(), inputs.len() - routers, "{what}: inputs");
    let losses = numbers(&expected["losses"]);
    let lengths: Vec<f64> = match expected.get("lengths") {
        Some(lengths) => numbers(lengths),
        None => Vec::new(),
    };
    let tokens: f64 = lengths.iter().sum();
    let mean: f64 = losses.iter().zip(&lengths).map(|(loss, tokens)| loss * tokens).sum::<f64>() / tokens;
    assert!((outcome.loss - mean).abs() < 2e-4, "{what}: a loss of {} for {mean}", outcome.loss);
}

/// The expected values with the number of predictions in each sequence.
fn with_lengths(mut expected: Value, sequences: &[usize]) -> Value {
    expected["lengths"] = sequences.iter().map(|tokens| tokens - 1).collect();
    expected
}

#[test]
fn every_architecture_has_the_moments_and_the_loss_of_transformers() {
    for case in ["llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "mixtral", "gemma2", "gemma3", "phi3"] {
        let home = tempdir().unwrap();
        let out = home.path().join("out");
        let model = fixture(case).to_str().unwrap().to_owned();
        let outcome = calibrate(&job(&model, text(case), &out, 2048), &Silent).unwrap();
        let expected = with_lengths(json(&fixture(case).join("expected.json")), &[40, 23, 9]);
        assert_agrees(case, &out, &outcome, &expected);
    }
}

#[test]
fn a_real_model_dense_or_quantized_has_them_too() {
    let expected = json(&fixture("pair.json"));
    for name in ["base", "base-fp8"] {
        let home = tempdir().unwrap();
        let out = home.path().join("out");
        let outcome = calibrate(&job(&data(name), beginning(), &out, 2048), &Silent).unwrap();
        assert_eq!((outcome.tokens, outcome.sequences), (1000, 8));
        assert_agrees(
            name,
            &out,
            &outcome,
            &with_lengths(expected[name].clone(), &[128, 128, 128, 128, 128, 128, 128, 104]),
        );
        // The same tokens as transformers' tokenizer.
        let mut hasher = blake3::Hasher::new();
        for sequence in expected["sequences"].as_array().unwrap() {
            numbers(sequence).iter().for_each(|id| {
                hasher.update(&(*id as u32).to_le_bytes());
            });
            hasher.update(&u32::MAX.to_le_bytes());
        }
        let index = json(&out.join("calibration.json"));
        assert_eq!(index["text_digest"].as_str().unwrap(), hasher.finalize().to_hex().as_str());
        let verified = trephine().arg("verify").arg(&out).output().unwrap();
        assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
    }
}

#[test]
fn neither_threads_nor_memory_change_a_byte() {
    let home = tempdir().unwrap();
    let run = |name: &str, change: &dyn Fn(&mut Calibration), model: &str| {
        let out = home.path().join(name);
        let mut job = job(model, beginning(), &out, 96);
        change(&mut job);
        calibrate(&job, &Silent).unwrap();
        contents(&out)
    };
    let plain = run("plain", &|_| (), &data("base"));
    assert!(plain == run("one", &|job| job.threads = 1, &data("base")));
    assert!(plain == run("many", &|job| job.threads = 5, &data("base")));
    // Hidden states in a scratch file, one group at a time.
    let least = {
        let out = home.path().join("refused");
        let mut job = job(&data("base"), beginning(), &out, 96);
        (job.memory, job.threads) = (1 << 20, 1);
        let error = calibrate(&job, &Silent).unwrap_err();
        assert_eq!(error.kind(), Kind::Decide);
        let hint = error.cure().unwrap().to_owned();
        let number = hint.split("--memory ").nth(1).unwrap().split("MiB").next().unwrap();
        number.parse::<u64>().unwrap() << 20
    };
    assert!(plain == run("small", &|job| (job.memory, job.threads) = (least, 1), &data("base")));
    let seeded = run("seeded", &|job| job.seed = 1, &data("base"));
    assert!(plain != seeded, "the seed decides the sketches");
}

/// Panics once a number of layers is on the disk, which leaves what a kill leaves.
struct StopsAfter(AtomicUsize);

impl Progress for StopsAfter {
    fn journaled(&self) {
        assert!(self.0.fetch_sub(1, Ordering::SeqCst) > 1, "stopped here on purpose");
    }
}

#[test]
fn a_stopped_run_goes_on_by_layer_and_gives_the_same_bytes() {
    let home = tempdir().unwrap();
    for (name, model, corpus, layers) in [
        ("dense", data("base"), beginning(), 3),
        ("moe", fixture("qwen3_moe").to_str().unwrap().to_owned(), text("qwen3_moe"), 3),
    ] {
        let whole = home.path().join(format!("{name}-whole"));
        calibrate(&job(&model, corpus.clone(), &whole, 64), &Silent).unwrap();
        for stop in 1..=layers {
            let out = home.path().join(format!("{name}-{stop}"));
            let job = job(&model, corpus.clone(), &out, 64);
            let stopping = StopsAfter(AtomicUsize::new(stop));
            assert!(catch_unwind(AssertUnwindSafe(|| calibrate(&job, &stopping))).is_err());
            assert!(!out.join("B3SUMS").exists());
            let other = Calibration { k: 65, ..job.clone() };
            assert_eq!(
                calibrate(&other, &Silent).unwrap_err().kind(),
                Kind::Decide,
                "another k is another run"
            );
            let went_on = Counting::default();
            calibrate(&job, &went_on).unwrap();
            assert_eq!(went_on.0.load(Ordering::SeqCst), layers - stop + 1, "only what was left is done");
            assert!(contents(&out) == contents(&whole), "{name} stopped after {stop}");
            assert!(calibrate(&job, &Silent).unwrap().was_done);
        }
    }
}

/// Counts layers, and the head.
#[derive(Default)]
struct Counting(AtomicUsize);

impl Progress for Counting {
    fn analyzed(&self, _: &str, _: std::time::Duration) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn a_damaged_layer_is_made_again_and_a_foreign_folder_left_alone() {
    let home = tempdir().unwrap();
    let (out, whole) = (home.path().join("out"), home.path().join("whole"));
    let job = job(&data("base"), beginning(), &out, 64);
    calibrate(&Calibration { out: whole.clone(), ..job.clone() }, &Silent).unwrap();
    let stopping = StopsAfter(AtomicUsize::new(2));
    assert!(catch_unwind(AssertUnwindSafe(|| calibrate(&job, &stopping))).is_err());
    let file = out.join("calibration-00000.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    calibrate(&job, &Silent).unwrap();
    assert!(contents(&out) == contents(&whole));
    let foreign = home.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("thesis.txt"), "years of work").unwrap();
    let error =
        calibrate(&Calibration { out: foreign.clone(), overwrite: true, ..job }, &Silent).unwrap_err();
    assert_eq!(error.kind(), Kind::Decide);
    assert_eq!(fs::read_to_string(foreign.join("thesis.txt")).unwrap(), "years of work");
}

#[test]
fn what_cannot_be_run_is_said() {
    let home = tempdir().unwrap();
    let model = home.path().join("model");
    fs::create_dir(&model).unwrap();
    for name in ["model.safetensors", "config.json", "tokenizer.json"] {
        fs::copy(format!("{}/{name}", data("base")), model.join(name)).unwrap();
    }
    let out = home.path().join("out");
    let run =
        |corpus: Corpus| calibrate(&job(model.to_str().unwrap(), corpus, &out, 64), &Silent).unwrap_err();
    let file = home.path().join("chat.jsonl");
    fs::write(&file, "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}\n").unwrap();
    let error = run(Corpus { files: vec![file.clone()], ..beginning() });
    assert!(error.to_string().contains("no chat template"), "{error}");
    fs::write(&file, "{\"text\": \"Hi\"}\n{\"prompt\": 1}\n").unwrap();
    let error = run(Corpus { files: vec![file.clone()], ..beginning() });
    assert!(error.to_string().contains("line 2 has neither 'messages' nor 'text'"), "{error}");
    let error = run(Corpus { files: vec![home.path().join("none.txt")], ..beginning() });
    assert!(error.to_string().contains("text file not found"), "{error}");
    let error = run(Corpus { tokenizer: Some(home.path().to_owned()), ..beginning() });
    assert!(error.to_string().contains("no tokenizer.json"), "{error}");
    fs::write(model.join("tokenizer.json"), "{\"version\": \"1.0\"}").unwrap();
    assert_eq!(run(beginning()).kind(), Kind::Input);
    let config = fs::read_to_string(model.join("config.json")).unwrap();
    fs::write(model.join("config.json"), config.replace("\"qwen3\"", "\"mamba\"")).unwrap();
    let error = run(beginning());
    assert!(error.to_string().contains("models of type 'mamba' are not supported"), "{error}");
    assert!(error.cure().unwrap().contains("scripts/calibrate.py"));
    assert!(!out.exists(), "nothing was begun");
}
