//! Stacks of experts: what is refused, and how they are sliced.

use safetensors::Dtype;
use serde_json::{Value, json};
use trephine::quant::expert::Experts;

use crate::quant::{Shelf, assert_bits, decode, refusal};

fn mxfp4() -> Option<Value> {
    Some(json!({"quant_method": "mxfp4"}))
}

fn fp8(fmt: &str) -> Option<Value> {
    Some(json!({"quant_method": "fp8", "fmt": fmt, "weight_block_size": [16, 16]}))
}

#[test]
fn stacks_that_do_not_go_with_their_scales() {
    let blocks = ("l.experts.down_proj_blocks", Dtype::U8, [2, 8, 2, 16].as_slice());
    let scales = |shape: &'static [usize]| ("l.experts.down_proj_scales", Dtype::U8, shape);
    let codes = ("l.experts.down_proj", Dtype::F8_E4M3, [2, 16, 32].as_slice());
    let inverse = |dtype, shape: &'static [usize]| ("l.experts.down_proj_scale_inv", dtype, shape);
    let refused = |tensors: &[(&str, Dtype, &[usize])], config: Option<Value>| {
        refusal(Shelf::new(tensors).weights(config))
    };
    let messages = [
        refused(&[blocks], mxfp4()),
        refused(&[blocks, scales(&[2, 8, 3])], mxfp4()),
        refused(&[("l.experts.down_proj_blocks", Dtype::U8, &[2, 8, 2, 8])], mxfp4()),
        refused(&[("l.other_blocks", Dtype::U8, &[2, 8, 2, 16])], mxfp4()),
        refused(&[blocks, scales(&[2, 8, 2])], None),
        refused(&[codes], fp8("e4m3")),
        refused(&[codes, inverse(Dtype::F32, &[3, 1, 2])], fp8("e4m3")),
        refused(&[codes, inverse(Dtype::F32, &[2, 2, 2])], fp8("e4m3")),
        refused(&[codes, inverse(Dtype::F32, &[2, 1, 2])], None),
        refused(
            &[("q.weight", Dtype::F8_E5M2, &[16, 16]), ("q.weight_scale_inv", Dtype::F32, &[1, 1])],
            fp8("e4m3"),
        ),
    ];
    insta::assert_snapshot!(messages.join("\n"), @"
    a weight is stored as U8 [2, 8, 2, 16] without its 'l.experts.down_proj_scales': tensor 'l.experts.down_proj_blocks'
      it is missing from the files or from the index: download or export the checkpoint again
    blocks [2, 8, 2, 16] need scales U8 [2, 8, 2]; 'l.experts.down_proj_scales' is U8 [2, 8, 3]: tensor 'l.experts.down_proj_blocks'
      the file is damaged: download or export it again
    MXFP4 blocks must be [experts, out, in / 32, 16], not [2, 8, 2, 8]: tensor 'l.experts.down_proj_blocks'
      the file is damaged: download or export it again
    MXFP4 blocks that do not belong to a model's experts: tensor 'l.other_blocks'
      the file is damaged: download or export it again
    a weight is stored as U8 [2, 8, 2, 16], but nothing declares how it is quantized: tensor 'l.experts.down_proj_blocks'
      put the model's own config.json, with its quantization_config, beside the weights, or dequantize the model to bf16 and give that folder
    a weight is stored as F8_E4M3 [2, 16, 32] without its 'l.experts.down_proj_scale_inv': tensor 'l.experts.down_proj'
      it is missing from the files or from the index: download or export the checkpoint again
    a stack of 2 experts has scales 'l.experts.down_proj_scale_inv' of shape [3, 1, 2]: tensor 'l.experts.down_proj'
      export the checkpoint again
    a weight of shape [16, 32] in blocks of 16 x 16 needs a scale of shape [1, 2] and dtype F32, BF16, F16, F8_E8M0 or U8; 'l.experts.down_proj_scale_inv' is F32 [2, 2]: tensor 'l.experts.down_proj.weight'
      weight_block_size in the config and the stored scales must agree: check that the config belongs to this checkpoint
    a weight is stored as F8_E4M3 [2, 16, 32], but nothing declares how it is quantized: tensor 'l.experts.down_proj'
      put the model's own config.json, with its quantization_config, beside the weights, or dequantize the model to bf16 and give that folder
    a weight is stored as F8_E5M2 [16, 16], but the config's `fmt` says F8_E4M3: tensor 'q.weight'
      check that the config belongs to this checkpoint
    ");
}

#[test]
fn a_transposed_stack_needs_a_format_that_is_read_by_columns() {
    let tensors = [
        ("l.experts.down_proj", Dtype::F8_E4M3, [2, 16, 32].as_slice()),
        ("l.experts.down_proj_scale", Dtype::F32, &[2]),
    ];
    let config = || Some(json!({"quant_method": "fp8"}));
    let message = refusal(Shelf::new(&tensors).weights_of(config(), Experts::of(&["gpt_oss"], None)));
    assert!(
        message.starts_with(
            "a stack of experts F8_E4M3 [2, 16, 32] is stored transposed, which is not supported"
        ),
        "{message}"
    );
    let found = Shelf::new(&tensors).weights_of(config(), Experts::of(&["qwen3_moe"], None)).unwrap();
    assert_eq!(found[1].module, "l.experts.1.down_proj");
}

/// Every value of the stack is its own position, so that a slice shows where it was taken.
fn stack(experts: usize, rows: usize, columns: usize) -> (Vec<u8>, impl Fn(usize, usize, usize) -> f32) {
    let at =
        move |expert: usize, row: usize, column: usize| ((expert * rows + row) * columns + column) as f32;
    ((0..experts * rows * columns).flat_map(|i| (i as f32).to_le_bytes()).collect(), at)
}

#[test]
fn gate_and_up_are_cut_apart_for_models_of_single_experts() {
    let (bytes, at) = stack(3, 8, 5);
    let tensors = [("l.mlp.experts.gate_up_proj", Dtype::F32, [3, 8, 5].as_slice())];
    for (model, up) in
        [("qwen3_moe", "l.mlp.experts.2.up_proj"), ("mixtral", "l.block_sparse_moe.experts.2.w3")]
    {
        let found = Shelf::new(&tensors).weights_of(None, Experts::of(&[model], Some(5))).unwrap();
        assert_eq!(found.len(), 6, "{model}");
        let weight = &found.iter().find(|found| found.module == up).unwrap().weight;
        assert_eq!((weight.shape(), weight.extents()[0].clone()), ([4, 5], 400..480), "{model}");
        let want: Vec<f32> = (4..8)
            .flat_map(|row| (0..5).map(move |column| (row, column)))
            .map(|(r, c)| at(2, r, c))
            .collect();
        assert_bits(&decode(&**weight, std::slice::from_ref(&bytes), 0..4), &want, model);
        assert_bits(&decode(&**weight, std::slice::from_ref(&bytes), 1..3), &want[5..15], model);
    }
    let odd = [("l.experts.gate_up_proj", Dtype::F32, [1, 7, 5].as_slice())];
    let message = refusal(Shelf::new(&odd).weights_of(None, Experts::of(&["qwen3_moe"], None)));
    assert!(message.starts_with("7 rows is not a whole number of pairs of gate and up"), "{message}");
}

#[test]
fn every_wrapper_of_an_f64_weight_decodes_it_in_f64() {
    // 1/3 and its neighbours are not f32 values: everything that passes through f32 changes.
    let value = |i: usize| (i as f64 + 1.0) / 3.0;
    let bytes: Vec<u8> = (0..2 * 4 * 6).flat_map(|i| value(i).to_le_bytes()).collect();
    let tensors = [("l.experts.gate_up_proj", Dtype::F64, [2, 4, 6].as_slice())];
    // Split into gate and up; a whole stack; a stack that is stored transposed.
    for (model, hidden, module) in
        [("qwen3_moe", 6, 1), ("qwen3_vl_moe", 6, 0), ("gpt_oss", 4, 1), ("gpt_oss", 4, 0)]
    {
        let experts = || Experts::of(&[model], Some(hidden));
        let found = Shelf::new(&tensors).weights_of(None, experts()).unwrap();
        let stack = found[module]
            .weight
            .capabilities()
            .slice
            .and_then(|slice| slice.stack())
            .map(|stack| stack.weight);
        for weight in [Some(found[module].weight.clone()), stack].into_iter().flatten() {
            assert!(weight.is_wide(), "{model}: {} is not known to be wide", found[module].module);
            let [rows, columns] = weight.shape();
            let spans = weight.spans(0..rows);
            let parts: Vec<&[u8]> = spans.iter().map(|span| &bytes[span.clone()]).collect();
            let mut wide = vec![0f64; rows * columns];
            weight.dequantize_f64(0..rows, &parts, &mut wide).unwrap();
            let known: Vec<u64> = (0..48).map(|i| value(i).to_bits()).collect();
            assert!(wide.iter().all(|value| known.contains(&value.to_bits())), "{model}: {wide:?}");
            let mut narrow = vec![0f32; rows * columns];
            weight.dequantize(0..rows, &parts, &mut narrow).unwrap();
            assert!(wide.iter().zip(&narrow).all(|(wide, narrow)| *wide as f32 == *narrow), "{model}");
        }
    }
}

#[test]
fn transposed_stacks_of_every_dense_type() {
    // 37 and 21 are not multiples of a tile.
    let (bytes, at) = stack(2, 37, 21);
    let tensors = [("l.experts.gate_up_proj", Dtype::F32, [2, 37, 21].as_slice())];
    let found = Shelf::new(&tensors).weights_of(None, Experts::of(&["gpt_oss"], Some(37))).unwrap();
    let weight = &found[1].weight;
    assert_eq!((weight.shape(), weight.extents()[0].clone()), ([21, 37], 37 * 21 * 4..2 * 37 * 21 * 4));
    let want: Vec<f32> =
        (0..21).flat_map(|out| (0..37).map(move |input| (input, out))).map(|(i, o)| at(1, i, o)).collect();
    assert_bits(&decode(&**weight, std::slice::from_ref(&bytes), 0..21), &want, "whole");
    assert_bits(&decode(&**weight, std::slice::from_ref(&bytes), 5..18), &want[5 * 37..18 * 37], "a panel");
    for (dtype, size) in [(Dtype::BF16, 2), (Dtype::F16, 2), (Dtype::F64, 8)] {
        let tensors = [("l.experts.gate_up_proj", dtype, [1, 3, 2].as_slice())];
        let found = Shelf::new(&tensors).weights_of(None, Experts::of(&["gpt_oss"], Some(3))).unwrap();
        let number = |i: usize| -> Vec<u8> {
            match dtype {
                Dtype::BF16 => half::bf16::from_f32(i as f32).to_le_bytes().to_vec(),
                Dtype::F16 => half::f16::from_f32(i as f32).to_le_bytes().to_vec(),
                _ => (i as f64).to_le_bytes().to_vec(),
            }
        };
        let bytes: Vec<u8> = (0..6).flat_map(number).collect();
        assert_eq!(bytes.len(), 6 * size);
        assert_bits(
            &decode(&*found[0].weight, &[bytes], 0..2),
            &[0., 2., 4., 1., 3., 5.],
            &dtype.to_string(),
        );
    }
}
