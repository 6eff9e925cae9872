//! `analyze`: every number against numpy and scipy, and results that do not depend on threads, memory or interruptions.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use safetensors::Dtype;
use serde_json::{Value, json};
use trephine::commands::analyze::{ANALYSIS, About, AnalysisOptions, Analyzing, analyze};
use trephine::pipeline::RunOptions;
use trephine::quant::encode::encode_int4;
use trephine::run::{Progress, Silent};

use crate::common::pair::{Tensor, changed, read_file, values, write_file};
use crate::common::{contents, data, run, trephine};

fn job(out: &Path) -> Analyzing {
    Analyzing {
        base: data("base"),
        base_quantized: data("base-fp8"),
        tuned: data("tuned"),
        tuned_quantized: None,
        out: out.to_owned(),
        asking: AnalysisOptions {
            rank: 16,
            seed: 0,
            include: vec!["*.layers.1.*_proj".into()],
            exclude: Vec::new(),
        },
        running: RunOptions::new(2, 1 << 30),
    }
}

fn analysis(out: &Path) -> Value {
    serde_json::from_slice(&fs::read(out.join(ANALYSIS)).unwrap()).unwrap()
}

/// Asserts that every number of `expected` is in `found`, to 1e-5 of its size, or of 1 if it is smaller than that.
fn agree(at: &str, expected: &Value, found: &Value, numbers: &mut usize) {
    match (expected, found) {
        (Value::Object(expected), Value::Object(found)) => {
            for (key, expected) in expected {
                let found = found.get(key).unwrap_or_else(|| panic!("no {key} in {at}"));
                agree(&format!("{at}.{key}"), expected, found, numbers);
            }
        }
        (Value::Array(expected), Value::Array(found)) => {
            assert!(expected.len() <= found.len(), "{at}");
            let pairs = expected.iter().zip(found).enumerate();
            pairs.for_each(|(index, (e, f))| agree(&format!("{at}[{index}]"), e, f, numbers));
        }
        (Value::Number(e), Value::Number(f)) => {
            *numbers += 1;
            let (e, f) = (e.as_f64().unwrap(), f.as_f64().unwrap());
            // Norms, singular values and standard errors are all below 1: they are compared by their own size.
            let own = ["norms", "standard_error", "spectrum"].iter().any(|word| at.contains(word));
            let size = if own { e.abs() } else { e.abs().max(1.0) };
            assert!((e - f).abs() <= 1e-5 * size, "{at}: {f}, scipy has {e}");
        }
        _ => assert_eq!(expected, found, "{at}"),
    }
}

#[test]
fn every_number_is_scipys() {
    let out = tempfile::tempdir().unwrap();
    analyze(&job(out.path()), &Silent).unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/analysis/expected.json");
    let expected: Value = serde_json::from_slice(&fs::read(fixture).unwrap()).unwrap();
    let mut numbers = 0;
    agree("analysis", &expected, &analysis(out.path()), &mut numbers);
    assert!(numbers > 1000, "only {numbers} were compared");
}

#[test]
fn neither_threads_nor_memory_change_a_byte() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let all = |out: &Path, threads, memory| {
        let mut job = job(out);
        job.asking.include.clear();
        job.running = RunOptions::new(threads, memory);
        job
    };
    analyze(&all(one.path(), 3, 2 << 30), &Silent).unwrap();
    let error = analyze(&all(two.path(), 1, 1 << 20), &Silent).unwrap_err();
    let cure = error.cure().unwrap().strip_prefix("give --memory ").unwrap();
    let least: u64 = cure.split("MiB").next().unwrap().parse().unwrap();
    assert!(error.to_string().starts_with("not enough memory: 1 MiB given, "), "{error}");
    analyze(&all(two.path(), 1, least << 20), &Silent).unwrap();
    assert_eq!(contents(one.path()), contents(two.path()));
    assert_eq!(contents(one.path()).keys().collect::<Vec<_>>(), ["B3SUMS", ANALYSIS]);
}

/// Panics out of the run after some modules, the closest thing to a kill within one process.
struct StopAfter(usize, AtomicUsize);

impl Progress for StopAfter {
    fn journaled(&self) {
        let done = self.1.fetch_add(1, Ordering::SeqCst) + 1;
        assert!(done < self.0, "stopped on purpose");
    }
}

#[test]
fn a_stopped_run_goes_on_and_ends_with_the_same_bytes() {
    let (whole, stopped) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    analyze(&job(whole.path()), &Silent).unwrap();
    let result = std::panic::catch_unwind(|| {
        analyze(&job(stopped.path()), &StopAfter(3, AtomicUsize::new(0))).map(drop)
    });
    assert!(result.is_err());
    assert!(stopped.path().join(".trephine/journal").exists() && !stopped.path().join(ANALYSIS).exists());
    // A run with other options does not continue it.
    let mut other = job(stopped.path());
    other.asking.rank = 8;
    let error = analyze(&other, &Silent).unwrap_err();
    assert!(
        error.to_string().contains("cannot resume: the folder belongs to a different run: --rank was"),
        "{error}"
    );
    let counted = StopAfter(usize::MAX, AtomicUsize::new(0));
    let (_, was_done) = analyze(&job(stopped.path()), &counted).unwrap();
    assert!(
        !was_done && (4..=5).contains(&counted.1.load(Ordering::SeqCst)),
        "finished modules are not done again"
    );
    assert_eq!(contents(whole.path()), contents(stopped.path()));
    let (_, was_done) = analyze(&job(stopped.path()), &Silent).unwrap();
    assert!(was_done);
}

#[test]
fn a_stored_copy_gives_what_rounding_here_gives() {
    // The quantized base is given as the tuned one as well: N_t is N_b, and there is no change.
    let out = tempfile::tempdir().unwrap();
    let mut job = job(out.path());
    (job.tuned, job.tuned_quantized) = (data("base"), Some(data("base-fp8")));
    let (stored, _) = analyze(&job, &Silent).unwrap();
    assert_eq!(stored.tuned_noise, "a checkpoint");
    for module in &stored.modules {
        assert!((module.noise_and_noise.value - 1.0).abs() < 1e-12 && module.noise_and_noise.significant);
        assert_eq!((module.norms.change, module.unchanged, module.change_and_noise.p_value), (0.0, 1.0, 1.0));
        assert!(module.subspaces.is_empty() && !module.change_and_noise.significant);
        assert_eq!((module.remaining.method_a, module.remaining.noise), (1.0, 1.0));
    }
    assert!(stored.verdict[0].text.starts_with("Tuned and base are equal"), "{}", stored.verdict[0].text);
    job.tuned_quantized = None;
    job.running.overwrite = true;
    let (rounded, _) = analyze(&job, &Silent).unwrap();
    assert_eq!(rounded.modules, stored.modules);
}

#[test]
fn what_cannot_be_analyzed_is_said() {
    let home = tempfile::tempdir().unwrap();
    let refused = |job: &Analyzing| analyze(job, &Silent).unwrap_err();
    let mut job = job(home.path());
    job.asking.rank = 0;
    assert_eq!(refused(&job).to_string(), "rank 0 holds nothing");
    job.asking.rank = 4;
    job.asking.include = vec!["nothing".into()];
    assert!(refused(&job).to_string().starts_with("no module of the base is selected"));
    job.asking.include.clear();
    fs::write(home.path().join("mine.txt"), "").unwrap();
    assert!(refused(&job).to_string().contains("holds something else ('mine.txt')"));
    assert_eq!(contents(home.path()).len(), 1);
}

#[test]
fn a_dense_base_in_place_of_the_quantized_one_is_refused() {
    let out = tempfile::tempdir().unwrap();
    let mut job = job(out.path());
    job.base_quantized = data("base");
    let error = analyze(&job, &Silent).unwrap_err();
    assert_eq!(error.kind(), trephine::Kind::Decide);
    assert!(error.to_string().contains("--base-quantized is not quantized"), "{error}");
}

#[test]
fn the_command_prints_a_table_and_a_verdict() {
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("out");
    let mut command = trephine();
    command.args(["analyze", "-q", "--rank", "8", "--include", "*.layers.0.*_proj", "--base", &data("base")]);
    command.args(["--base-quantized", &data("base-fp8"), "--tuned", &data("tuned"), "--out"]).arg(&out);
    let ended = run(&mut command).code(0);
    assert!(ended.stderr.is_empty(), "{}", ended.stderr);
    for words in ["cos(D, N_b)", "gate_proj", "all ", "times as large in norm", "block FP8 (128 x 128"] {
        assert!(ended.stdout.contains(words), "no '{words}' in\n{}", ended.stdout);
    }
    let json = run(command.arg("--json")).code(0).stdout;
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), analysis(&out));
}

#[test]
fn the_figures_of_the_docs_are_those_of_the_pair() {
    let home = tempfile::tempdir().unwrap();
    for (rank, left, noise) in [
        (8, ["80.2", "79.8"], "0.8"),
        (16, ["70.1", "69.1"], "1.2"),
        (32, ["56.4", "54.1"], "1.8"),
        (64, ["40.7", "34.7"], "3.0"),
    ] {
        let mut job = job(&home.path().join(rank.to_string()));
        (job.asking.rank, job.asking.include) = (rank, Vec::new());
        let (analysis, _) = analyze(&job, &Silent).unwrap();
        let total = &analysis.total;
        let percent = |share: f64| format!("{:.1}", 100.0 * share);
        assert_eq!([total.remaining.method_a, total.remaining.method_b].map(percent), left);
        assert_eq!(
            (percent(total.spent_on_noise), percent(total.remaining.noise)),
            (noise.into(), "27.5".into())
        );
        assert_eq!((total.suggested_rank, total.modules), ([30, 53, 107], 21));
        assert_eq!(format!("{:.2}", total.norms.signal_to_noise.unwrap()), "3.50");
        let [change, noise] = [&total.change_and_noise, &total.noise_and_noise];
        assert_eq!(format!("{:.4} {:.4}", change.value, change.standard_error), "-0.0003 0.0012");
        assert_eq!(
            format!("{:.3} {:.4} {:.0e}", noise.value, noise.standard_error, noise.p_value),
            "0.011 0.0022 6e-7"
        );
        assert_eq!((total.noise_and_noise_significant, total.change_and_noise_significant), (3, 0));
        assert_eq!(format!("{:.2}", total.magnitude_correlation.unwrap()), "0.52");
        let text = &analysis.verdict[0].text;
        assert!(text.starts_with(&format!("At rank {rank}, ")), "{text}");
        assert!(
            text.contains("(signal to noise 3.50). Method B holds the change as Method A does"),
            "{text}"
        );
        assert!(!text.contains("pays: "), "a distance of weights is no verdict: {text}");
    }
}

/// One of the repository's checkpoints as W4A16 by compressed-tensors, in groups of 32.
fn int4(of: &str, folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    let mut tensors = Vec::new();
    for tensor in read_file(&Path::new(&data(of)).join("model.safetensors")) {
        let Some(module) = tensor.name.strip_suffix("_proj.weight") else {
            tensors.push(tensor);
            continue;
        };
        let [rows, columns]: [usize; 2] = tensor.shape[..].try_into().unwrap();
        let weight: Vec<f32> = values(&tensor).into_iter().map(|v| v as f32).collect();
        let (mut codes, mut scales) = (vec![0i8; weight.len()], vec![0f32; weight.len() / 32]);
        encode_int4(&weight, columns, 32, Dtype::BF16, &mut codes, &mut scales);
        let packed = codes.chunks(2).map(|pair| (pair[0] + 8) as u8 | ((pair[1] + 8) as u8) << 4).collect();
        let shape = [rows, columns].iter().flat_map(|&side| (side as i64).to_le_bytes()).collect();
        let part = |part: &str, dtype, shape: &[usize], bytes| Tensor {
            name: format!("{module}_proj.{part}"),
            dtype,
            shape: shape.to_vec(),
            bytes,
        };
        tensors.push(part("weight_packed", Dtype::I32, &[rows, columns / 8], packed));
        tensors.push(part("weight_shape", Dtype::I64, &[2], shape));
        tensors.push(Tensor::bf16(&format!("{module}_proj.weight_scale"), &[rows, columns / 32], &scales));
    }
    write_file(&folder.join("model.safetensors"), &tensors);
    let config = fs::read(Path::new(&data(of)).join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    let weights =
        json!({"num_bits": 4, "type": "int", "symmetric": true, "strategy": "group", "group_size": 32});
    config["quantization_config"] = json!({"quant_method": "compressed-tensors", "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}, "ignore": ["lm_head"]});
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

#[test]
fn with_4_bits_method_b_spends_part_of_its_rank_on_noise() {
    let home = tempfile::tempdir().unwrap();
    let folder = |name: &str| home.path().join(name);
    int4("base", &folder("base"));
    int4("tuned", &folder("tuned"));
    let mut job = job(&folder("rounded"));
    job.asking.include.clear();
    job.base_quantized = folder("base").to_str().unwrap().into();
    let (rounded, _) = analyze(&job, &Silent).unwrap();
    assert_eq!(rounded.tuned_noise, "INT4 (groups of 32, in BF16), round to nearest");
    (job.out, job.tuned_quantized) = (folder("stored"), Some(folder("tuned").to_str().unwrap().into()));
    let (stored, _) = analyze(&job, &Silent).unwrap();
    assert_eq!(stored.modules, rounded.modules);
    // The figures in the docs.
    let total = &stored.total;
    let percent = |share: f64| format!("{:.1}", 100.0 * share);
    assert_eq!(format!("{:.2}", total.norms.signal_to_noise.unwrap()), "0.98");
    assert_eq!([total.remaining.method_a, total.remaining.method_b].map(percent), ["85.5", "79.6"]);
    assert_eq!(
        (format!("{:.2}", total.noise_and_noise.value), total.noise_and_noise_significant),
        ("0.17".into(), 21)
    );
    let method = &stored.verdict[0];
    assert_eq!(method.about, About::Method);
    let spent = method.figures["spent_on_noise"];
    assert!(
        (0.1..0.5).contains(&spent) && method.text.contains("Part of the rank corrects noise"),
        "{}",
        method.text
    );
}

#[test]
fn a_change_below_the_noise_is_no_case_for_plain_method_b() {
    // The base's own NF4 copy, and a tuned model that differs from the base by little.
    let home = tempfile::tempdir().unwrap();
    let tuned = home.path().join("tuned");
    fs::create_dir(&tuned).unwrap();
    fs::copy(format!("{}/config.json", data("base")), tuned.join("config.json")).unwrap();
    let mut tensors = read_file(&Path::new(&data("base")).join("model.safetensors"));
    for (at, tensor) in
        tensors.iter_mut().enumerate().filter(|(_, tensor)| tensor.name.ends_with("_proj.weight"))
    {
        let weights: Vec<f32> = values(tensor).into_iter().map(|v| v as f32).collect();
        let shape: [usize; 2] = tensor.shape[..].try_into().unwrap();
        *tensor = Tensor::bf16(&tensor.name, &shape, &changed(&weights, shape, 2, 0.001, at as u64));
    }
    write_file(&tuned.join("model.safetensors"), &tensors);
    let mut job = job(&home.path().join("out"));
    job.tuned = tuned.to_str().unwrap().into();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/quantized/bitsandbytes_nf4");
    job.base_quantized = fixture.to_str().unwrap().into();
    // Without a quantized copy of the tuned checkpoint: only the questions about its noise stay open.
    let (analysis, _) = analyze(&job, &Silent).unwrap();
    assert!(analysis.tuned_noise.starts_with("not known: "), "{}", analysis.tuned_noise);
    assert!(analysis.verdict.iter().all(|statement| statement.about != About::SameNoise));
    let method = &analysis.verdict[0];
    assert!(method.figures["signal_to_noise"] < 0.3 && method.figures["spent_on_noise"] > 0.5, "{method:?}");
    assert!(
        method.text.contains("Plain Method B holds little of the fine-tune here. Take Method A"),
        "{}",
        method.text
    );
    assert_eq!(analysis.total.norms.tuned_noise, 0.0);
}
