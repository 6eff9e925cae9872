//! `extract --calibration` and `--hybrid`: errors measured by this test in f64, bytes that depend on nothing but the
//! inputs.

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use faer::Mat;
use half::bf16;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tempfile::{TempDir, tempdir};
use trephine::checkpoint::Checkpoint;
use trephine::commands::calibrate::{Calibration, calibrate};
use trephine::commands::extract::{Extraction, extract, plan};
use trephine::corpus::Corpus;
use trephine::run::{Progress, Silent};

use crate::common::pair::{Tensor, changed, dense, noise, pair, read_file, values, write_file};
use crate::common::{assert_same, contents, data, extract_with, job, manifest, trephine};

/// A calibration of the tuned model by the built-in text: once for all tests. Fewer rows than tokens, so that there
/// are sketches.
fn calibration() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let home = tempdir().unwrap();
        let corpus = Corpus { files: Vec::new(), tokenizer: None, sequence: 128, tokens: 2000 };
        let (model, out) = (data("tuned"), home.path().join("calibration"));
        let job = Calibration {
            model,
            corpus,
            out,
            k: 512,
            seed: 0,
            threads: 2,
            memory: 1 << 30,
            overwrite: false,
        };
        calibrate(&job, &Silent).unwrap();
        home
    });
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| folder.path().join("calibration"))
}

fn calibrated(out: &Path) -> Extraction {
    let calibration = Some(calibration().to_str().unwrap().to_owned());
    Extraction { calibration, ..job(&data("base-fp8"), &data("tuned"), out) }
}

fn weight(checkpoint: &Checkpoint, name: &str) -> Mat<f64> {
    let module = checkpoint.module(name).unwrap();
    let [rows, columns] = module.shape();
    let mut values = vec![0f32; rows * columns];
    module.panel(checkpoint, 0..rows, &mut values).unwrap();
    Mat::from_fn(rows, columns, |i, j| f64::from(values[i * columns + j]))
}

/// `tuned - base` of a module.
fn delta(name: &str) -> Mat<f64> {
    let open = |name: &str| Checkpoint::open(&data(name)).unwrap();
    weight(&open("tuned"), name) - weight(&open("base-fp8"), name)
}

/// The sketch of a module's inputs with the exact diagonal, over the root of the count: `R` with `R^T·R = C`.
fn root(name: &str) -> Mat<f64> {
    let index: Value =
        serde_json::from_slice(&fs::read(calibration().join("calibration.json")).unwrap()).unwrap();
    let inputs = index["inputs"].as_object().unwrap();
    let feeds = |input: &Value| input["modules"].as_array().unwrap().iter().any(|module| module == name);
    let (input, about) = inputs.iter().find(|(_, input)| feeds(input)).unwrap();
    let bytes = fs::read(calibration().join(about["file"].as_str().unwrap())).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |end: &str| file.tensor(&format!("{input}.{end}")).unwrap();
    let sketch = tensor("sketch");
    let values: Vec<f64> =
        sketch.data().as_chunks::<2>().0.iter().map(|b| f64::from(bf16::from_le_bytes(*b))).collect();
    let diagonal = tensor("diagonal");
    let diagonal: Vec<f64> =
        diagonal.data().as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect();
    let (n, count) = (diagonal.len(), about["count"].as_f64().unwrap());
    let squares = |j: usize| values.iter().skip(j).step_by(n).map(|v| v * v).sum::<f64>();
    let scale: Vec<f64> = (0..n).map(|j| (diagonal[j] / squares(j) / count).sqrt()).collect();
    Mat::from_fn(values.len() / n, n, |i, j| values[i * n + j] * scale[j])
}

/// `delta - B·A` of a module of an adapter.
fn rest(out: &Path, name: &str) -> Mat<f64> {
    let factors = dense(&out.join("adapter_model.safetensors"));
    let factor = |which: &str| {
        let (shape, values) = &factors[&format!("base_model.model.{name}.lora_{which}.weight")];
        Mat::from_fn(shape[0], shape[1], |i, j| values[i * shape[1] + j])
    };
    delta(name) - factor("B") * factor("A")
}

fn module<'a>(manifest: &'a Value, name: &str) -> &'a Value {
    manifest["modules"].as_array().unwrap().iter().find(|module| module["name"] == name).unwrap()
}

const MODULES: [&str; 3] =
    ["model.layers.0.mlp.gate_proj", "model.layers.1.mlp.down_proj", "model.layers.2.self_attn.k_proj"];

#[test]
fn the_error_of_the_outputs_is_the_least_and_both_errors_are_those_measured() {
    let home = tempdir().unwrap();
    let (weighted, plain) = (home.path().join("weighted"), home.path().join("plain"));
    extract(&calibrated(&weighted), &Silent).unwrap();
    extract(&job(&data("base-fp8"), &data("tuned"), &plain), &Silent).unwrap();
    let said = manifest(&weighted);
    assert_eq!(
        (&said["calibration"]["kind"], &said["calibration"]["tokens"]),
        (&"second_moments".into(), &2000.into())
    );
    for name in MODULES {
        let (root, delta) = (root(name), delta(name));
        let outputs = |matrix: &Mat<f64>| (matrix * root.transpose()).norm_l2();
        let (off, other) = (rest(&weighted, name), rest(&plain, name));
        let best = {
            let values = (&delta * root.transpose()).singular_values().unwrap();
            values.iter().skip(8).map(|s| s * s).sum::<f64>().sqrt()
        };
        assert!(outputs(&off) <= 1.006 * best + 0.004 * outputs(&delta), "{name}: {} {best}", outputs(&off));
        assert!(outputs(&off) < 0.97 * outputs(&other), "{name}: {} {}", outputs(&off), outputs(&other));
        assert!(off.norm_l2() > other.norm_l2(), "{name}: the error of the weights is the price");
        let record = module(&said, name);
        assert_eq!(record["minimized"], "outputs", "{name}");
        let relative = |value: &Value| value["relative_error"].as_f64().unwrap();
        let expected = off.norm_l2() / delta.norm_l2();
        assert!((relative(record) - expected).abs() < 1e-4, "{name}: {} {expected}", relative(record));
        let expected = outputs(&off) / outputs(&delta);
        let found = relative(&record["outputs"]);
        assert!((found / expected - 1.0).abs() < 0.03, "{name}: {found} {expected}");
    }
    assert!(manifest(&plain).get("calibration").is_none());
    let mut verify = trephine();
    verify.args([
        "verify",
        weighted.to_str().unwrap(),
        "--base",
        &data("base-fp8"),
        "--tuned",
        &data("tuned"),
    ]);
    let verified = verify.output().unwrap();
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
    let card = fs::read_to_string(weighted.join("README.md")).unwrap();
    for words in ["minimize the error of the layers' outputs", "| captured | of outputs |"] {
        assert!(card.contains(words), "no '{words}' in {card}");
    }
}

#[test]
fn a_lower_rank_is_near_the_least_error_of_the_outputs_too() {
    let home = tempdir().unwrap();
    let (both, alone) = (home.path().join("both"), home.path().join("alone"));
    let mut job = calibrated(&both);
    (job.deciding.rank, job.deciding.lower_ranks) = (16, [4].into());
    extract(&job, &Silent).unwrap();
    let mut job = calibrated(&alone);
    job.deciding.rank = 4;
    extract(&job, &Silent).unwrap();
    let lower = both.join("rank-4");
    let (said, other) = (manifest(&lower), manifest(&alone));
    for name in MODULES {
        let (root, delta, off) = (root(name), delta(name), rest(&lower, name));
        let outputs = |matrix: &Mat<f64>| (matrix * root.transpose()).norm_l2();
        let relative = |value: &Value| value["relative_error"].as_f64().unwrap();
        let record = module(&said, name);
        let expected = off.norm_l2() / delta.norm_l2();
        assert!((relative(record) - expected).abs() < 1e-3, "{name}: {} {expected}", relative(record));
        let (found, expected) = (relative(&record["outputs"]), outputs(&off) / outputs(&delta));
        assert!((found / expected - 1.0).abs() < 0.03, "{name}: {found} {expected}");
        let alone = relative(&module(&other, name)["outputs"]);
        assert!(found <= 1.01 * alone, "{name}: {found}, and {alone} by itself");
    }
}

/// Panics once a number of records is safe: what is left is what a kill leaves.
struct StopsAfter(AtomicUsize);

impl Progress for StopsAfter {
    fn journaled(&self) {
        assert!(self.0.fetch_sub(1, Ordering::SeqCst) > 1, "stopped here on purpose");
    }
}

#[test]
fn memory_threads_and_interruptions_change_no_byte() {
    let home = tempdir().unwrap();
    let dense_base = || Some(data("base"));
    for hybrid in [false, true] {
        let run = |name: &str, change: &dyn Fn(&mut Extraction)| {
            let out = home.path().join(format!("{name}-{hybrid}"));
            let mut job = calibrated(&out);
            if hybrid {
                (job.calibration, job.hybrid, job.deciding.hybrid_share) = (None, dense_base(), Some(0.5));
            }
            change(&mut job);
            extract(&job, &Silent).unwrap();
            contents(&out)
        };
        let whole: BTreeMap<_, _> = run("whole", &|_| ());
        let one = run("one", &|job| (job.running.threads, job.running.memory) = (1, 200 << 20));
        assert!(whole == one, "hybrid: {hybrid}");
        let out = home.path().join(format!("stopped-{hybrid}"));
        let mut job = calibrated(&out);
        if hybrid {
            (job.calibration, job.hybrid, job.deciding.hybrid_share) = (None, dense_base(), Some(0.5));
        }
        let stopping = StopsAfter(AtomicUsize::new(4));
        assert!(catch_unwind(AssertUnwindSafe(|| extract(&job, &stopping))).is_err());
        // Without the calibration, or the dense base, it is another run.
        let other = Extraction { calibration: None, hybrid: None, ..job.clone() };
        let error = extract(&other, &Silent).unwrap_err().to_string();
        let option = if hybrid { "--hybrid" } else { "--calibration" };
        assert!(error.contains("different run") && error.contains(option), "{error}");
        extract(&job, &Silent).unwrap();
        assert_same(&out, &whole, "resumed");
    }
}

#[test]
fn a_delta_that_is_computed_anew_at_every_pass_gives_the_same_bytes() {
    let home = tempdir().unwrap();
    let name = "model.layers.0.mlp.up_proj";
    let (rows, n) = (64, 512);
    let (base, tuned) = pair(home.path(), &[(name, [1536, n])]);
    let sketch: Vec<f32> =
        noise(1, rows * n).iter().enumerate().map(|(at, v)| v * (1 + at % 7) as f32).collect();
    let bytes =
        |values: &[f32]| values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect::<Vec<u8>>();
    let squares = |j: usize| sketch.iter().skip(j).step_by(n).map(|v| v * v).sum::<f32>();
    let diagonal: Vec<u8> = (0..n).flat_map(|j| squares(j).to_le_bytes()).collect();
    let (sketch, count) = (bytes(&sketch), 640i64.to_le_bytes());
    let view = |dtype, shape: Vec<usize>, bytes| TensorView::new(dtype, shape, bytes).unwrap();
    let tensors = [
        (format!("{name}.sketch"), view(Dtype::BF16, vec![rows, n], &sketch[..])),
        (format!("{name}.diagonal"), view(Dtype::F32, vec![n], &diagonal)),
        (format!("{name}.count"), view(Dtype::I64, vec![1], &count)),
    ];
    let inputs = format!("{{\"{name}\": [\"{name}\"]}}");
    let metadata = [("format", "trephine-calibration"), ("version", "1"), ("inputs", &inputs)];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let file = home.path().join("calibration.safetensors");
    fs::write(&file, safetensors::serialize(tensors, Some(metadata)).unwrap()).unwrap();
    let run = |folder: &str, calibrated: bool, is_held: bool| {
        let out = home.path().join(folder);
        let calibration = calibrated.then(|| file.to_str().unwrap().to_owned());
        let mut job = Extraction { calibration, ..job(&base, &tuned, &out) };
        // Both ways of D·R^T: formed, and factor by factor.
        job.deciding.rank = 4;
        if !is_held {
            job.running.threads = 1;
            job.running.memory = plan(&job).unwrap().least_memory;
        }
        assert_eq!(plan(&job).unwrap().modules[0].holding.held, is_held, "{folder}");
        extract(&job, &Silent).unwrap();
        contents(&out)
    };
    let held = run("held", true, true);
    assert!(held == run("recomputed", true, false));
    assert!(held != run("plain", false, true));
}

#[test]
fn another_calibration_is_another_run() {
    let home = tempdir().unwrap();
    let copy = home.path().join("calibration");
    crate::common::copy(calibration(), &copy);
    let out = home.path().join("out");
    let mut job = calibrated(&out);
    job.calibration = Some(copy.to_str().unwrap().into());
    let stopping = StopsAfter(AtomicUsize::new(2));
    assert!(catch_unwind(AssertUnwindSafe(|| extract(&job, &stopping))).is_err());
    // The same names and sizes, but one other bit in a sketch.
    let file = copy.join("calibration-00001.safetensors");
    let bytes = fs::read(&file).unwrap();
    crate::common::flip(&file, bytes.len() / 2);
    let error = extract(&job, &Silent).unwrap_err().to_string();
    assert!(error.contains("calibration-00001.safetensors"), "{error}");
}

/// An importance matrix of the calibration's diagonals, for the modules of `layers`: as GGUF, and in the older layout.
fn importance(home: &Path, layers: std::ops::Range<usize>) -> [PathBuf; 2] {
    let kinds = [
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    let mut entries = Vec::new();
    for layer in layers {
        for (ours, theirs) in kinds {
            let root = root(&format!("model.layers.{layer}.{ours}"));
            let squares = |j: usize| (root.col(j).squared_norm_l2() * 100.0) as f32;
            entries.push((
                format!("blk.{layer}.{theirs}.weight"),
                (0..root.ncols()).map(squares).collect::<Vec<f32>>(),
            ));
        }
    }
    let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let mut dat = (entries.len() as u32).to_le_bytes().to_vec();
    for (name, sums) in &entries {
        dat.extend((name.len() as u32).to_le_bytes());
        dat.extend(name.as_bytes());
        dat.extend(100u32.to_le_bytes());
        dat.extend((sums.len() as u32).to_le_bytes());
        dat.extend(bytes(sums));
    }
    // What follows is not needed: the number of calls, and the text's name.
    dat.extend(1u32.to_le_bytes());
    let text = |text: &str| [(text.len() as u64).to_le_bytes().to_vec(), text.as_bytes().to_vec()].concat();
    let mut header = b"GGUF".to_vec();
    header.extend(3u32.to_le_bytes());
    header.extend((2 * entries.len() as u64).to_le_bytes());
    header.extend(1u64.to_le_bytes());
    header.extend(text("general.type"));
    header.extend(8u32.to_le_bytes());
    header.extend(text("imatrix"));
    let mut body = Vec::new();
    for (name, sums) in &entries {
        for (end, values) in [("in_sum2", sums.clone()), ("counts", vec![100f32])] {
            header.extend(text(&format!("{name}.{end}")));
            header.extend(2u32.to_le_bytes());
            header.extend((values.len() as u64).to_le_bytes());
            header.extend(1u64.to_le_bytes());
            header.extend(0u32.to_le_bytes());
            header.extend((body.len() as u64).to_le_bytes());
            body.extend(bytes(&values));
            body.resize(body.len().next_multiple_of(32), 0);
        }
    }
    header.resize(header.len().next_multiple_of(32), 0);
    header.extend(body);
    let paths = ["imatrix.gguf", "imatrix.dat"].map(|name| home.join(name));
    fs::write(&paths[0], header).unwrap();
    fs::write(&paths[1], dat).unwrap();
    paths
}

#[test]
fn an_importance_matrix_serves_as_a_diagonal_and_is_said_to_be_the_weaker_one() {
    let home = tempdir().unwrap();
    let mut weights = Vec::new();
    for matrix in importance(home.path(), 0..2) {
        let out = home.path().join(format!("of-{}", matrix.file_name().unwrap().to_str().unwrap()));
        let more = ["--rank", "8", "--calibration", matrix.to_str().unwrap()];
        let ended = extract_with(&data("base-fp8"), &data("tuned"), &out, &more).code(0);
        assert!(ended.stdout.contains("minimized  the error of the layers' outputs"), "{}", ended.stdout);
        let said = manifest(&out);
        // The third layer is not in it.
        let notes = said["notes"].to_string();
        for words in
            ["the mean squares of single inputs alone", "no token of the calibration reached model.layers.2."]
        {
            assert!(notes.contains(words), "no '{words}' in {notes}");
        }
        assert!(notes.contains("and 6 more"), "{notes}");
        let minimized = |name: &str| module(&said, name)["minimized"].as_str().unwrap().to_owned();
        assert_eq!([MODULES[0], MODULES[2]].map(minimized), ["outputs", "weights"]);
        let name = MODULES[0];
        let size: Vec<f64> = root(name).col_iter().map(|column| column.norm_l2()).collect();
        let scaled =
            |matrix: &Mat<f64>| Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| matrix[(i, j)] * size[j]);
        let values = scaled(&delta(name)).singular_values().unwrap();
        let best = values.iter().skip(8).map(|s| s * s).sum::<f64>().sqrt();
        let off = scaled(&rest(&out, name)).norm_l2();
        assert!(off <= 1.006 * best + 0.004 * scaled(&delta(name)).norm_l2(), "{off} {best}");
        weights.push(fs::read(out.join("adapter_model.safetensors")).unwrap());
    }
    assert!(weights[0] == weights[1], "both layouts say the same");
}

#[test]
fn a_hybrid_holds_the_change_in_its_first_half() {
    let home = tempdir().unwrap();
    let out = home.path().join("out");
    let more = ["--rank", "8", "--hybrid", &data("base"), "--hybrid-share", "0.25"];
    let ended = extract_with(&data("base-fp8"), &data("tuned"), &out, &more).code(0);
    assert!(ended.stdout.contains("minimized  the error of the change from base"), "{}", ended.stdout);
    let said = manifest(&out);
    let open = |name: &str| Checkpoint::open(&data(name)).unwrap();
    let factors = dense(&out.join("adapter_model.safetensors"));
    for name in MODULES {
        let record = module(&said, name);
        assert_eq!((&record["rank"], &record["minimized"]), (&8.into(), &"hybrid".into()), "{name}");
        let change = weight(&open("tuned"), name) - weight(&open("base"), name);
        let part = |columns: std::ops::Range<usize>| {
            let factor = |which: &str| {
                let (shape, values) = &factors[&format!("base_model.model.{name}.lora_{which}.weight")];
                Mat::from_fn(shape[0], shape[1], |i, j| values[i * shape[1] + j])
            };
            factor("B").subcols(columns.start, columns.len())
                * factor("A").subrows(columns.start, columns.len())
        };
        let best = |matrix: &Mat<f64>, rank: usize| {
            let values = matrix.singular_values().unwrap();
            values.iter().skip(rank).map(|s| s * s).sum::<f64>().sqrt()
        };
        let first = (&change - part(0..2)).norm_l2();
        assert!(first <= 1.005 * best(&change, 2) + 0.004 * change.norm_l2(), "{name}: the change, {first}");
        let left = delta(name) - part(0..2);
        let second = rest(&out, name).norm_l2();
        assert!(second <= 1.005 * best(&left, 6) + 0.004 * left.norm_l2(), "{name}: the rest, {second}");
        let expected = second / delta(name).norm_l2();
        let found = record["relative_error"].as_f64().unwrap();
        assert!((found - expected).abs() < 1e-4, "{name}: {found} {expected}");
    }
}

#[test]
fn an_adapter_of_mostly_noise_says_what_to_do_instead() {
    let home = tempdir().unwrap();
    let tuned = home.path().join("tuned");
    fs::create_dir(&tuned).unwrap();
    fs::copy(format!("{}/config.json", data("base")), tuned.join("config.json")).unwrap();
    let mut tensors = read_file(&Path::new(&data("base")).join("model.safetensors"));
    for (at, tensor) in tensors.iter_mut().enumerate().filter(|(_, t)| t.name.ends_with("_proj.weight")) {
        let weights: Vec<f32> = values(tensor).into_iter().map(|v| v as f32).collect();
        let shape: [usize; 2] = tensor.shape[..].try_into().unwrap();
        *tensor = Tensor::bf16(&tensor.name, &shape, &changed(&weights, shape, 2, 0.0005, at as u64));
    }
    write_file(&tuned.join("model.safetensors"), &tensors);
    let tuned = tuned.to_str().unwrap();
    let words = "is quantization noise of the base, not the fine-tune";
    let run = |name: &str, base: &str, tuned: &str, more: &[&str]| {
        let out = home.path().join(name);
        let ended = extract_with(base, tuned, &out, &[&["--rank", "4"], more].concat()).code(0);
        (ended.stdout, fs::read_to_string(out.join("README.md")).unwrap())
    };
    let (said, card) = run("plain", &data("base-fp8"), tuned, &[]);
    let lines: Vec<&str> = said.lines().skip_while(|line| !line.contains(words)).take(2).collect();
    assert!(lines[1].contains("--calibration DIR, made by `trephine calibrate"), "{said}");
    assert!(lines[1].contains("--hybrid DENSE_BASE") && lines[1].contains("Method A"), "{said}");
    assert!(card.contains(words), "{card}");
    let calibration = calibration().to_str().unwrap();
    for (name, base, tuned, more) in [
        ("calibrated", data("base-fp8"), tuned, &["--calibration", calibration][..]),
        ("hybrid", data("base-fp8"), tuned, &["--hybrid", &data("base")]),
        ("method-a", data("base"), tuned, &[]),
        ("large-change", data("base-fp8"), &data("tuned"), &[]),
    ] {
        let (said, card) = run(name, &base, tuned, more);
        assert!(!said.contains(words) && !card.contains(words), "{name}: {said}");
    }
}

#[test]
fn what_does_not_go_together_is_refused() {
    let home = tempdir().unwrap();
    let out = home.path().join("out");
    let calibration = calibration().to_str().unwrap();
    let refused = |base: &str, more: &[&str], code: i32, words: &str| {
        extract_with(base, &data("tuned"), &out, more).code(code).says(words);
        assert!(!out.exists(), "{more:?}");
    };
    let (fp8, base) = (data("base-fp8"), data("base"));
    refused(&fp8, &["--calibration", calibration, "--hybrid", &base], 2, "cannot be used with");
    refused(&base, &["--hybrid", &base], 2, "--hybrid is for a quantized base");
    refused(&fp8, &["--hybrid", &base, "--rank", "1"], 2, "has no two parts");
    refused(&fp8, &["--hybrid", &base, "--energy", "0.5"], 2, "a hybrid has two");
    refused(&fp8, &["--hybrid", &base, "--hybrid-share", "1"], 2, "outside (0, 1)");
    refused(&fp8, &["--calibration", "nowhere"], 3, "there is no such calibration");
    refused(&fp8, &["--calibration", &base], 3, "no finished calibration");
    let weights = format!("{base}/model.safetensors");
    refused(&fp8, &["--calibration", &weights], 3, "this is not a calibration");
    let text = home.path().join("imatrix.dat");
    fs::write(&text, "not at all").unwrap();
    refused(&fp8, &["--calibration", text.to_str().unwrap()], 3, "not an importance matrix");
    let [gguf, _] = importance(home.path(), 0..1);
    let cut = home.path().join("cut.gguf");
    fs::write(&cut, &fs::read(gguf).unwrap()[..600]).unwrap();
    refused(&fp8, &["--calibration", cut.to_str().unwrap()], 3, "cut");
    let lm = ["--include", "lm_head", "--calibration", home.path().join("imatrix.gguf").to_str().unwrap()]
        .map(str::to_owned);
    let lm: Vec<&str> = lm.iter().map(String::as_str).collect();
    refused(&fp8, &lm, 3, "knows none of the selected modules");
}

#[test]
fn one_file_of_a_calibration_may_be_used_alone() {
    let home = tempdir().unwrap();
    let whole = home.path().join("whole");
    extract(&calibrated(&whole), &Silent).unwrap();
    let out = home.path().join("layer");
    let mut job = calibrated(&out);
    job.calibration = Some(calibration().join("calibration-00001.safetensors").to_str().unwrap().into());
    job.deciding.include = vec!["*.layers.1.*_proj".into()];
    extract(&job, &Silent).unwrap();
    let [whole, layer] = [whole, out].map(|out| manifest(&out));
    for name in ["model.layers.1.mlp.down_proj", "model.layers.1.self_attn.v_proj"] {
        assert_eq!(module(&layer, name), module(&whole, name));
    }
}
