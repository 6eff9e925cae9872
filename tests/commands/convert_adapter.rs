//! `trephine convert-adapter`: a GGUF LoRA is tensor for tensor what llama.cpp's own converter writes, and an adapter of
//! mlx-lm holds the transposes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::tempdir;

use crate::common::adapter::{config, lora, write_adapter};
use crate::common::pair::{Tensor, dense, noise, values};
use crate::common::{Ended, assert_same, contents, run, trephine};

/// The converter's results, one folder for each model.
fn models() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf_lora");
    let mut models: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    models.sort();
    models
}

fn convert(adapter: &Path, out: &Path, more: &[&str]) -> Ended {
    run(trephine().args(["convert-adapter"]).arg(adapter).arg("--out").arg(out).args(more))
}

/// A GGUF file's numbers and texts, and its tensors of F32, F16 and BF16 with the outermost dimension first.
#[derive(Default)]
struct Read {
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, (u32, Vec<usize>, Vec<u8>)>,
}

fn read(path: &Path) -> Read {
    let bytes = fs::read(path).unwrap();
    let mut at = 0;
    let mut take = |count: usize| {
        at += count;
        bytes[at - count..at].to_vec()
    };
    assert_eq!(take(4), b"GGUF");
    let u32 = |bytes: Vec<u8>| u32::from_le_bytes(bytes.try_into().unwrap());
    let u64 = |bytes: Vec<u8>| u64::from_le_bytes(bytes.try_into().unwrap()) as usize;
    assert_eq!(u32(take(4)), 3);
    let (tensors, keys) = (u64(take(8)), u64(take(8)));
    let mut read = Read::default();
    for _ in 0..keys {
        let length = u64(take(8));
        let key = String::from_utf8(take(length)).unwrap();
        let value = match u32(take(4)) {
            4 => json!(u32(take(4))),
            6 => json!(f32::from_le_bytes(take(4).try_into().unwrap())),
            8 => {
                let length = u64(take(8));
                json!(String::from_utf8(take(length)).unwrap())
            }
            other => panic!("{key} has type {other}"),
        };
        read.metadata.insert(key, value);
    }
    let mut found = Vec::new();
    for _ in 0..tensors {
        let length = u64(take(8));
        let name = String::from_utf8(take(length)).unwrap();
        let dimensions = u32(take(4));
        let mut shape: Vec<usize> = (0..dimensions).map(|_| u64(take(8))).collect();
        shape.reverse();
        found.push((name, shape, u32(take(4)), u64(take(8))));
    }
    let data = at.next_multiple_of(32);
    for (name, shape, kind, offset) in found {
        assert_eq!(offset % 32, 0, "{name}");
        let size = shape.iter().product::<usize>() * if kind == 0 { 4 } else { 2 };
        let bytes = bytes[data + offset..data + offset + size].to_vec();
        read.tensors.insert(name, (kind, shape, bytes));
    }
    read
}

#[test]
fn a_gguf_lora_is_what_llama_cpps_converter_writes() {
    let models = models();
    assert_eq!(models.len(), 10);
    for model in models {
        let home = tempdir().unwrap();
        let out = home.path().join("out");
        let base = model.to_str().unwrap();
        convert(&model, &out, &["--format", "gguf", "--base", base]).code(0);
        let ours = read(&out.join("adapter.gguf"));
        let bytes = fs::read(model.join("converted.safetensors")).unwrap();
        let theirs = SafeTensors::deserialize(&bytes).unwrap();
        let names: Vec<String> = theirs.tensors().into_iter().map(|(name, _)| name).collect();
        let mut sorted = names.clone();
        sorted.sort();
        assert_eq!(ours.tensors.keys().cloned().collect::<Vec<_>>(), sorted, "{base}");
        for (name, view) in theirs.tensors() {
            let (kind, shape, bytes) = &ours.tensors[&name];
            assert_eq!((*kind, shape.as_slice()), (0, view.shape()), "{base}: {name}");
            assert!(bytes == view.data(), "{base}: the values of {name}");
        }
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        for (key, value) in header.metadata().as_ref().unwrap() {
            // The converter also invents a name for the base.
            if key != "general.name" {
                let value: Value = serde_json::from_str(value).unwrap();
                assert_eq!(ours.metadata[key], value, "{base}: {key}");
            }
        }
        run(trephine().args(["verify", "--quiet"]).arg(&out)).code(0);
    }
}

#[test]
fn scales_that_alpha_does_not_give_go_into_the_factors() {
    let base = models().into_iter().find(|path| path.ends_with("qwen3")).unwrap();
    let home = tempdir().unwrap();
    let out = home.path().join("out");
    let factors = lora("model.layers.0.self_attn.q_proj", [64, 32], 4, 1);
    let mut settings = config(&["q_proj"]);
    settings["use_rslora"] = json!(true);
    let adapter = write_adapter(&home.path().join("adapter"), &factors, &settings);
    convert(&adapter, &out, &["--format", "gguf", "--base", base.to_str().unwrap(), "--dtype", "f32"])
        .code(0);
    let written = read(&out.join("adapter.gguf"));
    assert_eq!(written.metadata["adapter.lora.alpha"], json!(8.0));
    let (_, _, bytes) = &written.tensors["blk.0.attn_q.weight.lora_b"];
    for (value, was) in bytes.as_chunks::<4>().0.iter().zip(values(&factors[1])) {
        // alpha / sqrt(rank) instead of alpha / rank: twice.
        assert_eq!(f64::from(f32::from_le_bytes(*value)), 2.0 * was);
    }
    // In the factors' own type the file has half the size.
    let half = home.path().join("half");
    convert(&adapter, &half, &["--format", "gguf", "--base", base.to_str().unwrap()]).code(0);
    assert_eq!(read(&half.join("adapter.gguf")).tensors["blk.0.attn_q.weight.lora_a"].0, 30, "BF16");
}

#[test]
fn factors_and_scales_that_the_types_cannot_hold_are_refused() {
    let base = models().into_iter().find(|path| path.ends_with("qwen3")).unwrap();
    let home = tempdir().unwrap();
    let out = home.path().join("out");
    let module = "model.layers.0.self_attn.q_proj";
    let small: Vec<f32> = noise(5, 256).iter().map(|value| value * 1e-9).collect();
    let [a, b] =
        [("lora_A", [4, 32], noise(3, 128)), ("lora_B", [64, 4], small)].map(|(factor, shape, values)| {
            Tensor::f32(&format!("base_model.model.{module}.{factor}.weight"), &shape, &values)
        });
    let adapter = |name: &str, alpha: f64| {
        let mut settings = config(&["q_proj"]);
        settings["lora_alpha"] = json!(alpha);
        write_adapter(&home.path().join(name), &[a.clone(), b.clone()], &settings)
    };
    let plain = adapter("plain", 8.0);
    for format in [&["--format", "gguf", "--base", base.to_str().unwrap()][..], &["--format", "mlx"]] {
        let with = |adapter: &Path, dtype: &str| {
            let _ = fs::remove_dir_all(&out);
            convert(adapter, &out, &[format, &["--dtype", dtype]].concat())
        };
        // Zeros would be written, and nothing said.
        with(&plain, "f16").code(2).says("F16 cannot hold a factor").says(module);
        with(&plain, "f32").code(0);
        // As f32, the scale would be infinite and the factors zero.
        with(&adapter("huge", 1e300), "f32").code(2).says("F32 cannot hold a factor");
        with(&adapter("large", 1e40), "f32").code(0);
    }
}

#[test]
fn mlx_has_the_transposes() {
    let home = tempdir().unwrap();
    let (out, q, up) =
        (home.path().join("out"), "model.layers.1.self_attn.q_proj", "model.layers.0.mlp.up_proj");
    let mut factors = lora(q, [10, 6], 4, 1);
    factors.extend(lora(up, [12, 6], 2, 5));
    let mut settings = config(&["q_proj", "up_proj"]);
    settings["rank_pattern"] = json!({"up_proj": 2});
    let adapter = write_adapter(&home.path().join("adapter"), &factors, &settings);
    convert(&adapter, &out, &["--format", "mlx", "--dtype", "f32"]).code(0);
    let settings: Value =
        serde_json::from_slice(&fs::read(out.join("adapter_config.json")).unwrap()).unwrap();
    let scale = settings["lora_parameters"]["scale"].as_f64().unwrap();
    assert_eq!(settings["lora_parameters"]["keys"], json!(["mlp.up_proj", "self_attn.q_proj"]));
    assert_eq!((&settings["num_layers"], &settings["lora_parameters"]["rank"]), (&json!(2), &json!(4)));
    let written = dense(&out.join("adapters.safetensors"));
    for (module, [rows, columns], rank, own, pair) in
        [(q, [10, 6], 4, 2.0, &factors[..2]), (up, [12, 6], 2, 4.0, &factors[2..])]
    {
        let (a_shape, a) = &written[&format!("{module}.lora_a")];
        let (b_shape, b) = &written[&format!("{module}.lora_b")];
        assert_eq!((a_shape, b_shape), (&vec![columns, 4], &vec![4, rows]));
        let (was_a, was_b) = (values(&pair[0]), values(&pair[1]));
        for (i, j) in (0..rows).flat_map(|i| (0..columns).map(move |j| (i, j))) {
            let got: f64 = (0..4).map(|k| scale * a[j * 4 + k] * b[k * rows + i]).sum();
            let want: f64 = (0..rank).map(|k| own * was_b[i * rank + k] * was_a[k * columns + j]).sum();
            assert!(
                (got - want).abs() < 1e-6 * want.abs().max(1.0),
                "{module} {i}, {j}: {got} is not {want}"
            );
        }
    }
    run(trephine().args(["verify", "--quiet"]).arg(&out)).code(0);
}

#[test]
fn what_a_format_has_no_place_for_is_refused() {
    let base = |name: &str| models().into_iter().find(|path| path.ends_with(name)).unwrap();
    let home = tempdir().unwrap();
    let refused = |factors: &[Tensor], settings: &Value, more: &[&str], code: i32| {
        let adapter = write_adapter(&home.path().join("adapter"), factors, settings);
        let out = home.path().join("out");
        let _ = fs::remove_dir_all(&out);
        convert(&adapter, &out, more).code(code)
    };
    let q = lora("model.layers.0.self_attn.q_proj", [64, 32], 4, 1);
    let plain = config(&["q_proj"]);
    let qwen3 = base("qwen3");
    let gguf = ["--format", "gguf", "--base", qwen3.to_str().unwrap()];
    refused(&q, &plain, &["--format", "gguf"], 2).says("give --base");
    let head = lora("lm_head", [20, 32], 4, 1);
    refused(&head, &plain, &gguf, 3).says("head or embedding that are tied").says("lm_head");
    refused(&head, &plain, &["--format", "mlx"], 3).says("modules of layers alone");
    let expert = lora("model.layers.0.mlp.experts.3.up_proj", [8, 32], 4, 1);
    refused(&expert, &plain, &gguf, 3).says("llama.cpp's name for this module is not known");
    // Another spelling of a layer's number would be a second tensor of the same name.
    for layer in ["00", "+0"] {
        let twice =
            [q.clone(), lora(&format!("model.layers.{layer}.self_attn.q_proj"), [64, 32], 4, 1)].concat();
        refused(&twice, &plain, &gguf, 3).says("name for this module is not known").says(layer);
        refused(&twice, &plain, &["--format", "mlx"], 3).says("modules of layers alone").says(layer);
    }
    let mut dora = plain.clone();
    dora["use_dora"] = json!(true);
    refused(&q, &dora, &gguf, 3).says("DoRA");
    let norm = Tensor::bf16("base_model.model.model.norm.weight", &[32], &noise(3, 32));
    refused(&[q.clone(), vec![norm]].concat(), &plain, &gguf, 3).says("is not a factor").says("sanitize");
    refused(&[], &plain, &gguf, 3).says("holds no factors");
    let other = home.path().join("base");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("config.json"), json!({"model_type": "mamba"}).to_string()).unwrap();
    let more = ["--format", "gguf", "--base", other.to_str().unwrap()];
    refused(&q, &plain, &more, 3).says("not supported for models of type 'mamba'");
}

#[test]
fn a_conversion_that_was_stopped_is_begun_anew_and_a_finished_one_is_left_alone() {
    let home = tempdir().unwrap();
    let [one, other] = ["one", "other"].map(|name| home.path().join(name));
    let module = "model.layers.0.self_attn.q_proj";
    write_adapter(&one, &lora(module, [64, 32], 4, 1), &config(&["q_proj"]));
    write_adapter(&other, &lora(module, [64, 32], 4, 9), &config(&["q_proj"]));
    let mlx = ["--format", "mlx"];
    let out = home.path().join("out");
    convert(&one, &out, &mlx).code(0);
    let files = contents(&out);
    assert_eq!(files.len(), 3, "{:?}", files.keys());
    convert(&one, &out, &mlx).code(0);
    assert_same(&out, &files, "again");
    convert(&other, &out, &mlx).code(2).says("holds another conversion");
    assert_same(&out, &files, "another adapter");
    // Killed while the files were moved: one lies there, the sums do not.
    let stopped = home.path().join("stopped");
    fs::create_dir_all(stopped.join(".trephine/results")).unwrap();
    fs::write(stopped.join(".trephine/lock"), "1").unwrap();
    fs::write(stopped.join(".tmp-1-0"), "half").unwrap();
    fs::write(stopped.join(".trephine/results/adapter_config.json"), "torn").unwrap();
    fs::copy(out.join("adapters.safetensors"), stopped.join("adapters.safetensors")).unwrap();
    convert(&one, &stopped, &mlx).code(0);
    assert_same(&stopped, &files, "stopped");
    // A file of that name that no conversion has begun is somebody else's.
    let foreign = home.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("adapters.safetensors"), "mine").unwrap();
    convert(&one, &foreign, &mlx).code(2).says("holds something else");
    assert_eq!(fs::read(foreign.join("adapters.safetensors")).unwrap(), b"mine");
    // What is refused leaves nothing.
    let refused = home.path().join("refused");
    convert(&one, &refused, &["--format", "gguf"]).code(2);
    assert!(contents(&refused).is_empty());
}
