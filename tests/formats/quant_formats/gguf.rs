//! GGUF: a file by gguf-py for each type and shape, opened as a checkpoint, with the reference values beside
//! the weight.

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use trephine::checkpoint::{Checkpoint, Module, Tensor};

use crate::quant::{assert_bits, conforms, numbers};

/// The files in a folder of fixtures with that extension.
fn files(folder: &str, end: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(folder);
    let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|e| e == end)).collect();
    files.sort();
    files
}

fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(path.to_str().unwrap()).unwrap()
}

fn bytes(checkpoint: &Checkpoint, tensor: &Tensor) -> Vec<u8> {
    checkpoint.read(tensor, 0..tensor.size()).unwrap().to_vec()
}

fn values(checkpoint: &Checkpoint, module: &Module, rows: std::ops::Range<usize>) -> Vec<f32> {
    let mut values = vec![0f32; rows.len() * module.shape()[1]];
    module.panel(checkpoint, rows, &mut values).unwrap();
    values
}

#[test]
fn every_type_comes_out_bit_for_bit() {
    let files = files("gguf", "gguf");
    assert_eq!(files.len(), 52);
    for path in files {
        let checkpoint = open(&path);
        let module = checkpoint.module("model.layers.0.mlp.up_proj").unwrap();
        let tensor = |name: &str| bytes(&checkpoint, checkpoint.tensor(name).unwrap());
        let expected = numbers(&tensor("expected_f32"), f32::from_le_bytes);
        let bridge = numbers(&tensor("bridge_bf16"), |b| half::bf16::from_le_bytes(b).to_f32());
        let whole: Vec<_> = module.tensors().iter().map(|tensor| bytes(&checkpoint, tensor)).collect();
        let name = path.file_stem().unwrap().to_str().unwrap();
        conforms(name, &**module.weight(), &whole, &expected, &bridge);
        assert_bits(&values(&checkpoint, module, 0..module.shape()[0]), &expected, name);
        let kind = name.rsplit_once('_').unwrap().0.to_uppercase();
        assert!(checkpoint.scheme().label().contains(&kind), "{name}: {}", checkpoint.scheme().label());
        assert_eq!(module.is_quantized(), !["F32", "F16", "BF16"].contains(&kind.as_str()), "{name}");
        let others: Vec<_> = checkpoint.others().map(Tensor::name).collect();
        assert_eq!(others, ["bridge_bf16", "expected_f32"], "{name}");
    }
}

/// Names and values are those of transformers, which undoes the permutation of llama's Q and K, in any panels.
#[test]
fn models_are_what_transformers_makes_of_them() {
    let files = files("gguf_models", "gguf");
    assert_eq!(files.len(), 4);
    for path in files {
        let checkpoint = open(&path);
        let bytes_of = std::fs::read(path.with_extension("safetensors")).unwrap();
        let reference = SafeTensors::deserialize(&bytes_of).unwrap();
        assert!(reference.len() >= 6, "{path:?}");
        for (name, view) in reference.tensors() {
            let expected = numbers(view.data(), f32::from_le_bytes);
            let tensor = || checkpoint.tensor(&name).unwrap_or_else(|| panic!("{path:?} has no {name}"));
            let module = match checkpoint.module(name.trim_end_matches(".weight")) {
                Some(module) => module.clone(),
                None => Module::flattened(tensor()).unwrap(),
            };
            let [rows, columns] = module.shape();
            assert_bits(&values(&checkpoint, &module, 0..rows), &expected, &name);
            for row in 0..rows {
                let line = values(&checkpoint, &module, row..row + 1);
                assert_bits(&line, &expected[row * columns..][..columns], &format!("{name}, row {row}"));
            }
            let middle = rows / 3..rows - rows / 5;
            let panel = values(&checkpoint, &module, middle.clone());
            assert_bits(&panel, &expected[middle.start * columns..middle.end * columns], &name);
        }
    }
}
