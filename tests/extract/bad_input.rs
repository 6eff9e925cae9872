//! Each kind of bad input: the command's exit code and message, and no output that looks complete.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::pair::{Tensor, config, dense, noise, pair, read_file, write, write_file};
use crate::common::{contents, copied, copy, data, extract_with, manifest};
use tempfile::{TempDir, tempdir};

/// Checkpoints to spoil.
struct Bench {
    home: TempDir,
}

impl Bench {
    fn new() -> Bench {
        Bench { home: tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// A copy of the base with another weight file.
    fn with_weights(&self, bytes: &[u8]) -> String {
        let folder = copied("base", self.home.path());
        fs::write(folder.join("model.safetensors"), bytes).unwrap();
        text(&folder)
    }

    /// A copy of the base whose weight file is this header, followed by this many bytes.
    fn with_header(&self, header: &str, bytes: usize) -> String {
        let length = (header.len() as u64).to_le_bytes();
        self.with_weights(&[&length[..], header.as_bytes(), &vec![0; bytes]].concat())
    }

    /// A copy of a checkpoint with some of its tensors changed.
    fn with_tensors(&self, name: &str, change: impl FnOnce(&mut Vec<Tensor>)) -> String {
        let folder = copied(name, self.home.path());
        let path = folder.join("model.safetensors");
        let mut tensors = read_file(&path);
        change(&mut tensors);
        write_file(&path, &tensors);
        text(&folder)
    }

    /// Runs, and checks exit code and message against their snapshot.
    fn fails(&self, name: &str, base: &str, tuned: &str, more: &[&str]) {
        let out = self.path("out");
        let ended = extract_with(base, tuned, &out, more);
        let mut said = ended.stderr.replace(&text(self.home.path()), "[home]");
        said = said.replace(&data(""), "[data]/");
        assert!(ended.stdout.is_empty(), "{}", ended.stdout);
        insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => true }, {
            insta::assert_snapshot!(name, format!("exit {}\n{said}", ended.code.unwrap()));
        });
        let left = if out.exists() { contents(&out) } else { Default::default() };
        assert!(left.keys().all(|name| name.starts_with(".trephine/")), "{name} left {:?}", left.keys());
    }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn find<'a>(tensors: &'a mut [Tensor], name: &str) -> &'a mut Tensor {
    tensors.iter_mut().find(|t| t.name.contains(name)).unwrap()
}

#[test]
fn checkpoints_that_are_not_there() {
    let (bench, tuned) = (Bench::new(), data("tuned"));
    bench.fails("missing_folder", &text(&bench.path("no/such/base")), &tuned, &[]);
    bench.fails("missing_repository", "Qwen/Qwen3-32B", &tuned, &[]);
    fs::create_dir(bench.path("empty")).unwrap();
    bench.fails("empty_folder", &text(&bench.path("empty")), &tuned, &[]);
    fs::write(bench.path("model.gguf"), "GGUF").unwrap();
    bench.fails("gguf", &text(&bench.path("model.gguf")), &tuned, &[]);
    bench.fails("config_for_checkpoint", &format!("{}/config.json", data("base")), &tuned, &[]);
    let adapter = bench.path("adapter");
    extract_with(&data("base"), &tuned, &adapter, &["--rank", "1"]).code(0);
    bench.fails("adapter_for_checkpoint", &data("base"), &text(&adapter), &[]);
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    bench.fails("lfs_pointer", &bench.with_weights(pointer.as_bytes()), &tuned, &[]);
}

#[test]
fn headers_that_lie() {
    let (bench, tuned) = (Bench::new(), data("tuned"));
    let one = |offsets: &str| {
        format!("{{\"a.weight\":{{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":{offsets}}}}}")
    };
    let whole = fs::read(format!("{}/model.safetensors", data("base"))).unwrap();
    bench.fails("truncated_data", &bench.with_weights(&whole[..whole.len() - 1]), &tuned, &[]);
    bench.fails("truncated_header", &bench.with_weights(&whole[..100]), &tuned, &[]);
    bench.fails("no_header", &bench.with_weights(&whole[..5]), &tuned, &[]);
    bench.fails("no_bytes", &bench.with_weights(&[]), &tuned, &[]);
    let trailing = [&whole[..], &[0; 4]].concat();
    bench.fails("trailing_bytes", &bench.with_weights(&trailing), &tuned, &[]);
    let large = [&100_000_001u64.to_le_bytes()[..], b"{}"].concat();
    bench.fails("header_over_100_mb", &bench.with_weights(&large), &tuned, &[]);
    let largest = [&u64::MAX.to_le_bytes()[..], b"{}"].concat();
    bench.fails("header_of_all_bytes", &bench.with_weights(&largest), &tuned, &[]);
    bench.fails("header_no_json", &bench.with_header("{\"a.weight\":", 16), &tuned, &[]);
    bench.fails("offsets_reversed", &bench.with_header(&one("[16,0]"), 16), &tuned, &[]);
    bench.fails("offsets_overflow", &bench.with_header(&one("[0,18446744073709551615]"), 16), &tuned, &[]);
    bench.fails("offsets_beyond_u64", &bench.with_header(&one("[0,18446744073709551616]"), 16), &tuned, &[]);
    bench.fails("offsets_negative", &bench.with_header(&one("[-16,0]"), 16), &tuned, &[]);
    bench.fails("offsets_beyond_the_file", &bench.with_header(&one("[16,32]"), 16), &tuned, &[]);
    let shape = one("[0,16]").replace("[2,2]", "[4294967296,4294967296]");
    bench.fails("shape_overflows", &bench.with_header(&shape, 16), &tuned, &[]);
    let shape = one("[0,16]").replace("[2,2]", "[3,2]");
    bench.fails("shape_and_bytes_differ", &bench.with_header(&shape, 16), &tuned, &[]);
    let dtype = one("[0,16]").replace("F32", "F12");
    bench.fails("unknown_dtype", &bench.with_header(&dtype, 16), &tuned, &[]);
    let two =
        |second: &str| format!("{},{}", one("[0,16]").trim_end_matches('}'), second).replace(",\"b", "},\"b");
    let overlap = two("\"b.weight\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[8,24]}}");
    bench.fails("overlapping_data", &bench.with_header(&overlap, 24), &tuned, &[]);
    let gap = two("\"b.weight\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[20,36]}}");
    bench.fails("hidden_bytes", &bench.with_header(&gap, 36), &tuned, &[]);
}

#[test]
fn indexes_that_lie() {
    let (bench, tuned) = (Bench::new(), data("tuned"));
    let folder = copied("base", bench.home.path());
    let index = |file: &str, tensor: &str| {
        let map = serde_json::json!({"weight_map": {tensor: file}});
        fs::write(folder.join("model.safetensors.index.json"), map.to_string()).unwrap();
    };
    for (name, file) in [
        ("index_upwards", "../tuned/model.safetensors"),
        ("index_absolute", "/etc/passwd"),
        ("index_missing_file", "model-00001-of-00002.safetensors"),
    ] {
        index(file, "model.norm.weight");
        bench.fails(name, &text(&folder), &tuned, &[]);
    }
    index("model.safetensors", "model.unknown.weight");
    bench.fails("index_missing_tensor", &text(&folder), &tuned, &[]);
    fs::write(folder.join("model.safetensors.index.json"), "{").unwrap();
    bench.fails("index_no_json", &text(&folder), &tuned, &[]);
    fs::remove_file(folder.join("model.safetensors.index.json")).unwrap();
    fs::copy(folder.join("model.safetensors"), folder.join("other.safetensors")).unwrap();
    bench.fails("two_exports", &text(&folder), &tuned, &[]);
}

#[test]
fn quantized_weights_that_cannot_be_read() {
    let (bench, tuned) = (Bench::new(), data("tuned"));
    let base = bench
        .with_tensors("base-fp8", |t| t.retain(|t| t.name != "model.layers.1.mlp.up_proj.weight_scale_inv"));
    bench.fails("missing_scale", &base, &tuned, &[]);
    let config = bench.path("base-fp8/config.json");
    let declared = fs::read_to_string(&config).unwrap();
    for method in ["hqq", "from_the_future"] {
        fs::write(&config, declared.replace("\"fp8\"", &format!("\"{method}\""))).unwrap();
        bench.fails(&format!("unsupported_{method}"), &base, &tuned, &[]);
    }
    fs::copy(format!("{}/config.json", data("base")), &config).unwrap();
    bench.fails("undeclared_fp8", &base, &tuned, &[]);
    fs::write(&config, "{\"model_type\": ").unwrap();
    bench.fails("config_no_json", &base, &tuned, &[]);
}

#[test]
fn numbers_that_are_none() {
    let bench = Bench::new();
    const NAN: [u8; 2] = [0xc0, 0x7f];
    const INFINITY: [u8; 2] = [0x80, 0x7f];
    let spoilt = |name: &str, value: [u8; 2]| {
        bench.with_tensors(name, |tensors| {
            let up = find(tensors, "layers.1.mlp.up_proj.weight");
            up.bytes[2 * 165..2 * 165 + 2].copy_from_slice(&value);
        })
    };
    let [base, tuned] = [data("base"), data("tuned")];
    for (side, value, name) in [
        ("base", NAN, "nan_in_base"),
        ("base", INFINITY, "infinity_in_base"),
        ("tuned", NAN, "nan_in_tuned"),
        ("tuned", INFINITY, "infinity_in_tuned"),
    ] {
        let path = spoilt(side, value);
        let [base, tuned] = if side == "base" { [&path, &tuned] } else { [&base, &path] };
        bench.fails(name, base, tuned, &["--rank", "4"]);
        let out = bench.path("counted");
        extract_with(base, tuned, &out, &["--rank", "4", "--non-finite", "zero"]).code(0);
        let modules = manifest(&out)["modules"].as_array().unwrap().clone();
        let counts: Vec<_> = modules.iter().filter(|m| m.get("non_finite").is_some()).collect();
        assert_eq!(counts.len(), 1, "{name}");
        assert_eq!(counts[0]["name"], "model.layers.1.mlp.up_proj");
        assert_eq!(counts[0]["non_finite"], 1);
        for (tensor, (_, values)) in dense(&out.join("adapter_model.safetensors")) {
            assert!(values.iter().all(|v| v.is_finite()), "{name}: {tensor}");
        }
        fs::remove_dir_all(out).unwrap();
        fs::remove_dir_all(bench.path("out")).unwrap();
    }
}

#[test]
fn checkpoints_that_do_not_belong_together() {
    let bench = Bench::new();
    let folder = copied("tuned", bench.home.path());
    let config = fs::read_to_string(folder.join("config.json")).unwrap();
    fs::write(folder.join("config.json"), config.replace("\"qwen3\"", "\"llama\"")).unwrap();
    bench.fails("model_types_differ", &data("base"), &text(&folder), &[]);
    let names = ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.o_proj"];
    let (narrow, wide) = (bench.path("narrow"), bench.path("wide"));
    pair(&narrow, &names.map(|name| (name, [32, 32])));
    pair(&wide, &names.map(|name| (name, [32, 48])));
    bench.fails("shapes_differ", &text(&narrow.join("base")), &text(&wide.join("tuned")), &[]);
    pair(&bench.path("other"), &[("transformer.h.0.attn", [32, 32])]);
    bench.fails("no_common_names", &text(&narrow.join("base")), &text(&bench.path("other/tuned")), &[]);
    bench.fails(
        "served_is_another",
        &data("base"),
        &data("tuned"),
        &["--served", &text(&narrow.join("base"))],
    );
}

#[test]
fn options_that_the_user_must_decide() {
    let bench = Bench::new();
    let [base, tuned] = [data("base"), data("tuned")];
    for (name, more) in [
        ("rank_0", &["--rank", "0"][..]),
        ("rank_negative", &["--rank=-1"]),
        ("tolerance_0", &["--tolerance", "0"]),
        ("tolerance_nan", &["--tolerance", "NaN"]),
        ("energy_above_1", &["--energy", "90"]),
        ("threads_0", &["--threads", "0"]),
        ("threads_too_many", &["--threads", "18446744073709551615"]),
        ("bad_glob", &["--include", "model.[a"]),
        ("bad_regex", &["--exclude", "re:(q_proj"]),
        ("nothing_selected", &["--include", "query_key_value"]),
        ("memory_no_size", &["--memory", "lots"]),
    ] {
        bench.fails(name, &base, &tuned, more);
    }
}

#[test]
fn the_smallest_budget_that_is_named_works() {
    let bench = Bench::new();
    let [base, tuned] = [data("base-fp8"), data("tuned")];
    for threads in ["1", "2", "8"] {
        let out = bench.path(threads);
        let more = ["--rank", "16", "--threads", threads, "--memory"];
        let ended = extract_with(&base, &tuned, &out, &[&more[..], &["1MiB"]].concat()).code(2);
        let hint = ended.stderr.split("--memory ").nth(1).unwrap();
        let least = hint.split(';').next().unwrap();
        assert!(ended.stderr.contains("not enough memory: 1 MiB given, "), "{}", ended.stderr);
        let below = format!("{}MiB", least.trim_end_matches("MiB").parse::<u64>().unwrap() - 1);
        extract_with(&base, &tuned, &out, &[&more[..], &[&below]].concat()).code(2);
        assert!(!out.exists());
        extract_with(&base, &tuned, &out, &[&more[..], &[least]].concat()).code(0);
    }
}

/// A base with `b` and a tuned checkpoint with `t` rows of vocabulary.
fn vocabularies(home: &Path, b: usize, t: usize) -> (String, String) {
    let of = |side: &str, rows: usize, seed: u64| {
        let weight = |name: &str, shape: &[usize; 2], seed: u64| {
            Tensor::f32(name, shape, &noise(seed, shape[0] * shape[1]))
        };
        let tensors = [
            weight("model.embed_tokens.weight", &[rows, 24], seed),
            weight("lm_head.weight", &[rows, 24], seed + 1),
            weight("model.layers.0.self_attn.o_proj.weight", &[24, 32], seed + 2),
        ];
        text(&write(&home.join(side), &tensors, &config()))
    };
    (of("base", b, 10), of("tuned", t, 20))
}

#[test]
fn vocabularies_that_differ() {
    for (b, t) in [(70, 50), (50, 70)] {
        let bench = Bench::new();
        let (base, tuned) = vocabularies(bench.home.path(), b, t);
        bench.fails(&format!("vocabulary_{b}_{t}"), &base, &tuned, &["--rank", "4"]);
        extract_with(&base, &tuned, &bench.path("linear"), &["--rank", "4", "--trim-vocab"]).code(0);
        let out = bench.path("all");
        // No module has more than 24 singular values.
        let more = ["--rank", "30", "--dtype", "f32", "--trim-vocab", "--include", "linear"];
        let all = [&more[..], &["--include", "lm_head", "--include", "embed_tokens"]].concat();
        extract_with(&base, &tuned, &out, &all).code(0);
        let factors = dense(&out.join("adapter_model.safetensors"));
        let [before, after] = [&base, &tuned].map(|spec| dense(&Path::new(spec).join("model.safetensors")));
        let common = b.min(t);
        let embedding = |row: usize, col: usize| -> f64 {
            let a = &factors["base_model.model.model.embed_tokens.lora_embedding_A"];
            let down = &factors["base_model.model.model.embed_tokens.lora_embedding_B"];
            assert_eq!((&a.0[..], &down.0[..]), (&[24, b][..], &[24, 24][..]));
            (0..24).map(|k| a.1[k * b + row] * down.1[col * 24 + k]).sum()
        };
        let head = |row: usize, col: usize| -> f64 {
            let a = &factors["base_model.model.lm_head.lora_A.weight"];
            let up = &factors["base_model.model.lm_head.lora_B.weight"];
            assert_eq!((&a.0[..], &up.0[..]), (&[24, 24][..], &[b, 24][..]));
            (0..24).map(|k| up.1[row * 24 + k] * a.1[k * 24 + col]).sum()
        };
        for row in 0..b {
            for col in 0..24 {
                let due = |name: &str| {
                    let of = |values: &std::collections::BTreeMap<String, (Vec<usize>, Vec<f64>)>| {
                        values[name].1[row * 24 + col]
                    };
                    if row < common { of(&after) - of(&before) } else { 0.0 }
                };
                let off = (embedding(row, col) - due("model.embed_tokens.weight")).abs();
                let off = off.max((head(row, col) - due("lm_head.weight")).abs());
                assert!(if row < common { off < 1e-4 } else { off == 0.0 }, "row {row}: {off}");
            }
        }
        let left: Vec<_> = manifest(&out)["not_represented"].as_array().unwrap().clone();
        let trimmed: Vec<_> = left.iter().filter(|l| l["reason"] == "trimmed_vocabulary").collect();
        let side = if b > t { "base" } else { "tuned" };
        assert_eq!(trimmed.len(), 2);
        assert!(
            trimmed.iter().all(|l| l["only_in"] == side && l["shape"] == serde_json::json!([20, 24])),
            "{trimmed:?}"
        );
    }
}

#[test]
fn the_base_is_as_it_was() {
    let bench = Bench::new();
    let folder = bench.path("base");
    copy(Path::new(&data("base")), &folder);
    let before = contents(&folder);
    // Inside the checkpoint's own folder, by relative paths with trailing slashes.
    let mut command = crate::common::trephine();
    command.current_dir(bench.home.path()).args(["extract", "--base", "base/", "--tuned"]);
    let tuned = format!("{}//", data("tuned"));
    let ended = crate::common::run(command.arg(tuned).args(["--out", "./base/adapter/", "--rank", "2"]));
    ended.code(0);
    let mut after = contents(&folder);
    assert!(after.contains_key("adapter/B3SUMS"));
    after.retain(|name, _| !name.starts_with("adapter/"));
    assert_eq!(after, before);
    // The same folder without the slash is the same base.
    let mut command = crate::common::trephine();
    command.current_dir(bench.home.path()).args(["extract", "--base", "base", "--tuned", &data("tuned")]);
    let ended = crate::common::run(command.args(["--out", "base/adapter", "--rank", "2"])).code(0);
    assert!(ended.stdout.contains("already complete"), "{}", ended.stdout);
}

#[test]
fn a_file_of_another_kind_is_told_what_would_do() {
    let home = tempdir().unwrap();
    let file = home.path().join("model");
    fs::write(&file, "words").unwrap();
    let ended = extract_with(&text(&file), &data("tuned"), &home.path().join("out"), &["--rank", "4"]);
    ended
        .code(3)
        .says("neither a .safetensors nor a .gguf file")
        .says("hint: give a folder, or a .safetensors or .gguf");
}

#[test]
fn a_part_that_is_none_is_told_how_one_is_written() {
    let home = tempdir().unwrap();
    for (part, words) in
        [("x", "write it as 3/16"), ("5/3", "--part 1/16 is the first"), ("auto/0", "auto/16")]
    {
        let more = ["--part", part];
        extract_with(&data("base"), &data("tuned"), &home.path().join("out"), &more).code(2).says(words);
    }
}
