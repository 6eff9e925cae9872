//! GGUF files as checkpoints: damaged containers, parts of a model, whole runs.

use std::fs;
use std::path::Path;

use crate::checkpoint_files::Folder;
use crate::common::pair::{Tensor, changed, config, dense, noise, write};
use crate::common::{extract_with, run, trephine};
use serde_json::Value;
use trephine::checkpoint::Checkpoint;

/// One tensor of a file: name, dimensions with the innermost first, ggml's number of its type, offset, bytes.
struct Entry {
    name: String,
    dims: Vec<u64>,
    kind: u32,
    offset: u64,
    bytes: Vec<u8>,
}

/// A GGUF file that may be wrong in any way.
struct File {
    magic: [u8; 4],
    version: u32,
    metadata: Vec<(String, u32, Vec<u8>)>,
    tensors: Vec<Entry>,
    tail: Vec<u8>,
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn number(n: u32) -> Vec<u8> {
    n.to_le_bytes().to_vec()
}

impl File {
    fn new(architecture: &str) -> File {
        let metadata = vec![("general.architecture".to_owned(), 8, text(architecture))];
        File { magic: *b"GGUF", version: 3, metadata, tensors: Vec::new(), tail: Vec::new() }
    }

    /// Two F32 matrices of 2 x 8, `blk.0.ffn_up.weight` and `blk.0.ffn_down.weight`.
    fn plain() -> File {
        let f32s = |seed| noise(seed, 16).iter().flat_map(|v| v.to_le_bytes()).collect();
        File::new("qwen3").add("blk.0.ffn_up.weight", &[8, 2], 0, f32s(1)).add(
            "blk.0.ffn_down.weight",
            &[8, 2],
            0,
            f32s(2),
        )
    }

    fn key(mut self, key: &str, kind: u32, value: Vec<u8>) -> File {
        self.metadata.push((key.to_owned(), kind, value));
        self
    }

    fn add(mut self, name: &str, dims: &[u64], kind: u32, bytes: Vec<u8>) -> File {
        let end = self.tensors.last().map_or(0, |last| last.offset + last.bytes.len() as u64);
        let offset = end.next_multiple_of(32);
        self.tensors.push(Entry { name: name.into(), dims: dims.into(), kind, offset, bytes });
        self
    }

    fn with(mut self, change: impl FnOnce(&mut File)) -> File {
        change(&mut self);
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = [self.magic.as_slice(), &self.version.to_le_bytes()].concat();
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.metadata {
            out.extend([text(key), kind.to_le_bytes().to_vec(), value.clone()].concat());
        }
        for tensor in &self.tensors {
            out.extend(text(&tensor.name));
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(tensor.offset.to_le_bytes());
        }
        for tensor in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(&tensor.bytes);
        }
        out.extend(&self.tail);
        out
    }
}

fn refusal(file: &File) -> String {
    refusal_of(&file.bytes())
}

fn refusal_of(bytes: &[u8]) -> String {
    let folder = Folder::new();
    folder.write("m.gguf", bytes);
    folder.refusal(folder.open())
}

#[test]
fn a_whole_file_opens() {
    let folder = Folder::new();
    folder.write("m.gguf", &File::plain().bytes());
    let checkpoint = folder.open().unwrap();
    let modules: Vec<_> = checkpoint.modules().map(|module| (module.name(), module.shape())).collect();
    assert_eq!(modules, [("model.layers.0.mlp.down_proj", [2, 8]), ("model.layers.0.mlp.up_proj", [2, 8])]);
    assert_eq!(checkpoint.config().model_type(), Some("qwen3"));
    assert_eq!(checkpoint.scheme().label(), "GGUF (F32)");
    // A config beside it describes something else, and is ignored.
    folder.write("config.json", b"no JSON");
    assert_eq!(folder.open().unwrap().identity(), checkpoint.identity());
}

#[test]
fn damaged_headers() {
    let bytes = File::plain().bytes();
    let end = bytes.len() - 128; // of the header: two tensors of 64 bytes follow
    let messages = [
        refusal_of(b""),
        refusal_of(b"GGU"),
        refusal_of(b"version https://git-lfs.github.com/spec/v1\n"),
        refusal(&File::plain().with(|f| f.magic = *b"GGML")),
        refusal(&File::plain().with(|f| f.version = 1)),
        refusal(&File::plain().with(|f| f.version = 4)),
        refusal(&File::plain().with(|f| f.version = 3u32.swap_bytes())),
        refusal_of(&bytes[..end - 40]),
        refusal_of(&bytes[..end + 100]),
        refusal(&File::plain().with(|f| f.tail = vec![0; 40])),
        refusal(&File::plain().key("a.list", 9, [number(6), u64::MAX.to_le_bytes().to_vec()].concat())),
        refusal(&File::plain().key("a.list", 9, [number(8), u64::MAX.to_le_bytes().to_vec()].concat())),
        refusal(&File::plain().key("a.list", 9, [number(9), 1u64.to_le_bytes().to_vec()].concat().repeat(9))),
        refusal(&File::plain().key("a.value", 99, Vec::new())),
        refusal(&File::plain().key("a.text", 8, u64::MAX.to_le_bytes().to_vec())),
        refusal(&File::plain().key("a.flag", 7, vec![1]).key("a.flag", 7, vec![0])),
        refusal(&File::plain().key("general.alignment", 4, number(24))),
    ];
    insta::assert_snapshot!(messages.join("\n"));
}

#[test]
fn damaged_tensors() {
    let change = |change: fn(&mut Entry)| refusal(&File::plain().with(|file| change(&mut file.tensors[1])));
    let messages = [
        change(|t| t.offset = 32),
        change(|t| t.offset = 128),
        change(|t| t.offset = 65),
        change(|t| t.offset = u64::MAX - 31),
        change(|t| t.offset = 1 << 60),
        change(|t| t.dims = vec![u64::MAX, u64::MAX]),
        change(|t| t.dims = vec![1; 5]),
        change(|t| t.dims = vec![8, 3]),
        change(|t| t.dims = vec![8, 1]),
        change(|t| t.kind = 8),
        change(|t| t.kind = 77),
        change(|t| t.name = "blk.0.ffn_up.weight".into()),
        change(|t| t.name = "n".repeat(5000)),
    ];
    insta::assert_snapshot!(messages.join("\n"));
}

#[test]
fn what_is_not_read_is_refused_by_name() {
    let kind = |kind: u32| refusal(&File::plain().with(|file| file.tensors[1].kind = kind));
    let first = |message: String| message.lines().next().unwrap().to_owned();
    let mut messages: Vec<String> = [9, 15, 24, 25, 26, 27, 28, 41, 42].map(|id| first(kind(id))).into();
    messages.push(kind(41));
    messages.push(refusal(&File::new("mamba")));
    messages.push(refusal(&File::plain().with(|file| file.metadata.clear())));
    let permuted = |heads: Option<u32>| {
        let file = File::new("llama").add("blk.0.attn_q.weight", &[8, 2], 0, vec![0; 64]);
        refusal(&match heads {
            Some(heads) => file.key("llama.attention.head_count", 4, number(heads)),
            None => file,
        })
    };
    messages.extend([permuted(None), permuted(Some(0)), permuted(Some(2))]);
    insta::assert_snapshot!(messages.join("\n"));
}

#[test]
fn parts_of_a_model() {
    let part = |index: u32, count: u32| {
        let name = format!("blk.{index}.ffn_up.weight");
        let file = if index == 0 { File::new("qwen3") } else { File::plain().with(|f| f.tensors.clear()) };
        file.key("split.count", 2, (count as u16).to_le_bytes().to_vec()).add(&name, &[8, 2], 0, vec![0; 64])
    };
    let folder = Folder::new();
    let name = |index: u32| format!("m-Q8_0-{:05}-of-00002.gguf", index + 1);
    folder.write(&name(0), &part(0, 2).bytes());
    assert!(folder.refusal(folder.open()).starts_with("part 2 of 2 of the model is missing: "));
    folder.write(&name(1), &part(1, 2).bytes());
    let names = |checkpoint: &Checkpoint| -> Vec<String> {
        checkpoint.modules().map(|module| module.name().to_owned()).collect()
    };
    let whole = ["model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"];
    assert_eq!(names(&folder.open().unwrap()), whole);
    // Any part stands for all of them.
    let second = folder.path().join(name(1));
    assert_eq!(names(&Checkpoint::open(second.to_str().unwrap()).unwrap()), whole);
    // A vision projector beside them is not the model.
    folder.write("mmproj-m.gguf", b"GGUF");
    assert_eq!(names(&folder.open().unwrap()), whole);
    folder.write(&name(1), &part(0, 2).bytes());
    assert!(folder.refusal(folder.open()).starts_with("two files hold the same tensor"));
    folder.write(&name(1), &part(1, 3).bytes());
    assert!(
        folder.refusal(folder.open()).starts_with("the file is one of 3 parts of a model, but 2 were found")
    );
    folder.write("m-Q4_K_M.gguf", &File::plain().bytes());
    let error = folder.open().unwrap_err();
    assert_eq!(error.kind(), trephine::Kind::Decide);
    assert!(
        error
            .to_string()
            .starts_with("the folder holds more than one model, 'm-Q4_K_M.gguf' and 'm-Q8_0-00001"),
        "{error}"
    );
    assert_eq!(error.cure(), Some("give the file of one of them"));
}

/// Blocks of Q8_0 for `[rows, cols]`, and their decoded values.
fn q8_0(values: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let (mut bytes, mut decoded) = (Vec::new(), Vec::new());
    for block in values.chunks(32) {
        let largest = block.iter().fold(0f32, |max, v| max.max(v.abs()));
        let d = half::f16::from_f32(largest / 127.0);
        let codes = block.iter().map(|v| (v / d.to_f32()).round().clamp(-127.0, 127.0) as i8);
        let codes: Vec<i8> = codes.collect();
        bytes.extend(d.to_le_bytes());
        bytes.extend(codes.iter().map(|&q| q as u8));
        decoded.extend(codes.iter().map(|&q| f32::from(q) * d.to_f32()));
    }
    (bytes, decoded)
}

/// A run on a GGUF base gives the same adapter, by name, as a run on the same values in safetensors, and both verify.
#[test]
fn a_run_on_gguf_is_a_run_on_its_numbers() {
    let home = tempfile::tempdir().unwrap();
    let shape @ [m, n] = [96, 64];
    let values = noise(1, m * n);
    let (blocks, decoded) = q8_0(&values);
    let norm = noise(2, n);
    let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let gguf = File::new("qwen3").add("blk.0.ffn_down.weight", &[n as u64, m as u64], 8, blocks).add(
        "blk.0.ffn_norm.weight",
        &[n as u64],
        0,
        bytes(&norm),
    );
    let (name, norm_name) =
        ("model.layers.0.mlp.down_proj.weight", "model.layers.0.post_attention_layernorm.weight");
    fs::create_dir(home.path().join("gguf")).unwrap();
    let gguf_path = home.path().join("gguf/m.gguf");
    fs::write(&gguf_path, gguf.bytes()).unwrap();
    let dense = [Tensor::f32(name, &shape, &decoded), Tensor::f32(norm_name, &[n], &norm)];
    let dense = write(&home.path().join("dense"), &dense, &config());
    let after = changed(&norm, [n, 1], 1, 0.5, 9);
    let tuned = [
        Tensor::bf16(name, &shape, &changed(&values, shape, 3, 0.05, 5)),
        Tensor::bf16(norm_name, &[n], &after),
    ];
    let tuned = write(&home.path().join("tuned"), &tuned, &config());
    let tuned = tuned.to_str().unwrap();
    let extracted = |base: &Path, out: &str| {
        let out = home.path().join(out);
        let ended = extract_with(base.to_str().unwrap(), tuned, &out, &["--rank", "4"]).code(0);
        (out, ended.stdout)
    };
    let (from_file, _) = extracted(&gguf_path, "from-file");
    let (from_folder, _) = extracted(&home.path().join("gguf"), "from-folder");
    let (from_dense, _) = extracted(&dense, "from-dense");
    let weights = |out: &Path| fs::read(out.join("adapter_model.safetensors")).unwrap();
    assert!(weights(&from_file) == weights(&from_dense) && weights(&from_folder) == weights(&from_dense));
    let manifest = crate::common::manifest(&from_file);
    let read = manifest["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .find(|t| t["checkpoint"] == "base" && t["name"] == name);
    let read = read.unwrap();
    assert_eq!((&read["file"], &read["dtype"]), (&"m.gguf".into(), &"U8".into()));
    let left = &manifest["not_represented"][0];
    assert!(left["name"] == norm_name && left["relative_change"].as_f64().unwrap() > 0.0, "{left}");
    let verify = || {
        let mut command = trephine();
        command.arg("verify").arg(&from_file).args(["--base", gguf_path.to_str().unwrap(), "--tuned", tuned]);
        run(&mut command)
    };
    verify().code(0);
    // A different scale in one block: verification reports it.
    let mut bytes = gguf.bytes();
    let at = bytes.len() - (n * 4) - m * n / 32 * 34 + 340;
    bytes[at] ^= 1;
    fs::write(&gguf_path, bytes).unwrap();
    let found = verify().code(4).stdout;
    assert!(found.contains("is not the tensor that was read"), "{found}");
}

/// The experts of a GGUF file lie in stacks: each pairs with the tuned checkpoint's, whether that has them singly or
/// in stacks, and none is left out. The values are those of gguf-py.
#[test]
fn experts_pair_with_single_ones_and_with_stacks() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf_models");
    let home = tempfile::tempdir().unwrap();
    for (name, kind, gate, up, down) in [
        ("qwen3moe", "qwen3_moe", "gate_proj", "up_proj", "down_proj"),
        ("mixtral", "mixtral", "w1", "w3", "w2"),
    ] {
        let gguf = models.join(format!("{name}.gguf"));
        let config = serde_json::json!({"model_type": kind, "hidden_size": 32});
        let known = dense(&models.join(format!("{name}.safetensors")));
        let tuned = |name: &str| -> Vec<f32> { known[name].1.iter().map(|v| *v as f32 * 1.25).collect() };
        let experts: Vec<&String> = known.keys().filter(|name| name.contains(".experts.")).collect();
        assert_eq!(experts.len(), 6, "two experts of three projections");
        let single: Vec<Tensor> =
            known.iter().map(|(name, (shape, _))| Tensor::f32(name, shape, &tuned(name))).collect();
        let single = write(&home.path().join(format!("{name}-single")), &single, &config);
        let run = |tuned: &Path, out: String| {
            let out = home.path().join(out);
            let more = ["--rank", "4", "--include", "*.experts.*"];
            extract_with(gguf.to_str().unwrap(), tuned.to_str().unwrap(), &out, &more).code(0);
            crate::common::manifest(&out)
        };
        let manifest = run(&single, format!("{name}-a"));
        let modules: Vec<&str> =
            manifest["modules"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
        for expert in &experts {
            assert!(modules.contains(&expert.trim_end_matches(".weight")), "{expert} is not in {modules:?}");
        }
        let left = manifest["not_represented"].to_string();
        assert!(!left.contains("exps") && !left.contains("experts"), "{left}");
        // A quarter of the weight is the change, to what bf16 and the rank keep.
        let change = |expert: &str| {
            let is = |module: &&Value| module["name"] == expert.trim_end_matches(".weight");
            let module = manifest["modules"].as_array().unwrap().iter().find(is);
            module.unwrap()["delta_norm"].as_f64().unwrap()
        };
        for expert in &experts {
            let norm = known[*expert].1.iter().map(|v| (v / 4.0).powi(2)).sum::<f64>().sqrt();
            assert!((change(expert) / norm - 1.0).abs() < 1e-5, "{expert}: {} is not {norm}", change(expert));
        }
        // The same as transformers 5 saves them: gate above up in one stack, down in another.
        let stem = experts[0].split(".experts.").next().unwrap();
        let of = |expert: usize, kind: &str| tuned(&format!("{stem}.experts.{expert}.{kind}.weight"));
        let [rows, columns] = known[&format!("{stem}.experts.0.{gate}.weight")].0[..] else { panic!() };
        let joined: Vec<f32> = (0..2).flat_map(|e| [of(e, gate), of(e, up)].concat()).collect();
        let downs: Vec<f32> = (0..2).flat_map(|e| of(e, down)).collect();
        let path = "model.layers.0.mlp.experts";
        let mut stacked: Vec<Tensor> = vec![
            Tensor::f32(&format!("{path}.gate_up_proj"), &[2, 2 * rows, columns], &joined),
            Tensor::f32(&format!("{path}.down_proj"), &[2, columns, rows], &downs),
        ];
        let others = known.iter().filter(|(name, _)| !name.contains(".experts."));
        stacked.extend(others.map(|(name, (shape, _))| Tensor::f32(name, shape, &tuned(name))));
        let stacked = write(&home.path().join(format!("{name}-stacked")), &stacked, &config);
        let again = run(&stacked, format!("{name}-b"));
        assert_eq!(again["modules"], manifest["modules"], "{name}");
    }
}
