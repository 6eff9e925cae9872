//! `fidelity`: the figures of `extract --served`, for any adapter.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use trephine::commands::extract::{Extraction, extract};
use trephine::commands::fidelity::{FIDELITY, Fidelity, Measuring, fidelity};
use trephine::pipeline::RunOptions;
use trephine::run::Silent;

use crate::common::adapter::{config, lora, write_adapter};
use crate::common::{contents, data, job, manifest, run, trephine};

fn measuring(adapters: &[&Path]) -> Measuring {
    Measuring {
        adapters: adapters.iter().map(|path| path.to_str().unwrap().to_owned()).collect(),
        served: data("base-fp8"),
        tuned: data("tuned"),
        out: None,
        running: RunOptions::new(2, 1 << 30),
    }
}

fn extracted(base: &str, out: &Path, include: &[&str]) {
    let mut job: Extraction = job(&data(base), &data("tuned"), out);
    job.served = Some(data("base-fp8"));
    job.deciding.include = include.iter().map(|&text| text.to_owned()).collect();
    extract(&job, &Silent).unwrap();
}

#[test]
fn it_agrees_with_extract_for_both_methods_and_every_kind_of_module() {
    let home = tempfile::tempdir().unwrap();
    let (a, b) = (home.path().join("a"), home.path().join("b"));
    // An embedding has its factors in the opposite order.
    extracted("base", &a, &["linear", "lm_head", "embed_tokens"]);
    extracted("base-fp8", &b, &["linear", "lm_head", "embed_tokens"]);
    let found = fidelity(&measuring(&[&a, &b]), &Silent).unwrap();
    for (at, out) in [(0, &a), (1, &b)] {
        let manifest = manifest(out);
        let recorded = manifest["modules"].as_array().unwrap();
        assert_eq!(recorded.len(), found.modules.len());
        for (module, record) in found.modules.iter().zip(recorded) {
            assert_eq!(record["name"], module.name);
            assert_eq!(record["served"]["without_adapter"].as_f64().unwrap(), module.distances.without);
            assert_eq!(record["served"]["with_adapter"].as_f64().unwrap(), module.distances.with[at]);
        }
        let total = manifest["total"]["served"]["with_adapter"].as_f64().unwrap();
        assert!((total - found.total.with[at]).abs() < 1e-12 * total);
        assert_eq!((found.adapters[at].modules, found.adapters[at].ranks), (23, [8, 8]));
    }
    let [with_a, with_b] = [0, 1].map(|at| found.total.ratio[at].unwrap());
    assert!(with_b < with_a && with_a < 1.0, "{with_a} {with_b}");
    let kinds: f64 = found.kinds.iter().map(|kind| kind.distances.without.powi(2)).sum();
    assert!((kinds.sqrt() - found.total.without).abs() < 1e-12);
}

#[test]
fn scale_patterns_and_missing_modules_count() {
    let home = tempfile::tempdir().unwrap();
    let q = "model.layers.0.self_attn.q_proj";
    let tensors =
        [lora(q, [128, 160], 4, 1), lora("model.layers.9.self_attn.q_proj", [128, 160], 4, 3)].concat();
    let by_scale = |folder: &str, alpha: f64| {
        let mut config = config(&["q_proj"]);
        config["lora_alpha"] = json!(alpha);
        write_adapter(&home.path().join(folder), &tensors, &config)
    };
    let (none, one, two) = (by_scale("none", 0.0), by_scale("one", 4.0), by_scale("two", 8.0));
    let found = fidelity(&measuring(&[&none, &one, &two]), &Silent).unwrap();
    let module = found.modules.iter().find(|module| module.name == q).unwrap();
    assert_eq!((module.ranks.clone(), module.distances.ratio[0]), (vec![4, 4, 4], Some(1.0)));
    // |C - s·X|^2 is a parabola in s: its second difference is 2 |X|^2, whatever C is.
    let square = |at: usize| module.distances.with[at].powi(2);
    let second = square(2) - 2.0 * square(1) + square(0);
    assert!(second > 0.0);
    let factors = crate::common::pair::dense(&one.join("adapter_model.safetensors"));
    let get = |part: &str| factors[&format!("base_model.model.{q}.{part}.weight")].1.clone();
    let (a, b) = (get("lora_A"), get("lora_B"));
    let product2: f64 = (0..128 * 160)
        .map(|at| (0..4).map(|k| b[at / 160 * 4 + k] * a[k * 160 + at % 160]).sum::<f64>().powi(2))
        .sum();
    assert!((second / (2.0 * product2) - 1.0).abs() < 1e-5, "{second} {product2}");
    for other in found.modules.iter().filter(|module| module.name != q) {
        assert_eq!((other.ranks.clone(), other.distances.ratio[1]), (vec![0, 0, 0], Some(1.0)));
        assert_eq!(other.distances.with[1], other.distances.without);
    }
    assert!(found.notes.iter().any(|note| note.starts_with("1 of 2 modules of")), "{:?}", found.notes);
}

#[test]
fn what_is_more_than_a_lora_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let refused = |key: &str, value: Value, shape: [usize; 2]| {
        let mut config = config(&["q_proj"]);
        config[key] = value;
        let path = home.path().join("adapter");
        write_adapter(&path, &lora("model.layers.0.self_attn.q_proj", shape, 4, 1), &config);
        fidelity(&measuring(&[&path]), &Silent).unwrap_err()
    };
    let error = refused("use_dora", json!(true), [128, 160]);
    assert!(error.to_string().starts_with("the adapter uses DoRA"), "{error}");
    let error = refused("init_lora_weights", json!("pissa"), [128, 160]);
    assert!(error.to_string().contains("'pissa' changes the base's own weights"), "{error}");
    let error = refused("r", json!(4), [128, 161]);
    assert!(
        error.to_string().starts_with("the adapter's factors are for a weight of shape [128, 161]"),
        "{error}"
    );
    assert_eq!(error.cure(), Some("the adapter belongs to another model"));
}

#[test]
fn the_command_lays_adapters_side_by_side() {
    let home = tempfile::tempdir().unwrap();
    let (a, out) = (home.path().join("method-a"), home.path().join("out"));
    extracted("base", &a, &["*.layers.0.*_proj"]);
    let mut command = trephine();
    command
        .args(["fidelity", "-q", "--served", &data("base-fp8"), "--tuned", &data("tuned"), "--out"])
        .arg(&out);
    command.arg("--adapter").arg(&a).arg("--adapter").arg(&a);
    let ended = run(&mut command).code(0);
    for words in ["no adapter", "vs none", "method-a", "gate_proj", "all"] {
        assert!(ended.stdout.contains(words), "no '{words}' in\n{}", ended.stdout);
    }
    assert_eq!(contents(&out).keys().collect::<Vec<_>>(), ["B3SUMS", FIDELITY]);
    let json = run(command.arg("--json").arg("--threads").arg("1")).code(0).stdout;
    assert_eq!(json.as_bytes(), fs::read(out.join(FIDELITY)).unwrap());
    let found: Fidelity = serde_json::from_str(&json).unwrap();
    assert_eq!(found.adapters[0].name, a.to_str().unwrap(), "two of one name are told by their paths");
    fs::write(out.join("mine"), "").unwrap();
    run(&mut command).code(2).says("holds something else ('mine')");
}
