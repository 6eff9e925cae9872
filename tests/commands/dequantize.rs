//! `trephine dequantize`: values bit-equal to each reference, files in the form that loaders need, safe to kill.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::common::conversions::Made;
use crate::common::pair::{Tensor, noise, read_file, write, write_file};
use crate::common::{Ended, assert_same, contents, copied, copy, data, run, trephine};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tempfile::tempdir;
use trephine::commands::convert::{Dequantization, dequantize};
use trephine::lora::FactorType;
use trephine::run::{Progress, Silent};

fn command(checkpoint: &str, out: &Path, more: &[&str]) -> Ended {
    let mut command = trephine();
    run(command.args(["dequantize", "--quiet", checkpoint, "--out"]).arg(out).args(more))
}

/// `base-fp8` dequantized into several files.
fn several() -> Made {
    Made { base: data("base-fp8"), adapter: None, fp8: false, max_shard_size: 300_000 }
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// All tensors of a folder by name.
fn tensors(folder: &Path) -> BTreeMap<String, Tensor> {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|end| end == "safetensors"));
    files.flat_map(|path| read_file(&path)).map(|tensor| (tensor.name.clone(), tensor)).collect()
}

/// Every fixture as a checkpoint of one weight and a norm: the output is that of the reference library.
#[test]
fn every_format_comes_out_bit_for_bit() {
    let mut seen = 0;
    for format in ["block_fp8", "compressed", "bitsandbytes", "fp8", "gptq", "awq", "modelopt"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(format);
        for path in fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()) {
            fixture(&path);
            seen += 1;
        }
    }
    assert_eq!(seen, 96);
}

/// Stacks of experts stay whole: MXFP4 as `[experts, in, out]`, like transformers, FP8 as it is stored.
#[test]
fn stacks_of_experts_come_out_bit_for_bit() {
    let mut seen = 0;
    for format in ["mxfp4", "fp8_experts"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(format);
        for path in fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()) {
            stack(&path, format == "mxfp4", false);
            // An odd number of rows cannot be gate and up.
            if !path.ends_with("2x35x96.safetensors") {
                stack(&path, format == "mxfp4", true);
            }
            seen += 1;
        }
    }
    assert_eq!(seen, 6);
}

/// One stack, from a model whose adapters hold stacks or from one whose adapters hold single experts.
fn stack(path: &Path, is_mxfp4: bool, single: bool) {
    let home = tempdir().unwrap();
    let (_, header) = SafeTensors::read_metadata(&fs::read(path).unwrap()).unwrap();
    let metadata = header.metadata().as_ref().unwrap();
    let of = |key: &str| metadata.get(key).map(|text| serde_json::from_str::<Value>(text).unwrap());
    let all: BTreeMap<String, Tensor> = read_file(path).into_iter().map(|t| (t.name.clone(), t)).collect();
    let stored: Vec<Tensor> = all.values().filter(|t| t.name.starts_with("w.")).cloned().collect();
    let mut config = of("config").unwrap_or(json!({"model_type": "gpt_oss"}));
    if single {
        config["model_type"] = json!("qwen3_moe");
    }
    config["quantization_config"] = of("quantization_config").unwrap();
    let folder = write(&home.path().join("in"), &stored, &config);
    let turned = is_mxfp4 || path.to_str().unwrap().contains("turned");
    for (dtype, expected) in [(FactorType::Bf16, "bridge_bf16"), (FactorType::F32, "expected_f32")] {
        let out = home.path().join(expected);
        let job = Dequantization::new(folder.to_str().unwrap(), out.clone(), crate::common::running());
        let outcome = dequantize(&Dequantization { dtype, ..job }, &Silent).unwrap();
        assert_eq!((outcome.conversion.computed, outcome.conversion.copied), (1, 0));
        let got = tensors(&out);
        let names: Vec<&str> = got.keys().map(String::as_str).collect();
        assert_eq!(names, ["w.experts.gate_up_proj"], "{}", path.display());
        let (got, want) = (&got["w.experts.gate_up_proj"], &all[expected]);
        let &[experts, rows, columns] = want.shape.as_slice() else { panic!("{:?}", want.shape) };
        let shape = if turned { [experts, columns, rows] } else { [experts, rows, columns] };
        assert_eq!((got.dtype, got.shape.as_slice()), (want.dtype, &shape[..]), "{}", path.display());
        let [got, want] = [got, want].map(|t| trephine::quant::format::to_f32(t.dtype, &t.bytes).unwrap());
        for (at, got) in got.iter().enumerate() {
            let [_, high, wide] = shape;
            let (expert, row, column) = (at / (high * wide), at / wide % high, at % wide);
            let [row, column] = if turned { [column, row] } else { [row, column] };
            let want = want[(expert * rows + row) * columns + column];
            let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
            assert!(same, "{}: value {at} is {got:e}, the reference has {want:e}", path.display());
        }
    }
}

/// Stacks so large that pieces span experts, with a dense one beside them.
#[test]
fn large_and_dense_stacks_of_experts() {
    let home = tempdir().unwrap();
    let (experts, rows, columns) = (5usize, 200usize, 4096usize);
    let codes: Vec<u8> = (0..experts * rows * columns).map(|i| (i * 7 % 251 / 2) as u8).collect();
    let grid = [experts, rows.div_ceil(128), columns / 128];
    let scales: Vec<f32> = (1..=grid.iter().product()).map(|i| i as f32 / 64.0).collect();
    let name = "l.0.mlp.experts.gate_up_proj";
    let dense = Tensor::bf16("l.0.mlp.experts.down_proj", &[3, 8, 4], &noise(1, 96));
    let tensors = [
        Tensor {
            name: name.into(),
            shape: vec![experts, rows, columns],
            dtype: Dtype::F8_E4M3,
            bytes: codes.clone(),
        },
        Tensor::f32(&format!("{name}_scale_inv"), &grid, &scales),
        dense.clone(),
    ];
    let quantization = json!({"quant_method": "fp8", "weight_block_size": [128, 128]});
    let config =
        json!({"model_type": "qwen3_vl_moe", "hidden_size": columns, "quantization_config": quantization});
    let folder = write(&home.path().join("in"), &tensors, &config);
    let out = home.path().join("out");
    command(folder.to_str().unwrap(), &out, &["--dtype", "f32"]).code(0);
    let got = self::tensors(&out);
    assert_eq!(got.keys().map(String::as_str).collect::<Vec<_>>(), [dense.name.as_str(), name]);
    assert_eq!((&got[&dense.name].bytes, &got[&dense.name].shape), (&dense.bytes, &dense.shape));
    assert_eq!(got[name].shape, [experts, rows, columns]);
    let table = trephine::quant::number::E4M3;
    for (at, value) in
        trephine::quant::format::to_f32(Dtype::F32, &got[name].bytes).unwrap().iter().enumerate()
    {
        let (expert, row, column) = (at / (rows * columns), at / columns % rows, at % columns);
        let scale = scales[(expert * grid[1] + row / 128) * grid[2] + column / 128];
        assert_eq!(*value, table[usize::from(codes[at])] * scale, "value {at}");
    }
}

fn fixture(path: &Path) {
    let home = tempdir().unwrap();
    let bytes = fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let declared: Value =
        serde_json::from_str(&header.metadata().as_ref().unwrap()["quantization_config"]).unwrap();
    let all: BTreeMap<String, Tensor> = read_file(path).into_iter().map(|t| (t.name.clone(), t)).collect();
    let mut stored: Vec<Tensor> = all.values().filter(|t| t.name.starts_with("w.")).cloned().collect();
    stored.push(Tensor::f32("norm.weight", &[7], &noise(1, 7)));
    let config = json!({"model_type": "qwen3", "torch_dtype": "float32", "quantization_config": declared});
    let folder = write(&home.path().join("in"), &stored, &config);
    for (dtype, expected, word) in
        [(FactorType::Bf16, "bridge_bf16", "bfloat16"), (FactorType::F32, "expected_f32", "float32")]
    {
        let out = home.path().join(word);
        let job = Dequantization::new(folder.to_str().unwrap(), out.clone(), crate::common::running());
        dequantize(&Dequantization { dtype, ..job }, &Silent).unwrap();
        let got = tensors(&out);
        let names: Vec<&str> = got.keys().map(String::as_str).collect();
        assert_eq!(names, ["norm.weight", "w.weight"], "{}", path.display());
        assert_eq!(got["norm.weight"].bytes, stored.last().unwrap().bytes);
        let (got, want) = (&got["w.weight"], &all[expected]);
        assert_eq!((got.dtype, &got.shape), (want.dtype, &want.shape), "{}", path.display());
        let [got, want] = [got, want].map(|t| trephine::quant::format::to_f32(t.dtype, &t.bytes).unwrap());
        for (at, (got, want)) in got.iter().zip(&want).enumerate() {
            let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
            assert!(same, "{}: value {at} is {got:e}, the reference has {want:e}", path.display());
        }
        let config = json_of(&out.join("config.json"));
        assert_eq!(config, json!({"model_type": "qwen3", "torch_dtype": word}));
    }
}

#[test]
fn files_and_index_are_as_loaders_want_them() {
    let home = tempdir().unwrap();
    let out = home.path().join("out");
    command(&data("base-fp8"), &out, &["--max-shard-size", "300000"]).code(0);
    let index = json_of(&out.join("model.safetensors.index.json"));
    let map = index["weight_map"].as_object().unwrap();
    let (got, input, base) =
        (tensors(&out), tensors(Path::new(&data("base-fp8"))), tensors(Path::new(&data("base"))));
    assert_eq!(map.keys().collect::<Vec<_>>(), base.keys().collect::<Vec<_>>(), "the base's own names");
    let mut files: Vec<&str> = map.values().map(|file| file.as_str().unwrap()).collect();
    files.sort_unstable();
    files.dedup();
    let count = files.len();
    assert!(count > 5, "{files:?}");
    let mut total = 0;
    for (at, file) in files.iter().enumerate() {
        assert_eq!(*file, format!("model-{:05}-of-{count:05}.safetensors", at + 1));
        let inside = read_file(&out.join(file));
        let bytes: usize = inside.iter().map(|tensor| tensor.bytes.len()).sum();
        assert!(bytes <= 300_000 || inside.len() == 1, "{file} has {bytes} bytes");
        inside.iter().for_each(|tensor| assert_eq!(map[&tensor.name], **file));
        total += bytes;
    }
    assert_eq!(index["metadata"]["total_size"], total);
    for (name, tensor) in &got {
        assert_eq!((tensor.dtype, &tensor.shape), (Dtype::BF16, &base[name].shape), "{name}");
        if input[name].dtype == Dtype::BF16 {
            assert_eq!(tensor.bytes, input[name].bytes, "{name} is copied");
        }
    }
    let config = json_of(&out.join("config.json"));
    assert!(config.get("quantization_config").is_none());
    assert_eq!(config["dtype"], "bfloat16");
    for file in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        let from = fs::read(Path::new(&data("base-fp8")).join(file)).unwrap();
        assert_eq!(fs::read(out.join(file)).unwrap(), from, "{file}");
    }
    run(trephine().arg("verify").arg(&out)).code(0);
    // The dense copy can be opened, and is dense.
    let again = home.path().join("again");
    let ended = command(out.to_str().unwrap(), &again, &[]).code(0);
    assert!(ended.stdout.starts_with("0 weights from dense, 36 tensors copied"), "{}", ended.stdout);
    assert!(!again.join("model.safetensors.index.json").exists());
    assert_eq!(
        tensors(&again).into_iter().map(|(n, t)| (n, t.bytes)).collect::<Vec<_>>(),
        got.into_iter().map(|(n, t)| (n, t.bytes)).collect::<Vec<_>>()
    );
}

#[test]
fn all_else_is_copied_but_weights_and_what_declares_them() {
    let home = tempdir().unwrap();
    let from = copied("base-fp8", home.path());
    fs::create_dir_all(from.join("assets/more")).unwrap();
    fs::create_dir_all(from.join(".cache")).unwrap();
    let files = ["assets/more/picture.png", "chat_template.jinja", "LICENSE"];
    let left = [
        "quantize_config.json",
        "hf_quant_config.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "model.gguf",
        ".gitattributes",
        ".cache/x",
        "B3SUMS",
        "conversion.json",
    ];
    files.iter().chain(&left).for_each(|file| fs::write(from.join(file), "{}").unwrap());
    let out = home.path().join("out");
    command(from.to_str().unwrap(), &out, &[]).code(0);
    let found = contents(&out);
    files.iter().for_each(|file| assert_eq!(found[*file], b"{}", "{file}"));
    let sums = fs::read_to_string(out.join("B3SUMS")).unwrap();
    assert!(sums.contains("  assets/more/picture.png\n"), "{sums}");
    for file in left.iter().filter(|file| !["B3SUMS", "conversion.json"].contains(file)) {
        assert!(!out.join(file).exists(), "{file}");
    }
    run(trephine().arg("verify").arg(&out)).code(0);
}

#[test]
fn scales_of_activations_are_left_out_and_named() {
    let home = tempdir().unwrap();
    let one = |name: &str| Tensor::f32(name, &[1], &[0.5]);
    let codes = Tensor {
        name: "a.self_attn.q_proj.weight".into(),
        shape: vec![2, 4],
        dtype: Dtype::F8_E4M3,
        bytes: vec![0x38; 8],
    };
    let tensors = [
        codes,
        one("a.self_attn.q_proj.weight_scale"),
        one("a.self_attn.q_proj.input_scale"),
        one("a.self_attn.k_scale"),
        one("a.mlp.input_scale"),
        Tensor::bf16("a.self_attn.q_proj.bias", &[2], &[1.0, 2.0]),
    ];
    let config = json!({"quantization_config": {"quant_method": "fp8"}});
    let folder = write(&home.path().join("in"), &tensors, &config);
    let out = home.path().join("out");
    let ended = command(folder.to_str().unwrap(), &out, &["--json"]).code(0);
    let told: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(told["dropped"], json!(["a.self_attn.k_scale", "a.self_attn.q_proj.input_scale"]));
    // A scale that belongs to no quantized weight is an ordinary parameter.
    let names: Vec<String> = self::tensors(&out).into_keys().collect();
    assert_eq!(names, ["a.mlp.input_scale", "a.self_attn.q_proj.bias", "a.self_attn.q_proj.weight"]);
    assert_eq!(json_of(&out.join("config.json")), json!({"torch_dtype": "bfloat16"}));
}

#[test]
fn what_f16_does_not_hold_is_an_error_and_what_is_not_finite_is_told() {
    let home = tempdir().unwrap();
    let weight = |scale: f32| {
        let codes = vec![0x7e; 8];
        let codes =
            Tensor { name: "w.weight".into(), shape: vec![2, 4], dtype: Dtype::F8_E4M3, bytes: codes };
        [codes, Tensor::f32("w.weight_scale_inv", &[1, 1], &[scale])]
    };
    let config = json!({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}});
    let large = write(&home.path().join("large"), &weight(200.0), &config);
    let out = home.path().join("out");
    command(large.to_str().unwrap(), &out, &["--dtype", "f16"])
        .code(3)
        .says("a weight is 89600, which is out of range for f16: tensor 'w'")
        .says("--dtype bf16");
    assert!(!out.join("model.safetensors").exists());
    let infinite = write(&home.path().join("infinite"), &weight(3e38), &config);
    let out = home.path().join("infinite-out");
    let ended = command(infinite.to_str().unwrap(), &out, &[]).code(0);
    assert!(ended.stdout.contains("w has 8 values that are NaN or infinite"), "{}", ended.stdout);
    assert_eq!(json_of(&out.join("conversion.json"))["non_finite"], json!({"w": 8}));
}

#[test]
fn killed_at_every_file_and_in_the_middle_of_some() {
    let home = tempdir().unwrap();
    let made = several();
    let files = made.files(home.path());
    let mut points: Vec<String> = (0..8).map(|record| format!("record {record}")).collect();
    points.extend(["byte 0", "byte 350000", "byte 1500000", "assembling"].map(String::from));
    points.push("model-00003-of-00008.safetensors".into());
    for point in points {
        let out = home.path().join(&point);
        assert!(made.killed_at(&out, &point), "{point} was never reached");
        assert!(!out.join("B3SUMS").exists());
        made.goes_on(&out, &files, &format!("killed at {point}"));
    }
    // Repeatedly.
    let (out, mut kills) = (home.path().join("again"), 0);
    while made.killed_at(&out, "record 2") {
        kills += 1;
    }
    assert_eq!(kills, 4);
    assert_same(&out, &files, "two files at a time");
}

#[test]
fn killed_while_the_last_files_are_written() {
    let home = tempdir().unwrap();
    let made = several();
    let files = made.files(home.path());
    let killed = home.path().join("killed");
    assert!(made.killed_at(&killed, "assembling"));
    let last = [
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "config.json",
        "conversion.json",
        "model.safetensors.index.json",
        "B3SUMS",
    ];
    for count in 0..=last.len() {
        let out = home.path().join(count.to_string());
        copy(&killed, &out);
        last[..count].iter().for_each(|file| fs::write(out.join(file), &files[*file]).unwrap());
        // The file that a kill leaves half written.
        if count < last.len() {
            fs::write(out.join(".tmp-4194305-0"), "half of it").unwrap();
        }
        made.goes_on(&out, &files, &format!("killed after {count} files"));
    }
}

#[test]
fn damaged_and_stale_files_are_made_again() {
    struct Notes(std::sync::Mutex<Vec<String>>);
    impl Progress for Notes {
        fn note(&self, text: &str) {
            self.0.lock().unwrap().push(text.to_owned());
        }
    }
    let home = tempdir().unwrap();
    let base = copied("base-fp8", home.path());
    let made = Made { base: base.to_str().unwrap().into(), ..several() };
    let files = made.files(home.path());
    let killed = home.path().join("killed");
    assert!(made.killed_at(&killed, "assembling"));
    let file = "model-00002-of-00008.safetensors";
    for (name, count) in [("flipped", 1), ("cut", 1), ("gone", 1), ("input written again", 0)] {
        let out = home.path().join(name);
        copy(&killed, &out);
        match name {
            "flipped" => crate::common::flip(&out.join(file), 5000),
            "cut" => fs::write(out.join(file), "short").unwrap(),
            "gone" => fs::remove_file(out.join(file)).unwrap(),
            _ => {
                let path = base.join("model.safetensors");
                let later = std::time::SystemTime::now() + std::time::Duration::from_secs(1);
                fs::File::options().write(true).open(path).unwrap().set_modified(later).unwrap();
            }
        }
        let notes = Notes(Default::default());
        made.run(&out, &notes).unwrap();
        let notes = notes.0.into_inner().unwrap();
        assert_eq!(
            notes.iter().filter(|note| note.contains("is done again")).count(),
            count,
            "{name}: {notes:?}"
        );
        assert_same(&out, &files, name);
    }
}

#[test]
fn folders_that_are_not_this_runs() {
    let home = tempdir().unwrap();
    let (base, out) = (data("base-fp8"), home.path().join("out"));
    // Foreign files, under names that a conversion uses too.
    for file in ["notes.txt", "config.json", "model.safetensors", "B3SUMS"] {
        let out = home.path().join(format!("foreign-{file}"));
        fs::create_dir(&out).unwrap();
        fs::write(out.join(file), "mine").unwrap();
        let before = contents(&out);
        for more in [&[][..], &["--overwrite"]] {
            command(&base, &out, more).code(2).says("holds something else").says(file);
            assert_same(&out, &before, file);
        }
    }
    // The checkpoint's own folder, and an adapter's.
    let own = copied("base-fp8", home.path());
    command(own.to_str().unwrap(), &own, &["--overwrite"]).code(2).says("contains the input");
    // A finished one: there is nothing to do, other options are refused, damage is reported.
    command(&base, &out, &[]).code(0);
    let before = contents(&out);
    assert!(command(&base, &out, &[]).code(0).stdout.contains("(already complete)"));
    command(&base, &out, &["--dtype", "f32"]).code(2).says("--dtype was \"bf16\" and is \"f32\"");
    command(&base, &out, &["--max-shard-size", "300kB"])
        .code(2)
        .says("--max-shard-size was 5000000000 and is 300000");
    command(&data("base"), &out, &[]).code(2).says("the checkpoint is a different one");
    assert_same(&out, &before, "refused");
    crate::common::flip(&out.join("model.safetensors"), 9000);
    command(&base, &out, &[]).code(2).says("finished run that is damaged");
    fs::write(out.join("mine.txt"), "x").unwrap();
    command(&base, &out, &["--overwrite"]).code(2).says("mine.txt");
    fs::remove_file(out.join("mine.txt")).unwrap();
    // Files of the earlier run are removed when it is overwritten with other options.
    command(&base, &out, &["--overwrite", "--max-shard-size", "300kB"]).code(0);
    assert_same(&out, &several().files(home.path()), "overwritten");
    // An unfinished one with other options.
    let out = home.path().join("unfinished");
    assert!(several().killed_at(&out, "record 3"));
    command(&base, &out, &[]).code(2).says("--max-shard-size was 300000 and is 5000000000");
    command(&base, &out, &["--overwrite"]).code(0);
    assert_same(&out, &before, "anew");
}

#[test]
fn threads_and_memory_change_no_byte_and_too_little_is_refused() {
    let home = tempdir().unwrap();
    let files = several().files(home.path());
    for (at, more) in [["--threads", "1"], ["--threads", "7"], ["--memory", "60MiB"]].iter().enumerate() {
        let out = home.path().join(at.to_string());
        let more = [&more[..], &["--max-shard-size", "300000"]].concat();
        command(&data("base-fp8"), &out, &more).code(0);
        assert_same(&out, &files, &more.join(" "));
    }
    let out = home.path().join("refused");
    command(&data("base-fp8"), &out, &["--memory", "1MiB"])
        .code(2)
        .says("not enough memory: 1 MiB given")
        .says("give --memory ");
    assert!(!out.exists());
    command(&data("base-fp8"), &out, &["--threads", "0"]).code(2).says("0 threads cannot compute anything");
}

/// An output may be made again, but not from itself.
#[test]
fn overwrite_never_destroys_its_own_input() {
    let home = tempdir().unwrap();
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/base-fp8");
    let bridge = home.path().join("bridge");
    command(base.to_str().unwrap(), &bridge, &[]).code(0);
    let before = fs::read(bridge.join("model.safetensors")).unwrap();
    for input in [bridge.clone(), bridge.join("model.safetensors")] {
        let ended = command(input.to_str().unwrap(), &bridge, &["--overwrite"]).code(2);
        ended.says("the output folder contains the input");
    }
    assert_eq!(fs::read(bridge.join("model.safetensors")).unwrap(), before);
}

#[test]
fn bad_input() {
    let home = tempdir().unwrap();
    let out = home.path().join("out");
    command("no/such/model/here", &out, &[]).code(3).says("no such file or folder");
    let codes =
        Tensor { name: "w.weight".into(), shape: vec![2, 4], dtype: Dtype::F8_E4M3, bytes: vec![0; 8] };
    let fp8 = json!({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}});
    let lone = write(&home.path().join("lone"), std::slice::from_ref(&codes), &fp8);
    command(lone.to_str().unwrap(), &out, &[]).code(3).says("without its scale, 'w.weight_scale_inv'");
    let gguf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf/q4_0_33x32.gguf");
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf_models");
    for gguf in [gguf, models.join("llama.gguf"), models.join("qwen3moe.gguf")] {
        let ended = command(gguf.to_str().unwrap(), &out, &[]).code(3);
        ended
            .says("a GGUF file cannot be converted to a checkpoint")
            .says("gguf_file=..), then save_pretrained");
        assert!(!out.exists());
    }
    // A weight that is stored twice: packed and dense.
    let packed =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gptq/b4_whole_64x320.safetensors");
    let mut tensors: Vec<Tensor> =
        read_file(&packed).into_iter().filter(|t| t.name.starts_with("w.")).collect();
    tensors.push(Tensor::bf16("w.weight", &[4], &noise(1, 4)));
    let declared = SafeTensors::read_metadata(&fs::read(&packed).unwrap()).unwrap().1;
    let declared: Value =
        serde_json::from_str(&declared.metadata().as_ref().unwrap()["quantization_config"]).unwrap();
    let twice = write(&home.path().join("twice"), &tensors, &json!({"quantization_config": declared}));
    command(twice.to_str().unwrap(), &out, &[]).code(3).says("holds this weight twice").says("'w.weight'");
    assert!(!out.join("model.safetensors").exists());
    // A single file without a config is accepted.
    let alone = home.path().join("alone.safetensors");
    write_file(&alone, &[Tensor::bf16("w.weight", &[2, 4], &noise(1, 8))]);
    fs::write(home.path().join("tokenizer.json"), "{}").unwrap();
    command(alone.to_str().unwrap(), &out, &[]).code(0);
    let names: Vec<String> = contents(&out).into_keys().collect();
    assert_eq!(names, ["B3SUMS", "conversion.json", "model.safetensors"]);
}

#[test]
fn files_that_may_not_grow() {
    let home = tempdir().unwrap();
    let files = several().files(home.path());
    for blocks in [0, 4, 100, 200] {
        let out = home.path().join(blocks.to_string());
        let limited = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\"");
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &limited, "sh", env!("CARGO_BIN_EXE_trephine"), "dequantize", "--quiet"]);
        command.args([&data("base-fp8"), "--max-shard-size", "300000", "--out"]).arg(&out);
        run(&mut command).code(1).says("cannot ").says("large");
        assert!(!out.join("B3SUMS").exists());
        several().goes_on(&out, &files, &format!("files of {blocks} blocks"));
    }
}
