//! Weights that Trephine quantizes match those of a reference library bit for bit.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use trephine::checkpoint::Checkpoint;
use trephine::quant::encode::{RoundToNearest, encode_int4};
use trephine::quant::format::to_f32;

use crate::common::data;

fn fixtures(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(folder);
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 4, "{paths:?}");
    paths
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn int4_is_that_of_compressed_tensors() {
    for path in fixtures("int4") {
        let bytes = fs::read(&path).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let group: usize = header.metadata().as_ref().unwrap()["group"].parse().unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let values = |name: &str| {
            let tensor = file.tensor(name).unwrap();
            to_f32(tensor.dtype(), tensor.data()).unwrap()
        };
        let weight = file.tensor("w").unwrap();
        let (dtype, columns) = (weight.dtype(), weight.shape()[1]);
        let w = values("w");
        let (mut codes, mut scales) = (vec![0i8; w.len()], vec![0f32; w.len() / group]);
        encode_int4(&w, columns, group, dtype, &mut codes, &mut scales);
        assert_eq!(bits(&scales), bits(&values("weight_scale")), "{}: scales", path.display());
        // Eight codes in a little-endian word, the first one lowest, with an offset of 8.
        let packed: Vec<u8> =
            codes.chunks(2).map(|pair| (pair[0] + 8) as u8 | ((pair[1] + 8) as u8) << 4).collect();
        assert_eq!(packed, file.tensor("weight_packed").unwrap().data(), "{}: codes", path.display());
        let mut rounded = w;
        RoundToNearest::Int4 { group, dtype }.apply(&mut rounded, columns);
        assert_eq!(bits(&rounded), bits(&values("expected_f32")), "{}: values", path.display());
    }
}

#[test]
fn block_fp8_is_that_of_compressed_tensors() {
    for path in fixtures("encode_fp8") {
        let bytes = fs::read(&path).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let block: [usize; 2] = serde_json::from_str(&header.metadata().as_ref().unwrap()["block"]).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let (weight, codes) = (file.tensor("w").unwrap(), file.tensor("weight").unwrap());
        let scale = file.tensor("weight_scale_inv").unwrap();
        let scales = to_f32(Dtype::F32, scale.data()).unwrap();
        let [columns, grid] = [weight.shape()[1], scale.shape()[1]];
        let expected: Vec<f32> = (codes.data().iter().enumerate())
            .map(|(at, &code)| {
                let scale = scales[at / columns / block[0] * grid + at % columns / block[1]];
                trephine::quant::number::E4M3[usize::from(code)] * scale
            })
            .collect();
        let mut rounded = to_f32(weight.dtype(), weight.data()).unwrap();
        RoundToNearest::BlockFp8 { block, scale: Dtype::F32 }.apply(&mut rounded, columns);
        assert_eq!(bits(&rounded), bits(&expected), "{}", path.display());
    }
}

#[test]
fn scales_of_16_bits_are_rounded_before_they_divide() {
    let values: Vec<f32> = (0..256).map(|i| (i as f32 * 0.731).sin() * 0.1).collect();
    let how = |scale| RoundToNearest::BlockFp8 { block: [2, 128], scale };
    let (mut wide, mut narrow) = (values.clone(), values.clone());
    how(Dtype::F32).apply(&mut wide, 128);
    how(Dtype::BF16).apply(&mut narrow, 128);
    let scale = values.iter().fold(0f32, |most, v| most.max(v.abs())) / 448.0;
    let scale = half::bf16::from_f32(scale).to_f32();
    for (value, rounded) in values.iter().zip(&narrow) {
        let code = rounded / scale;
        assert!(trephine::quant::number::E4M3.contains(&code), "{rounded} is no code under {scale}");
        assert!(
            (value / scale).abs() > 448.0
                || (code - value / scale).abs() <= (value / scale).abs() / 16.0 + 1e-3
        );
    }
    assert_ne!(wide, narrow);
}

#[test]
fn weights_tell_how_their_like_is_quantized() {
    let base = Checkpoint::open(&data("base-fp8")).unwrap();
    let module = base.module("model.layers.0.mlp.up_proj").unwrap();
    let how = module.weight().capabilities().round_to_nearest.unwrap();
    assert_eq!(how, RoundToNearest::BlockFp8 { block: [128, 128], scale: Dtype::F32 });
    assert_eq!(how.label(), "block FP8 (128 x 128, scales in F32), round to nearest");
    // The stored base equals the quantized base, because it was made the same way.
    let dense = Checkpoint::open(&data("base")).unwrap();
    let weight = dense.module("model.layers.0.mlp.up_proj").unwrap();
    let [rows, columns] = weight.shape();
    let (mut ours, mut stored) = (vec![0f32; rows * columns], vec![0f32; rows * columns]);
    weight.panel(&dense, 0..rows, &mut ours).unwrap();
    module.panel(&base, 0..rows, &mut stored).unwrap();
    how.apply(&mut ours, columns);
    assert_eq!(bits(&ours), bits(&stored));
    assert!(weight.weight().capabilities().round_to_nearest.is_none());
}
