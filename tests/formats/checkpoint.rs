//! The forms that a checkpoint may have on disk, and how each is read.

use std::fs;

use crate::checkpoint_files::{Folder, f32s, safetensors};
use serde_json::json;
use trephine::checkpoint::{Change, Checkpoint};

#[test]
fn a_folder_without_an_index_is_all_its_files() {
    let folder = Folder::new();
    folder.write("b.safetensors", &safetensors(&[("y.weight", "F32", &[2, 3], f32s(6))]));
    folder.write(
        "a.safetensors",
        &safetensors(&[("x.weight", "F32", &[1, 2], f32s(2)), ("norm", "F32", &[2], f32s(2))]),
    );
    folder.write("adapter_model.safetensors", b"not looked at");
    let checkpoint = folder.open().unwrap();
    let names: Vec<_> = checkpoint.modules().map(|m| (m.name(), m.shape())).collect();
    assert_eq!(names, [("x", [1, 2]), ("y", [2, 3])]);
    assert_eq!(checkpoint.others().map(|t| t.name()).collect::<Vec<_>>(), ["norm"]);
    assert_eq!(checkpoint.file_name(checkpoint.tensor("y.weight").unwrap().file), "b.safetensors");
}

#[test]
fn the_index_says_which_file_is_meant() {
    let folder = Folder::new();
    let other = safetensors(&[("x.weight", "F32", &[1, 2], vec![9; 8])]);
    folder.write("sub/1.safetensors", &safetensors(&[("x.weight", "F32", &[1, 2], f32s(2))]));
    folder.write(
        "2.safetensors",
        &safetensors(&[("y.weight", "F32", &[1, 2], f32s(2)), ("x.weight", "F32", &[1, 2], f32s(2))]),
    );
    folder.write("stray.safetensors", &other);
    folder.index(&[("x.weight", "sub/1.safetensors"), ("y.weight", "2.safetensors")]);
    let checkpoint = folder.open().unwrap();
    let x = checkpoint.tensor("x.weight").unwrap();
    assert_eq!(checkpoint.file_name(x.file), "sub/1.safetensors");
    assert_eq!(&*checkpoint.read(x, 0..8).unwrap(), f32s(2));
}

#[test]
fn panels_are_read_wherever_they_lie() {
    let folder = Folder::new();
    // A name of odd length before it and one odd byte put the numbers at an odd address; the scale is in another file.
    let codes: Vec<u8> = (0..200 * 300).map(|i| (i % 120) as u8).collect();
    folder.write(
        "1.safetensors",
        &safetensors(&[("b", "U8", &[1], vec![7]), ("w.weight", "F8_E4M3", &[200, 300], codes)]),
    );
    folder.write(
        "2.safetensors",
        &safetensors(&[("c", "U8", &[3], vec![7; 3]), ("w.weight_scale_inv", "F32", &[2, 3], f32s(6))]),
    );
    folder.write_json(
        "config.json",
        &json!({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}),
    );
    let checkpoint = folder.open().unwrap();
    assert_eq!(checkpoint.scheme().label(), "block FP8 (128 x 128)");
    let module = checkpoint.module("w").unwrap();
    assert!(module.is_quantized());
    assert_eq!(module.size(), 200 * 300 + 24);
    assert_eq!(module.packed_size(127..129), 2 * 300 + 24);
    let mut whole = vec![0f32; 200 * 300];
    module.panel(&checkpoint, 0..200, &mut whole).unwrap();
    let value = |row: usize, column: usize| {
        let scale = (row / 128 * 3 + column / 128) as f32 + 0.5;
        trephine::quant::number::E4M3[(row * 300 + column) % 120] * scale
    };
    assert!((0..200 * 300).all(|i| whole[i] == value(i / 300, i % 300)));
    module.prefetch(&checkpoint, 120..140);
    let mut panel = vec![0f64; 20 * 300];
    module.panel_f64(&checkpoint, 120..140, &mut panel).unwrap();
    assert!(panel.iter().zip(&whole[120 * 300..]).all(|(a, b)| *a == f64::from(*b)));
    assert_eq!(checkpoint.others().map(|t| t.name()).collect::<Vec<_>>(), ["b", "c"]);
}

#[test]
fn a_tensor_is_hashed_in_windows() {
    let folder = Folder::new();
    let bytes: Vec<u8> = (0..(5 << 20) + 123).map(|i: u32| (i % 251) as u8).collect();
    let expected = blake3::hash(&bytes);
    let shape = [bytes.len()];
    folder.write("m.safetensors", &safetensors(&[("n", "U8", &[0], vec![]), ("t", "U8", &shape, bytes)]));
    let checkpoint = folder.open().unwrap();
    assert_eq!(checkpoint.hash(checkpoint.tensor("t").unwrap()).unwrap(), expected);
    assert_eq!(checkpoint.hash(checkpoint.tensor("n").unwrap()).unwrap(), blake3::hash(b""));
}

#[test]
fn one_checkpoint_serves_several_threads() {
    let folder = Folder::new();
    folder.write("m.safetensors", &safetensors(&[("x.weight", "F32", &[64, 64], f32s(4096))]));
    let checkpoint = folder.open().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let module = checkpoint.module("x").unwrap();
                for row in 0..64 {
                    let mut out = [0f32; 64];
                    module.panel(&checkpoint, row..row + 1, &mut out).unwrap();
                    assert_eq!(out[0], (row * 64) as f32 + 0.5);
                }
            });
        }
    });
}

#[test]
fn a_tied_head_is_the_input_embedding() {
    let head = |config: Option<serde_json::Value>| {
        let folder = Folder::new();
        folder.write(
            "m.safetensors",
            &safetensors(&[("model.language_model.embed_tokens.weight", "F32", &[2, 2], f32s(4))]),
        );
        if let Some(config) = config {
            folder.write_json("config.json", &config);
        }
        folder.open().unwrap().module("lm_head").map(|m| m.name().to_owned())
    };
    let embedding = Some("model.language_model.embed_tokens".to_owned());
    assert_eq!(head(Some(json!({"tie_word_embeddings": true}))), embedding);
    assert_eq!(head(Some(json!({"text_config": {"tie_word_embeddings": true}}))), embedding);
    assert_eq!(
        head(Some(json!({"model_type": "gemma3"}))),
        embedding,
        "transformers ties unless told otherwise"
    );
    assert_eq!(head(Some(json!({"tie_word_embeddings": false}))), None);
    assert_eq!(head(None), None);
}

#[test]
fn the_config_may_be_nested() {
    let folder = Folder::new();
    folder.write("m.safetensors", &safetensors(&[("x.weight", "F32", &[1, 2], f32s(2))]));
    folder.write_json(
        "config.json",
        &json!({"model_type": "qwen3_vl", "text_config": {"model_type": "qwen3_vl_text", "vocab_size": 151936}}),
    );
    let checkpoint = folder.open().unwrap();
    let config = checkpoint.config();
    assert_eq!(config.model_type(), Some("qwen3_vl"));
    assert_eq!(config.text_model_type(), Some("qwen3_vl_text"));
    assert_eq!(config.vocab_size(), Some(151936));
    let file = folder.path().join("m.safetensors");
    let single = Checkpoint::open(file.to_str().unwrap()).unwrap();
    assert_eq!(single.config().model_type(), Some("qwen3_vl"), "a file's config lies beside it");
}

#[test]
fn a_snapshot_of_symlinks_reads() {
    let folder = Folder::new();
    let bytes = safetensors(&[("x.weight", "F32", &[1, 2], f32s(2))]);
    folder.write("blobs/abc", &bytes);
    fs::create_dir_all(folder.path().join("snapshots/1")).unwrap();
    std::os::unix::fs::symlink("../../blobs/abc", folder.path().join("snapshots/1/model.safetensors"))
        .unwrap();
    let checkpoint = Checkpoint::open(folder.path().join("snapshots/1").to_str().unwrap()).unwrap();
    assert_eq!(checkpoint.modules().len(), 1);
    fs::remove_file(folder.path().join("blobs/abc")).unwrap();
    let gone = Checkpoint::open(folder.path().join("snapshots/1").to_str().unwrap()).unwrap_err();
    assert!(gone.to_string().starts_with("a file of the checkpoint is missing"), "{gone}");
}

#[test]
fn the_identity_tells_what_changed() {
    let folder = Folder::new();
    let file = |name: &str| safetensors(&[(name, "F32", &[1, 2], f32s(2))]);
    folder.write("a.safetensors", &file("x.weight"));
    folder.write("b.safetensors", &file("y.weight"));
    folder.write_json("config.json", &json!({"model_type": "qwen3"}));
    let before = folder.open().unwrap().identity().clone();
    let stored: trephine::checkpoint::Identity =
        serde_json::from_str(&serde_json::to_string(&before).unwrap()).unwrap();
    assert_eq!(stored, before, "it survives a journal");
    assert_eq!(before.changes(&folder.open().unwrap().identity().clone()), []);

    folder.write("a.safetensors", &file("z.weight"));
    folder.write_json("config.json", &json!({"model_type": "llama"}));
    fs::rename(folder.path().join("b.safetensors"), folder.path().join("c.safetensors")).unwrap();
    let changes = before.changes(folder.open().unwrap().identity());
    assert_eq!(
        changes,
        [
            Change::Header("a.safetensors".into()),
            Change::Removed("b.safetensors".into()),
            Change::Header("config.json".into()),
            Change::Added("c.safetensors".into()),
        ]
    );
}

#[test]
fn windows_release_their_pages() {
    let folder = Folder::new();
    let size = 64 << 20;
    folder.write("m.safetensors", &safetensors(&[("t", "U8", &[size], vec![1; size])]));
    let checkpoint = folder.open().unwrap();
    let tensor = checkpoint.tensor("t").unwrap();
    let before = resident_kib();
    checkpoint.hash(tensor).unwrap();
    let window = checkpoint.read(tensor, 0..size as u64).unwrap();
    let held = resident_kib();
    drop(window);
    let after = resident_kib();
    if let (Some(before), Some(held), Some(after)) = (before, held, after) {
        assert!(held > before + 60 * 1024, "a window is read in at once: {before} to {held} KiB");
        assert!(after < before + 16 * 1024, "and released when dropped: {before} to {after} KiB");
    }
}

/// Resident mapped file pages, where /proc reports them.
fn resident_kib() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("RssFile:"))?.trim().trim_end_matches(" kB").parse().ok()
}

#[test]
fn a_weight_without_elements_is_no_module() {
    let folder = Folder::new();
    let endless = usize::MAX;
    folder.write(
        "m.safetensors",
        &safetensors(&[
            ("x.weight", "F32", &[0, endless], vec![]),
            ("y.weight", "F8_E4M3", &[endless, 0], vec![]),
        ]),
    );
    let checkpoint = folder.open().unwrap();
    assert_eq!((checkpoint.modules().len(), checkpoint.others().count()), (0, 2));
}
