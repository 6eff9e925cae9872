//! The autopsy: its statistics against numpy's, its verdicts on weights that were damaged on purpose, and none on
//! healthy ones.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::pair::{Tensor, config, noise, read_file, values, write, write_file};
use crate::common::{Ended, copied, data, run, trephine};
use safetensors::Dtype;
use serde_json::Value;
use tempfile::tempdir;
use trephine::commands::autopsy::{Autopsy, Examination, Fault, TensorAutopsy, Thresholds, autopsy};
use trephine::pipeline::RunOptions;
use trephine::run::Silent;

fn examination(checkpoint: &str) -> Examination {
    Examination {
        checkpoint: checkpoint.to_owned(),
        against: None,
        include: Vec::new(),
        exclude: Vec::new(),
        thresholds: Thresholds::default(),
    }
}

fn look(job: &Examination) -> Autopsy {
    autopsy(job, &RunOptions::new(2, 1 << 30), &Silent).unwrap()
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// `trephine autopsy --quiet`.
fn command(arguments: &[&str]) -> Ended {
    run(trephine().args(["autopsy", "--quiet"]).args(arguments))
}

fn tensor<'a>(found: &'a Autopsy, name: &str) -> &'a TensorAutopsy {
    found.tensors.iter().find(|tensor| tensor.name == name).unwrap()
}

fn faults(tensor: &TensorAutopsy) -> Vec<Fault> {
    tensor.verdicts.iter().map(|verdict| verdict.fault).collect()
}

/// The number of tensors with a fault.
fn count(found: &Autopsy, fault: Fault) -> u64 {
    found.total.verdicts.get(&fault).copied().unwrap_or(0)
}

#[test]
fn statistics_are_those_of_numpy_and_scipy() {
    let folder = format!("{}/tests/fixtures/statistics", env!("CARGO_MANIFEST_DIR"));
    let expected: Value =
        serde_json::from_str(&fs::read_to_string(format!("{folder}/expected.json")).unwrap()).unwrap();
    let found = look(&examination(&format!("{folder}/model.safetensors")));
    let expected = expected.as_object().unwrap();
    assert_eq!(found.tensors.len(), expected.len());
    for (name, want) in expected {
        let got = &tensor(&found, name).statistics;
        let number = |key: &str| want[key].as_f64().unwrap();
        for (key, got) in
            [("count", got.count), ("nan", got.nan), ("infinite", got.infinite), ("zeros", got.zeros)]
        {
            assert_eq!(got, want[key].as_u64().unwrap(), "{name}: {key}");
        }
        assert_eq!((got.min, got.max), (Some(number("min")), Some(number("max"))), "{name}");
        let close = |key: &str, got: f64, scale: f64| {
            assert!((got - number(key)).abs() <= 1e-9 * scale, "{name}: {key} is {got}, not {}", number(key));
        };
        close("mean", got.mean, number("mean").abs() + 1e-3 * number("std"));
        close("std", got.std, number("std").max(1e-12));
        match (got.kurtosis, want["kurtosis"].as_f64()) {
            (Some(kurtosis), Some(_)) => close("kurtosis", kurtosis, number("kurtosis")),
            (got, want) => assert_eq!(got, want, "{name}: kurtosis"),
        }
        let sixteen = name.ends_with("16");
        match got.magnitudes {
            Some(magnitudes) => assert_eq!(magnitudes, want["magnitudes"].as_u64().unwrap(), "{name}"),
            None => assert!(!sixteen && want["magnitudes"].as_u64().unwrap() > 256, "{name}"),
        }
        for (got, want) in got.quantiles.iter().zip(want["quantiles"].as_array().unwrap()) {
            let want = want.as_f64().unwrap();
            let within = if sixteen { 0.0 } else { want * 2f64.powi(-8) };
            assert!((got.magnitude - want).abs() <= within, "{name}: {got:?} is not {want}");
        }
    }
}

/// Asserts that the histogram of a tensor agrees with a plain loop, and that its edges are where it says.
#[test]
fn histograms_count_every_magnitude() {
    let folder = format!("{}/tests/fixtures/statistics", env!("CARGO_MANIFEST_DIR"));
    let found = look(&examination(&format!("{folder}/model.safetensors")));
    for stored in read_file(&Path::new(&folder).join("model.safetensors")) {
        if stored.dtype == Dtype::F64 {
            continue;
        }
        let name = stored.name.trim_end_matches(".weight");
        let statistics = &tensor(&found, name).statistics;
        let histogram = &statistics.histogram;
        let magnitudes: Vec<f64> =
            values(&stored).into_iter().map(f64::abs).filter(|v| v.is_finite() && *v > 0.0).collect();
        for (i, count) in histogram.counts.iter().enumerate() {
            let within = histogram.edge(i)..histogram.edge(i + 1);
            let want = magnitudes.iter().filter(|v| within.contains(*v)).count() as u64;
            assert_eq!(*count, want, "{name}: {within:?}");
        }
        assert_eq!(histogram.counts.iter().sum::<u64>(), magnitudes.len() as u64, "{name}");
    }
}

#[test]
fn a_large_tensor_in_f32_is_put_together_from_its_panels() {
    // Two panels and many pieces; the second half has a different distribution, so that merging matters.
    let (home, shape) = (tempdir().unwrap(), [2200, 1000]);
    let mut numbers = noise(1, shape[0] * shape[1]);
    numbers[1_000_000..].iter_mut().for_each(|v| *v = *v * 0.1 + 0.3);
    let folder = write(home.path(), &[Tensor::f32("w.weight", &shape, &numbers)], &config());
    let found = look(&examination(&text(&folder)));
    let got = &found.tensors[0].statistics;
    let n = numbers.len() as f64;
    let mean = numbers.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
    let power = |p| numbers.iter().map(|v| (f64::from(*v) - mean).powi(p)).sum::<f64>() / n;
    assert!((got.mean - mean).abs() < 1e-12);
    assert!((got.std - power(2).sqrt()).abs() < 1e-12);
    assert!((got.kurtosis.unwrap() - power(4) / power(2).powi(2)).abs() < 1e-9);
}

#[test]
fn healthy_checkpoints_get_no_verdict() {
    for name in ["base", "base-fp8", "tuned"] {
        let ended = command(&[&data(name)]).code(0);
        assert!(ended.stdout.contains(": nothing unusual; "), "{}", ended.stdout);
        assert!(ended.stdout.ends_with(" only show with --against\n"), "{}", ended.stdout);
    }
    for pair in [["base-fp8", "base"], ["tuned", "base"], ["base", "base-fp8"]].map(|pair| pair.map(data)) {
        let ended = command(&[&pair[0], "--against", &pair[1]]).code(0);
        assert!(ended.stdout.ends_with(": nothing unusual\n"), "{}", ended.stdout);
    }
}

/// tests/data/base-fp8 dequantized in some way: `scale` gives the scale for a code's row and column, from the scales
/// and their shape.
fn dequantized(home: &Path, scale: impl Fn(&[f64], &[usize], usize, usize) -> f64) -> String {
    let folder = copied("base", home);
    let stored = read_file(Path::new(&format!("{}/model.safetensors", data("base-fp8"))));
    let find = |name: &str| stored.iter().find(|tensor| tensor.name == name);
    let dense = |tensor: &Tensor| match find(&format!("{}_scale_inv", tensor.name)) {
        None => tensor.clone(),
        Some(scales) => {
            let (columns, numbers) = (tensor.shape[1], values(scales));
            let value = |(at, code): (usize, &u8)| {
                let scale = scale(&numbers, &scales.shape, at / columns, at % columns);
                (f64::from(trephine::quant::number::E4M3[usize::from(*code)]) * scale) as f32
            };
            let dense: Vec<f32> = tensor.bytes.iter().enumerate().map(value).collect();
            Tensor::bf16(&tensor.name, &tensor.shape, &dense)
        }
    };
    let kept = stored.iter().filter(|tensor| !tensor.name.ends_with("_scale_inv"));
    write_file(&folder.join("model.safetensors"), &kept.map(dense).collect::<Vec<_>>());
    text(&folder)
}

/// The scale of a block in a grid of `size`, from a table whose last entry is repeated past its end.
fn block(scales: &[f64], shape: &[usize], row: usize, column: usize, size: usize) -> f64 {
    scales[(row / size).min(shape[0] - 1) * shape[1] + (column / size).min(shape[1] - 1)]
}

#[test]
fn rightly_dequantized_weights_get_no_verdict() {
    let home = tempdir().unwrap();
    let folder =
        dequantized(home.path(), |scales, shape, row, column| block(scales, shape, row, column, 128));
    command(&[&folder]).code(0);
    command(&[&folder, "--against", &data("base")]).code(0);
}

#[test]
fn one_scale_for_the_whole_tensor_is_told_by_the_statistics() {
    // The first scale, the largest, their mean: any of them leaves too few different values.
    let first = |scales: &[f64]| scales[0];
    let largest = |scales: &[f64]| scales.iter().copied().fold(0.0, f64::max);
    let mean = |scales: &[f64]| scales.iter().sum::<f64>() / scales.len() as f64;
    for one in [&first as &dyn Fn(&[f64]) -> f64, &largest, &mean] {
        let home = tempdir().unwrap();
        let folder = dequantized(home.path(), |scales, _, _, _| one(scales));
        let found = look(&examination(&folder));
        assert_eq!(count(&found, Fault::OneScale), 21, "every linear weight, and nothing else");
        assert_eq!(found.total.errors, 21);
        command(&[&folder]).code(4).says("something is wrong with 21 tensors");
    }
}

#[test]
fn reciprocal_scales_are_told_by_the_statistics() {
    let home = tempdir().unwrap();
    let folder =
        dequantized(home.path(), |scales, shape, row, column| 1.0 / block(scales, shape, row, column, 128));
    let found = look(&examination(&folder));
    assert_eq!(count(&found, Fault::Scale), 21);
    assert_eq!(found.total.errors, 21);
    let ended = command(&[&folder]).code(4);
    let line = "error: wrong scale: down_proj in all 3 layers (std x root of inputs is ";
    assert!(ended.stdout.contains(line), "{}", ended.stdout);
    assert!(ended.stdout.contains("; healthy 0.05 to 50): scales inverted, or never applied?"));
    let every = command(&[&folder, "--all"]).code(4).stdout;
    assert!(every.contains("error: wrong scale: model.layers.0.mlp.down_proj has a standard deviation of"));
}

#[test]
fn scales_applied_twice_are_told_by_the_statistics() {
    let home = tempdir().unwrap();
    let square =
        |scales: &[f64], shape: &[usize], row, column| block(scales, shape, row, column, 128).powi(2);
    let folder = dequantized(home.path(), square);
    assert_eq!(count(&look(&examination(&folder)), Fault::Scale), 21);
    command(&[&folder]).code(4).shows("scales applied twice?");
}

#[test]
fn codes_without_scales_are_told_by_the_statistics() {
    let home = tempdir().unwrap();
    let found = look(&examination(&dequantized(home.path(), |_, _, _, _| 1.0)));
    assert_eq!(count(&found, Fault::Scale), 21);
}

#[test]
fn blocks_of_64_for_128_are_told_against_the_original() {
    let home = tempdir().unwrap();
    let folder = dequantized(home.path(), |scales, shape, row, column| block(scales, shape, row, column, 64));
    let against = Examination { against: Some(data("base")), ..examination(&folder) };
    let found = look(&against);
    assert!(count(&found, Fault::Rescaled) >= 12, "{:?}", found.total.verdicts);
    command(&[&folder]).code(0);
    let ended = command(&[&folder, "--against", &data("base")]).code(4);
    let line = "error: scales misplaced: down_proj in all 3 layers (block norms vary by ";
    assert!(ended.stdout.contains(line), "{}", ended.stdout);
}

#[test]
fn rows_and_columns_of_the_scales_swapped_are_told_against_the_original() {
    let home = tempdir().unwrap();
    // The table is read as if it were stored column by column.
    let folder =
        dequantized(home.path(), |scales, shape, row, column| scales[column / 128 * shape[0] + row / 128]);
    let against = Examination { against: Some(data("base")), ..examination(&folder) };
    let found = look(&against);
    // A table of one row or one column reads the same either way: only the MLP's have both.
    let told: Vec<&str> = found
        .tensors
        .iter()
        .filter(|tensor| faults(tensor).contains(&Fault::Rescaled))
        .map(|tensor| tensor.name.as_str())
        .collect();
    assert!(told.len() >= 6 && told.iter().all(|name| name.contains(".mlp.")), "{told:?}");
    command(&[&folder, "--against", &data("base")]).code(4).says("something is wrong with");
}

/// A checkpoint with one damaged tensor, and the verdict on it.
fn spoilt(name: &str, shape: &[usize], numbers: &[f32]) -> Autopsy {
    let home = tempdir().unwrap();
    let healthy: Vec<f32> = noise(9, 4096).iter().map(|v| v * 0.05).collect();
    let tensors = [Tensor::bf16("ok.weight", &[64, 64], &healthy), Tensor::bf16(name, shape, numbers)];
    let folder = write(home.path(), &tensors, &config());
    let found = look(&examination(&text(&folder)));
    assert_eq!(faults(tensor(&found, "ok")), []);
    found
}

#[test]
fn each_verdict_on_one_tensor() {
    let scaled =
        |scale: f32, shift: f32| -> Vec<f32> { noise(3, 4096).iter().map(|v| v * scale + shift).collect() };
    let mut outlier = scaled(0.05, 0.0);
    outlier[77] = 0.75;
    let mut broken = scaled(0.05, 0.0);
    broken[5] = f32::NAN;
    let mut half = scaled(0.05, 0.0);
    half[2048..].fill(0.0);
    let up = "model.layers.0.mlp.up_proj.weight";
    let table = "model.embed_tokens.weight";
    let norm = "model.layers.0.self_attn.q_norm.weight";
    let cases: [(&str, Vec<f32>, &[Fault]); 21] = [
        (up, scaled(0.05, 0.0), &[]),
        // SmolLM2's largest; nothing forbids it.
        (up, scaled(0.4, 0.0), &[]),
        (up, scaled(40.0, 0.0), &[Fault::Scale]),
        (up, scaled(1e-3, 0.0), &[Fault::Scale]),
        (up, scaled(0.05, 1.5), &[Fault::MeanOffZero]),
        (up, scaled(0.05, 0.02), &[Fault::MeanOffZero]),
        // A mean within four standard errors of 4096 values is chance.
        (up, scaled(0.05, 0.001), &[]),
        (up, outlier, &[]),
        (up, half.clone(), &[Fault::ZeroRows]),
        (table, half, &[]),
        (up, vec![0.0; 4096], &[Fault::Dead]),
        (up, vec![0.25; 4096], &[Fault::Dead]),
        (up, broken.clone(), &[Fault::NonFinite]),
        (table, scaled(1.0, 0.4), &[]),
        (table, scaled(4000.0, 0.0), &[Fault::Scale]),
        (table, vec![0.0; 4096], &[Fault::Dead]),
        (norm, scaled(20.0, 9.0), &[]),
        (norm, vec![1.0; 64], &[]),
        (norm, vec![0.0; 64], &[Fault::Dead]),
        (norm, scaled(190.0, 323.0), &[]),
        ("model.layers.0.self_attn.k_proj.bias", vec![0.0; 64], &[]),
    ];
    for (name, numbers, want) in cases {
        let shape = if numbers.len() == 64 || name == norm { vec![numbers.len()] } else { vec![64, 64] };
        let found = spoilt(name, &shape, &numbers);
        let short = name.trim_end_matches(".weight");
        assert_eq!(faults(tensor(&found, short)), want, "{:?}", tensor(&found, short));
    }
    assert_eq!(spoilt(up, &[64, 64], &broken).total.nan, 1);
}

/// A checkpoint of `layers` layers with one linear weight and one norm each, of the sizes that the functions give.
fn layers(home: &Path, layers: usize, linear: impl Fn(usize) -> f32, norm: impl Fn(usize) -> f32) -> String {
    let mut tensors = Vec::new();
    for layer in 0..layers {
        let weight: Vec<f32> = noise(layer as u64, 4096).iter().map(|v| v * linear(layer)).collect();
        tensors.push(Tensor::bf16(&format!("model.layers.{layer}.mlp.up_proj.weight"), &[64, 64], &weight));
        let name = format!("model.layers.{layer}.input_layernorm.weight");
        tensors.push(Tensor::bf16(&name, &[64], &[norm(layer); 64]));
    }
    text(&write(home, &tensors, &config()))
}

#[test]
fn a_layer_unlike_the_others_is_told() {
    let home = tempdir().unwrap();
    let spread = layers(&home.path().join("a"), 5, |at| 0.02 * 1.5f32.powi(at as i32), |at| at as f32 + 0.5);
    command(&[&spread]).code(0).shows(": nothing unusual");
    let odd = |scale: f32| move |at: usize| if at == 3 { 0.1 * scale } else { 0.1 };
    for scale in [8.0, 0.125] {
        let folder = layers(&home.path().join(format!("{scale}")), 5, odd(scale), |_| 1.0);
        let found = look(&examination(&folder));
        assert_eq!(found.total.errors, 1);
        assert_eq!(faults(tensor(&found, "model.layers.3.mlp.up_proj")), [Fault::UnlikeItsKind]);
    }
    let norms = layers(&home.path().join("norms"), 5, |_| 0.02, |at| if at == 4 { 40.0 } else { 1.0 });
    let found = look(&examination(&norms));
    assert_eq!(faults(tensor(&found, "model.layers.4.input_layernorm")), [Fault::UnlikeItsKind]);
    let two = layers(&home.path().join("two"), 2, |at| if at == 1 { 0.4 } else { 0.02 }, |_| 1.0);
    assert_eq!(look(&examination(&two)).total.errors, 0, "two layers have no median");
}

#[test]
fn findings_are_grouped_by_kind_and_tensors_are_counted() {
    let home = tempdir().unwrap();
    let folder = copied("base", home.path());
    let path = folder.join("model.safetensors");
    let mut tensors = read_file(&path);
    // A zero point off by one in 4 bits: about 0.45 standard deviations, in all weights of a kind; and some rows of
    // another kind are zero.
    for tensor in &mut tensors {
        let mut numbers: Vec<f32> = values(tensor).into_iter().map(|v| v as f32).collect();
        let std = (numbers.iter().map(|v| v * v).sum::<f32>() / numbers.len() as f32).sqrt();
        match tensor.name.as_str() {
            name if name.ends_with("down_proj.weight") => numbers.iter_mut().for_each(|v| *v += 0.45 * std),
            "model.layers.1.mlp.up_proj.weight" => {
                let half = numbers.len() / 2;
                numbers[half..].fill(0.0);
            }
            _ => continue,
        }
        *tensor = Tensor::bf16(&tensor.name, &tensor.shape, &numbers);
    }
    write_file(&path, &tensors);
    let ended = command(&[&text(&folder)]).code(4).says("something is wrong with 4 tensors");
    let lines: Vec<&str> = ended.stdout.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].starts_with("error: mean off zero: down_proj in all 3 layers (0.4"), "{}", lines[0]);
    assert!(lines[0].ends_with(" std; healthy <= 0.05): zero point off by one?"), "{}", lines[0]);
    let rows = "error: zero rows: model.layers.1.mlp.up_proj (50 % of the rows; healthy <= 5 %)";
    assert!(lines[1].starts_with(rows), "{}", lines[1]);
    assert!(ended.stdout.ends_with(": 4 tensors with errors, 0 with warnings only\n"), "{}", ended.stdout);
}

#[test]
fn the_limits_of_an_initialization_are_asked_for() {
    let home = tempdir().unwrap();
    let folder = layers(home.path(), 3, |_| 0.2, |_| 1.0);
    command(&[&folder]).code(0);
    let found = command(&[&folder, "--expect-init", "--all"]).code(4);
    found.shows("up_proj has a standard deviation of 0.11").shows("(expected: 0.02 to 0.05)");
    command(&[&folder, "--limit", "init-most-std=0.3", "--limit", "init-range=2"]).code(0);
}

#[test]
fn thresholds_are_options() {
    let fp8 = data("base-fp8");
    for (limit, words) in [
        ("least-scale=1", "wrong scale"),
        ("most-scale=0.1", "wrong scale"),
        ("mean=0.0005", "mean off zero"),
        ("apart=1", "unlike the other layers"),
        ("norm-apart=1", "unlike the other layers"),
        ("saturated-8=0.0001", "saturated codes"),
    ] {
        let ended = command(&[&fp8, "--limit", limit]).code(4);
        assert!(ended.stdout.contains(words), "{limit:?}: {}", ended.stdout);
    }
    let (base, tuned) = (data("base"), data("tuned"));
    for limit in ["error=0.05", "cosine=0.999", "drift=0.001"] {
        command(&[&tuned, "--against", &base, "--limit", limit]).code(4);
    }
    command(&[&base, "--limit", "few-magnitudes=60000"]).code(4);
    command(&[&fp8, "--limit", "most-scale=-1"]).code(2).says("the limit 'most-scale' is -1");
    command(&[&fp8, "--limit", "mean=NaN"]).code(2).says("the limit 'mean' is NaN");
    command(&[&fp8, "--limit", "most-scale=0.001"]).code(2).says("no scale is between 0.05 and 0.001");
    command(&[&fp8, "--limit", "cosine=2"]).code(2).says("2 is not a cosine");
    command(&[&fp8, "--limit", "apart=0.5"]).code(2).says("give a ratio of at least 1");
    command(&[&fp8, "--limit", "std=2"]).code(2).says("no limit is named 'std'").says("least-scale");
    command(&[&fp8, "--limit", "mean"]).code(2).says("write NAME=NUMBER");
}

#[test]
fn saturated_codes_are_counted() {
    let home = tempdir().unwrap();
    let folder = copied("base-fp8", home.path());
    let path = folder.join("model.safetensors");
    let mut tensors = read_file(&path);
    let spoilt = tensors.iter_mut().find(|t| t.name == "model.layers.1.mlp.up_proj.weight").unwrap();
    // A quarter of the codes as if the scale had been too small for them.
    spoilt.bytes.iter_mut().step_by(4).for_each(|code| *code = (*code & 0x80) | 0x7e);
    let ends = spoilt.bytes.iter().filter(|code| **code & 0x7f == 0x7e).count() as u64;
    write_file(&path, &tensors);
    let found = look(&examination(&text(&folder)));
    let spoilt = tensor(&found, "model.layers.1.mlp.up_proj");
    assert_eq!(spoilt.saturated.unwrap().codes, ends);
    assert!(faults(spoilt).contains(&Fault::Saturated));
    assert_eq!(count(&found, Fault::Saturated), 1);
}

#[test]
fn what_has_no_partner_is_named_and_shapes_must_agree() {
    let home = tempdir().unwrap();
    let numbers: Vec<f32> = noise(4, 8192).iter().map(|v| v * 0.05).collect();
    let weight = |name: &str, shape: [usize; 2]| Tensor::bf16(name, &shape, &numbers[..shape[0] * shape[1]]);
    let ours = [
        weight("model.layers.0.mlp.up_proj.weight", [64, 64]),
        weight("model.layers.0.mlp.down_proj.weight", [64, 128]),
        weight("model.alone.weight", [64, 64]),
    ];
    let prefix = "model.language_model.layers.0.mlp";
    let theirs = [
        weight(&format!("{prefix}.up_proj.weight"), [64, 64]),
        weight(&format!("{prefix}.down_proj.weight"), [128, 64]),
        weight("model.other.weight", [64, 64]),
    ];
    let ours = write(&home.path().join("ours"), &ours, &config());
    let theirs = write(&home.path().join("theirs"), &theirs, &config());
    let job = Examination { against: Some(text(&theirs)), ..examination(&text(&ours)) };
    let found = look(&job);
    let up = tensor(&found, "model.layers.0.mlp.up_proj").comparison.as_ref().unwrap();
    assert_eq!((up.relative_error, up.name.as_deref()), (Some(0.0), Some(&*format!("{prefix}.up_proj"))));
    assert_eq!(up.cosine, Some(1.0));
    assert_eq!(faults(tensor(&found, "model.layers.0.mlp.down_proj")), [Fault::ShapeDiffers]);
    let left: Vec<&str> = found.left_out.iter().map(|left| left.name.as_str()).collect();
    assert_eq!(left, ["model.alone", "model.other"]);
    assert!(found.notes[0].starts_with("names are paired by prefix"), "{:?}", found.notes);
}

#[test]
fn neither_threads_nor_memory_change_a_byte() {
    let home = tempdir().unwrap();
    let out = |name: &str| home.path().join(name);
    let (fp8, base) = (data("base-fp8"), data("base"));
    let mut files = Vec::new();
    for (name, running) in
        [("a", ["--threads", "1"]), ("b", ["--threads", "5"]), ("c", ["--memory", "48MiB"])]
    {
        let folder = out(name);
        command(&[&[&*fp8, "--against", &base, "--out", folder.to_str().unwrap()], &running[..]].concat())
            .code(0);
        files.push(fs::read(folder.join("autopsy.json")).unwrap());
    }
    assert!(files.iter().all(|file| *file == files[0]));
    let read: Autopsy = serde_json::from_slice(&files[0]).unwrap();
    assert_eq!((read.version, read.tensors.len()), (2, 36));
    let ended = command(&[&fp8, "--against", &base, "--json"]).code(0);
    assert_eq!(serde_json::from_str::<Autopsy>(&ended.stdout).unwrap(), read);
    command(&[&fp8, "--memory", "8MiB"]).code(2).says("MiB needed").says("give --memory ");
}

#[test]
fn where_checkpoints_lie_changes_no_byte() {
    let homes = [tempdir().unwrap(), tempdir().unwrap()];
    let files = homes.each_ref().map(|home| {
        let [ours, theirs] = ["base-fp8", "base"].map(|name| text(&copied(name, home.path())));
        let out = home.path().join("autopsy");
        command(&[&ours, "--against", &theirs, "--out", &text(&out)]).code(0);
        fs::read_to_string(out.join("autopsy.json")).unwrap()
    });
    assert_eq!(files[0], files[1]);
    let found: Autopsy = serde_json::from_str(&files[0]).unwrap();
    assert_eq!((found.checkpoint.name.as_str(), found.against.unwrap().name.as_str()), ("base-fp8", "base"));
}

#[test]
fn an_adapter_is_looked_at_too() {
    let home = tempdir().unwrap();
    let out = home.path().join("adapter");
    crate::common::extract_with(&data("base"), &data("tuned"), &out, &["--rank", "4"]).code(0);
    let found = look(&examination(&text(&out)));
    assert_eq!(found.tensors.len(), 42);
    assert!(found.tensors.iter().all(|tensor| tensor.role == trephine::commands::autopsy::Role::Factor));
    assert_eq!(found.total.errors, 0);
    command(&[&text(&out)]).code(0);
}

#[test]
fn gguf_is_looked_at_as_transformers_reads_it() {
    for (name, tensors, quantized) in [("llama", 12, 5), ("qwen2", 14, 5)] {
        let path =
            |end: &str| format!("{}/tests/fixtures/gguf_models/{name}.{end}", env!("CARGO_MANIFEST_DIR"));
        let job = Examination { against: Some(path("safetensors")), ..examination(&path("gguf")) };
        let found = look(&job);
        assert_eq!(found.tensors.len(), tensors, "{name}");
        assert_eq!(found.tensors.iter().filter(|tensor| tensor.quantized).count(), quantized, "{name}");
        assert_eq!(found.left_out, [], "{name}");
        assert!(found.checkpoint.scheme.starts_with("GGUF"), "{name}");
        let expected = read_file(Path::new(&path("safetensors")));
        for looked_at in &found.tensors {
            let stored =
                expected.iter().find(|t| t.name.trim_end_matches(".weight") == looked_at.name).unwrap();
            let numbers = values(stored);
            let (n, statistics) = (numbers.len() as f64, &looked_at.statistics);
            let mean = numbers.iter().sum::<f64>() / n;
            let std = (numbers.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt();
            assert_eq!((statistics.count, &looked_at.shape), (numbers.len() as u64, &stored.shape));
            assert!(
                (statistics.mean - mean).abs() < 1e-9 && (statistics.std - std).abs() < 1e-9,
                "{stored:?}"
            );
            let comparison = looked_at.comparison.as_ref().unwrap();
            assert_eq!(comparison.largest_difference, 0.0, "{name}: {}", looked_at.name);
        }
    }
}

/// Three experts of a layer in stacks, `[E, 2I, H]` and `[E, H, I]`, or both transposed, or each projection separately.
fn experts(home: &Path, stored: &str) -> String {
    const E: usize = 3;
    const H: usize = 64;
    const I: usize = 32;
    let part = |seed: usize| -> Vec<f32> { noise(seed as u64, H * I).iter().map(|v| v * 0.05).collect() };
    let turn = |values: Vec<f32>, [rows, columns]: [usize; 2]| -> Vec<f32> {
        match stored {
            "turned" => (0..values.len()).map(|at| values[at % rows * columns + at / rows]).collect(),
            _ => values,
        }
    };
    let path = "model.layers.0.mlp.experts";
    let gate_up = |e: usize| turn([part(3 * e), part(3 * e + 1)].concat(), [2 * I, H]);
    let stack = |name: &str, [rows, columns]: [usize; 2], values: Vec<f32>| {
        let sides = if stored == "turned" { [columns, rows] } else { [rows, columns] };
        Tensor::bf16(&format!("{path}.{name}"), &[E, sides[0], sides[1]], &values)
    };
    let tensors = match stored {
        "singly" => (0..3 * E)
            .map(|at| {
                let (name, shape) =
                    [("gate_proj", [I, H]), ("up_proj", [I, H]), ("down_proj", [H, I])][at % 3];
                Tensor::bf16(&format!("{path}.{}.{name}.weight", at / 3), &shape, &part(at))
            })
            .collect(),
        _ => vec![
            stack("gate_up_proj", [2 * I, H], (0..E).flat_map(gate_up).collect()),
            stack("down_proj", [H, I], (0..E).flat_map(|e| turn(part(3 * e + 2), [H, I])).collect()),
        ],
    };
    let config = serde_json::json!({"model_type": "qwen3_moe", "hidden_size": H});
    text(&write(&home.join(stored), &tensors, &config))
}

#[test]
fn experts_are_looked_at_one_by_one_however_they_are_stored() {
    let home = tempdir().unwrap();
    let [singly, stacked, turned] =
        ["singly", "stacked", "turned"].map(|stored| experts(home.path(), stored));
    let want = look(&examination(&singly));
    assert_eq!((want.tensors.len(), want.total.errors), (9, 0));
    for stacks in [stacked, turned] {
        let found = look(&Examination { against: Some(singly.clone()), ..examination(&stacks) });
        assert_eq!((found.left_out.len(), found.total.errors, found.total.elements), (0, 0, 9 * 64 * 32));
        assert_eq!(found.total.comparison.unwrap().relative_error, Some(0.0));
        for (got, want) in found.tensors.iter().zip(&want.tensors) {
            assert_eq!((&got.name, got.role, &got.shape), (&want.name, want.role, &want.shape));
            let (got, want) = (&got.statistics, &want.statistics);
            assert_eq!((got.min, got.max, got.zeros), (want.min, want.max, want.zeros));
            assert!((got.mean - want.mean).abs() < 1e-12 && (got.std - want.std).abs() < 1e-12, "{got:?}");
        }
    }
}

#[test]
fn patterns_select() {
    let job = Examination { include: vec!["q_proj".into(), "norm".into()], ..examination(&data("base")) };
    let names: Vec<String> = look(&job).tensors.into_iter().map(|tensor| tensor.name).collect();
    assert_eq!(names.len(), 4, "{names:?}");
    assert!(names.contains(&"model.norm".to_owned()));
    let job = Examination { exclude: vec!["*norm*".into()], ..examination(&data("base")) };
    assert_eq!(look(&job).tensors.len(), 23);
    command(&[&data("base"), "--include", "nothing"]).code(2).says("no tensor is selected");
    command(&[&data("base"), "--include", "re:("]).code(2).says("is not a regular expression");
}

#[test]
fn bad_input_is_told() {
    let home = tempdir().unwrap();
    command(&[&text(&home.path().join("nowhere/at/all"))]).code(3).says("no such file or folder");
    let folder: PathBuf = copied("base", home.path());
    let bytes = fs::read(folder.join("model.safetensors")).unwrap();
    fs::write(folder.join("model.safetensors"), &bytes[..bytes.len() - 10]).unwrap();
    command(&[&text(&folder)]).code(3).says("the file is damaged or was cut short");
    command(&[&data("base"), "--against", &text(&folder)]).code(3).says("the file is damaged");
    let blocked = home.path().join("file");
    fs::write(&blocked, "x").unwrap();
    command(&[&data("base"), "--out", &text(&blocked)]).code(2).says("the output folder cannot be read");
    let foreign = home.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("thesis.tex"), "x").unwrap();
    command(&[&data("base"), "--out", &text(&foreign)]).code(2).says("holds something else ('thesis.tex')");
}

#[test]
fn what_a_kill_left_in_the_folder_is_removed() {
    let out = tempdir().unwrap();
    let left = out.path().join(".tmp-1-0");
    fs::write(&left, "half").unwrap();
    command(&[&data("base"), "--out", &text(out.path())]).code(0);
    assert!(!left.exists() && out.path().join("autopsy.json").exists());
}
