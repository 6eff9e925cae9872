//! Tables with chosen numbers, in the form that `analyze`, `fidelity` and `autopsy` write.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use trephine::checkpoint::Identity;
use trephine::commands::analyze::{
    ANALYSIS, ANALYSIS_VERSION, About, Analysis, Angles, Cosine, Group, ModuleAnalysis, Norms, Pooled,
    Remaining, SpectrumAboveNoise, Statement, Subspaces,
};
use trephine::commands::autopsy::statistics::{Histogram, Statistics};
use trephine::commands::autopsy::{
    AUTOPSY, AUTOPSY_VERSION, Autopsy, Fault, Role, Severity, TensorAutopsy, Thresholds, Total, Verdict,
};
use trephine::commands::fidelity::{
    Distances, FIDELITY, FIDELITY_VERSION, Fidelity, FidelityAdapter, FidelityModule,
};
use trephine::delta::{Side, Source};
use trephine::quant::SchemeKind;

pub const KINDS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

fn source(name: &str) -> Source {
    Source {
        name: name.into(),
        model_type: Some("qwen3".into()),
        scheme: "dense".into(),
        kind: SchemeKind::Dense,
    }
}

/// A cosine that is significant if it exceeds four of its errors.
fn cosine(value: f64, standard_error: f64) -> Cosine {
    let z = value / standard_error;
    Cosine { value, standard_error, z, p_value: (-z * z / 2.0).exp(), significant: z.abs() > 4.0 }
}

fn angles() -> Angles {
    Angles {
        dimension: 64,
        largest_cosines: vec![0.5],
        mean_squared_cosine: 0.14,
        expected: 0.125,
        change_in_noise: 0.15,
        noise_in_change: 0.16,
    }
}

/// One module; the down projections' noise is not orthogonal to the change.
fn module(layer: u32, at: usize) -> ModuleAnalysis {
    let (kind, noise) = (KINDS[at], 0.02 + 0.001 * f64::from(layer));
    let value = if kind == "down_proj" { 0.02 } else { 0.001 * f64::from(layer % 3) - 0.001 };
    ModuleAnalysis {
        name: format!("model.layers.{layer}.{kind}"),
        kind: kind.into(),
        layer: Some(layer),
        shape: [64, 64],
        quantized: true,
        norms: Norms {
            base: 2.0,
            change: 0.1,
            base_noise: noise,
            tuned_noise: noise,
            corrective: 0.11,
            signal_to_noise: Some(0.1 / noise),
        },
        unchanged: 0.01,
        change_and_noise: cosine(value, 0.002),
        noise_and_noise: cosine(0.9, 0.002),
        magnitude_correlation: (kind != "k_proj").then_some(0.25),
        subspaces: vec![Subspaces {
            k: 8,
            left: angles(),
            right: angles(),
            change_gap: Some(0.1),
            noise_gap: None,
            change_in_change: 0.8,
            noise_in_noise: 0.2,
        }],
        method_b: None,
        remaining: Remaining { method_a: 0.6, method_b: 0.5, noise: 0.2 },
        spectrum: SpectrumAboveNoise {
            suggested_rank: at + layer as usize,
            known: 64,
            threshold: 0.02,
            leading: (1..=64).map(|i| 0.1 / f64::from(i)).collect(),
            change_leading: (1..=64).map(|i| 0.08 / f64::from(i).powi(2)).collect(),
            noise_leading: (1..=64).map(|i| 0.01 - 0.0001 * f64::from(i)).collect(),
            ..SpectrumAboveNoise::default()
        },
    }
}

/// An analysis of this many layers.
pub fn analysis(layers: u32) -> Analysis {
    let modules: Vec<ModuleAnalysis> =
        (0..layers).flat_map(|layer| (0..KINDS.len()).map(move |at| module(layer, at))).collect();
    let pooled = |of: Vec<&ModuleAnalysis>| Pooled {
        modules: of.len(),
        norms: Norms { signal_to_noise: Some(4.5), ..of[0].norms },
        change_and_noise: of[0].change_and_noise,
        noise_and_noise: of[0].noise_and_noise,
        change_and_noise_significant: of.iter().filter(|m| m.change_and_noise.significant).count(),
        noise_and_noise_significant: of.len(),
        magnitude_correlation: of[0].magnitude_correlation,
        suggested_rank: [1, 2, 3],
        ..Pooled::default()
    };
    let group = |kind: &&str| Group {
        name: (*kind).into(),
        pooled: pooled(modules.iter().filter(|module| module.kind == **kind).collect()),
    };
    Analysis {
        version: ANALYSIS_VERSION,
        trephine: "0.1.0".into(),
        options: serde_json::from_str("{\"rank\": 8}").unwrap(),
        simd: "AVX".into(),
        inputs: BTreeMap::new(),
        base: source("base"),
        base_quantized: source("base-fp8"),
        tuned: source("tuned"),
        tuned_quantized: None,
        tuned_noise: "block FP8 (128 x 128), made of it".into(),
        false_discovery_rate: 0.05,
        notes: Vec::new(),
        verdict: vec![Statement {
            about: About::Method,
            text: "Method B pays: it leaves 50.0 %, Method A 60.0 %.".into(),
            figures: BTreeMap::new(),
        }],
        total: pooled(modules.iter().collect()),
        kinds: KINDS.iter().map(group).collect(),
        layers: Vec::new(),
        modules,
        left_out: Vec::new(),
        tensors: Vec::new(),
    }
}

/// The distances that two adapters leave for two modules.
pub fn fidelity(inputs: [Identity; 2]) -> Fidelity {
    let adapter =
        |name: &str| FidelityAdapter { name: name.into(), blake3: "00".into(), modules: 2, ranks: [8, 8] };
    let distances = |without: f64, with: [f64; 2]| Distances {
        without,
        with: with.into(),
        ratio: with.iter().map(|with| Some(with / without)).collect(),
    };
    let module = |name: &str, distances: Distances| FidelityModule {
        name: format!("model.layers.0.self_attn.{name}"),
        kind: name.into(),
        shape: [64, 64],
        ranks: vec![8, 8],
        distances,
    };
    Fidelity {
        version: FIDELITY_VERSION,
        trephine: "0.1.0".into(),
        simd: "AVX".into(),
        inputs: [Side::Served, Side::Tuned].into_iter().zip(inputs).collect(),
        served: source("base-fp8"),
        tuned: source("tuned"),
        adapters: vec![adapter("method-b"), adapter("another")],
        notes: Vec::new(),
        total: distances(5.0, [2.5, 6.0]),
        kinds: Vec::new(),
        modules: vec![
            module("q_proj", distances(3.0, [1.5, 3.6])),
            module("k_proj", distances(4.0, [2.0, 4.8])),
        ],
        tensors: Vec::new(),
    }
}

/// Writes a table into a folder of its own.
pub fn written(home: &Path, name: &str, file: &str, table: &impl serde::Serialize) -> PathBuf {
    let folder = home.join(name);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(file), serde_json::to_string_pretty(table).unwrap()).unwrap();
    folder
}

/// An analysis in a folder.
pub fn analyzed(home: &Path, name: &str, layers: u32) -> PathBuf {
    written(home, name, ANALYSIS, &analysis(layers))
}

/// Distances in a folder.
pub fn measured(home: &Path, name: &str, inputs: [Identity; 2]) -> PathBuf {
    written(home, name, FIDELITY, &fidelity(inputs))
}

/// An autopsy of two layers: the second `q_proj` has a finding, and norms have no histogram.
pub fn autopsy() -> Autopsy {
    let tensor = |name: String, role: Role| TensorAutopsy {
        role,
        shape: vec![64, 64],
        dtype: "BF16".into(),
        quantized: false,
        bytes: 8192,
        statistics: Statistics {
            count: 4096,
            std: 0.02,
            min: Some(-0.125),
            max: Some(0.0625),
            zeros: 1024,
            zero_share: 0.25,
            // Steps of a quarter of the octaves from 2^-6 to 2^-5: 0.0156, 0.0195, ...
            histogram: Histogram { first: -24, counts: vec![1024, 0, 1024, 1024] },
            ..Statistics::default()
        },
        zero_rows: 0,
        saturated: None,
        comparison: None,
        verdicts: Vec::new(),
        name,
    };
    let mut tensors: Vec<TensorAutopsy> = (0..2)
        .flat_map(|layer| {
            let module = move |kind: &&str| (format!("model.layers.{layer}.{kind}"), Role::Linear);
            let norm = (format!("model.layers.{layer}.input_layernorm.weight"), Role::Norm);
            KINDS.iter().map(module).chain([norm]).map(|(name, role)| tensor(name, role)).collect::<Vec<_>>()
        })
        .collect();
    tensors[8].verdicts = vec![Verdict {
        gravity: Severity::Error,
        fault: Fault::Scale,
        measured: Some(96.0),
        why: "has a standard deviation of 12".into(),
    }];
    Autopsy {
        version: AUTOPSY_VERSION,
        trephine: "0.1.0".into(),
        inputs: BTreeMap::new(),
        checkpoint: source("tuned"),
        against: None,
        thresholds: Thresholds::default(),
        notes: Vec::new(),
        total: Total {
            tensors: tensors.len() as u64,
            errors: 1,
            verdicts: BTreeMap::from([(Fault::Scale, 1)]),
            ..Total::default()
        },
        tensors,
        left_out: Vec::new(),
    }
}

/// An autopsy in a folder.
pub fn dissected(home: &Path, name: &str) -> PathBuf {
    written(home, name, AUTOPSY, &autopsy())
}
