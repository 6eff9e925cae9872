//! Quality on a real pair: every module of the trained pair in `tests/data`, by Methods A and B, against a full SVD in
//! f64 of a delta that the test itself decodes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use faer::Mat;
use safetensors::{Dtype, SafeTensors};
use trephine::commands::extract::output::ExtractionOutcome;
use trephine::commands::extract::{Allowances, Extraction, ResultOptions, extract};
use trephine::factorize::{Method, Precision};
use trephine::lora::FactorType;
use trephine::pipeline::RunOptions;
use trephine::run::Silent;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// The value of an e4m3fn code by its definition: sign, 4 bits of exponent with bias 7, 3 bits of mantissa.
fn e4m3(code: u8) -> f64 {
    let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7));
    match exponent {
        0 => sign * mantissa / 8.0 * 2f64.powi(-6),
        15 if code & 7 == 7 => f64::NAN,
        _ => sign * (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
    }
}

fn bf16(bytes: &[u8]) -> impl Iterator<Item = f64> + '_ {
    bytes
        .chunks_exact(2)
        .map(|b| f64::from(f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16)))
}

/// Every 2-D weight of a single-file checkpoint in f64; block FP8 by the product in f32 that the format defines.
fn weights(folder: &Path) -> BTreeMap<String, Mat<f64>> {
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut found = BTreeMap::new();
    for (name, view) in file.tensors() {
        let &[rows, cols] = view.shape() else { continue };
        let Some(module) = name.strip_suffix(".weight") else { continue };
        let values: Vec<f64> = match view.dtype() {
            Dtype::BF16 => bf16(view.data()).collect(),
            Dtype::F8_E4M3 => {
                let scale = file.tensor(&format!("{name}_scale_inv")).unwrap();
                let scales: Vec<f32> =
                    scale.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
                let wide = scale.shape()[1];
                let value = |at: usize| {
                    let s = scales[at / cols / 128 * wide + at % cols / 128];
                    f64::from(e4m3(view.data()[at]) as f32 * s)
                };
                (0..rows * cols).map(value).collect()
            }
            other => panic!("{name} is {other}"),
        };
        found.insert(module.to_owned(), Mat::from_fn(rows, cols, |i, j| values[i * cols + j]));
    }
    found
}

fn run(base: &str, out: &Path, rank: usize, method: Method, dtype: FactorType) -> ExtractionOutcome {
    let deciding = ResultOptions { rank, method, dtype, ..ResultOptions::for_base("base") };
    let running = RunOptions::new(2, 512 << 20);
    let [base, tuned] = [base, "tuned"].map(|name| data(name).display().to_string());
    let (served, calibration, hybrid) = (None, None, None);
    let job = Extraction {
        base,
        tuned,
        served,
        calibration,
        hybrid,
        out: out.to_owned(),
        deciding,
        allow: Allowances::default(),
        running,
    };
    extract(&job, &Silent).unwrap()
}

/// `B·A` of every module, from the adapter's file.
fn products(out: &Path, dtype: FactorType) -> BTreeMap<String, Mat<f64>> {
    let bytes = std::fs::read(out.join("adapter_model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let factor = |name: &str| {
        let view = file.tensor(name).unwrap();
        let values: Vec<f64> = match dtype {
            FactorType::Bf16 => bf16(view.data()).collect(),
            _ => view
                .data()
                .chunks_exact(4)
                .map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap())))
                .collect(),
        };
        let cols = view.shape()[1];
        Mat::from_fn(view.shape()[0], cols, |i, j| values[i * cols + j])
    };
    let of =
        |name: &str| Some(name.strip_prefix("base_model.model.")?.strip_suffix(".lora_A.weight")?.to_owned());
    let names: Vec<String> = file.names().into_iter().filter_map(of).collect();
    let product = |module: &String| {
        let stem = format!("base_model.model.{module}");
        factor(&format!("{stem}.lora_B.weight")) * factor(&format!("{stem}.lora_A.weight"))
    };
    names.iter().map(|name| (name.clone(), product(name))).collect()
}

/// Checks both parts of the rule for quality, and that the recorded figures are true.
fn check(base: &str, rank: usize, method: Method, dtype: FactorType) {
    const TOLERANCE: f64 = 0.005;
    let storing = if dtype == FactorType::Bf16 { 2f64.powi(-8) } else { 1e-5 };
    let out = tempfile::tempdir().unwrap();
    let outcome = run(base, out.path(), rank, method, dtype);
    let (base_weights, tuned_weights) = (weights(&data(base)), weights(&data("tuned")));
    let products = products(out.path(), dtype);
    assert_eq!(products.len(), 21, "7 linear layers in each of 3 blocks");
    for record in &outcome.manifest.modules {
        let delta = &tuned_weights[&record.name] - &base_weights[&record.name];
        let norm2 = delta.squared_norm_l2();
        let singular_values = delta.singular_values().unwrap();
        let best: f64 = singular_values.iter().take(rank).map(|s| s * s).sum();
        let optimal = (norm2 - best).max(0.0).sqrt();
        let error = (&delta - &products[&record.name]).norm_l2();
        let name = format!("{} {base} rank {rank} {method:?} {dtype:?}", record.name);
        let bound = ((1.0 + TOLERANCE) * optimal).powi(2) + storing * storing * norm2;
        assert!(error * error <= bound, "{name}: error {error}, optimal {optimal}");
        let captured = norm2 - error * error + storing * storing * norm2;
        assert!(captured >= (1.0 - 10.0 * TOLERANCE) * best, "{name}: captured {captured} of {best}");
        let recorded = &record.quality;
        assert!((recorded.delta_norm - norm2.sqrt()).abs() <= 1e-6 * norm2.sqrt(), "{name}: norm");
        let share = error / norm2.sqrt();
        // A delta in bytes is rounded: what is stated of its error has to be true to 1e-3.
        let off = if record.precision == Precision::Int8 { 1e-3 * share } else { 0.0 };
        assert!(
            (recorded.relative_error - share).abs() <= 1e-4 + off,
            "{name}: {} for {share}",
            recorded.relative_error
        );
    }
}

#[test]
fn method_a_is_near_the_optimum_at_every_rank() {
    for rank in [4, 16, 64] {
        check("base", rank, Method::Auto, FactorType::Bf16);
    }
}

#[test]
fn method_b_is_near_the_optimum_at_every_rank() {
    for rank in [4, 16, 64] {
        check("base-fp8", rank, Method::Auto, FactorType::Bf16);
    }
}

#[test]
fn both_methods_and_exact_factors_are() {
    for rank in [4, 16, 64] {
        for method in [Method::Krylov, Method::Gram] {
            check("base", rank, method, FactorType::F32);
            check("base-fp8", rank, method, FactorType::F32);
        }
    }
}
