//! FP8 without blocks: `fp8`, modelopt; modelopt's NVFP4.

use safetensors::Dtype;
use serde_json::json;

use crate::quant::{Shelf, declared, refusal};

#[test]
fn algorithms_of_modelopt_are_refused_by_name() {
    for algorithm in ["NVFP4_SVD", "FP8_PB_WO", "W4A8_SOMETHING"] {
        let message = declared("hf_quant_config.json", json!({"quantization": {"quant_algo": algorithm}}));
        let asked = format!("quantization with modelopt ({algorithm}) is not supported yet");
        assert!(message.starts_with(&asked) && message.contains("dequantize the model"), "{message}");
    }
    let message =
        declared("hf_quant_config.json", json!({"quantization": {"quant_algo": "MIXED_PRECISION"}}));
    assert!(
        message.starts_with("hf_quant_config.json: MIXED_PRECISION without quantized_layers"),
        "{message}"
    );
    let message = declared("hf_quant_config.json", json!({}));
    assert!(message.starts_with("quantization with modelopt (no quant_algo)"), "{message}");
}

#[test]
fn weights_that_cannot_be_read_alone_or_at_all() {
    let weight = ("w.weight", Dtype::F8_E4M3, [8, 4].as_slice());
    let scale = ("w.weight_scale", Dtype::F32, [].as_slice());
    let modelopt = |tensors: &[(&str, Dtype, &[usize])], algorithm: &str| {
        refusal(
            Shelf::new(tensors).weights(Some(json!({"quant_method": "modelopt", "quant_algo": algorithm}))),
        )
    };
    let fp8 = |tensors: &[(&str, Dtype, &[usize])]| {
        refusal(Shelf::new(tensors).weights(Some(json!({"quant_method": "fp8"}))))
    };
    let messages = [
        modelopt(&[weight, scale, ("w.pre_quant_scale", Dtype::F32, &[8])], "FP8"),
        modelopt(&[weight, scale, ("w.svdquant_lora_a", Dtype::F32, &[4, 2])], "FP8"),
        modelopt(&[weight, ("w.weight_scale", Dtype::F32, &[8])], "FP8"),
        modelopt(&[weight, scale], "FP8_PER_CHANNEL_PER_TOKEN"),
        fp8(&[weight]),
        fp8(&[weight, ("w.weight_scale_inv", Dtype::F32, &[2, 1])]),
        fp8(&[weight, ("w.weight_scale", Dtype::F8_E8M0, &[1])]),
    ];
    insta::assert_snapshot!(messages.join("\n"), @"
    a weight of 4 columns needs a scale for each of them; 'w.pre_quant_scale' is F32 [8]: tensor 'w.weight'
      export the checkpoint again
    quantization with a weight that is not used alone (svdquant_lora) is not supported yet: tensor 'w.svdquant_lora_a'
      dequantize the model to bf16 first, with the library that quantized it, and give that folder
    a weight of shape [8, 4] needs, according to the config, a companion of shape [1, 1] and dtype F32, BF16 or F16; 'w.weight_scale' is F32 [8]: tensor 'w.weight'
      the quantization_config and the stored tensors must agree: check that the config belongs to this checkpoint
    a weight of shape [8, 4] needs, according to the config, a companion of shape [8, 1] and dtype F32, BF16 or F16; 'w.weight_scale' is F32 []: tensor 'w.weight'
      the quantization_config and the stored tensors must agree: check that the config belongs to this checkpoint
    a weight is stored as F8_E4M3 [8, 4] without its 'w.weight_scale': tensor 'w.weight'
      it is missing from the files or from the index: download or export the checkpoint again
    a weight of shape [8, 4] needs, according to the config, a companion of shape [8, 1] and dtype F32, BF16 or F16; 'w.weight_scale_inv' is F32 [2, 1]: tensor 'w.weight'
      the quantization_config and the stored tensors must agree: check that the config belongs to this checkpoint
    a weight of shape [8, 4] needs, according to the config, a companion of shape [1, 1] and dtype F32, BF16 or F16; 'w.weight_scale' is F8_E8M0 [1]: tensor 'w.weight'
      the quantization_config and the stored tensors must agree: check that the config belongs to this checkpoint
    ");
}

#[test]
fn nvfp4_of_modelopt_needs_both_scales() {
    let weight = ("w.weight", Dtype::U8, [4, 16].as_slice());
    let nvfp4 = |more: &[(&str, Dtype, &[usize])]| {
        let config = json!({"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16});
        refusal(Shelf::new(&[&[weight], more].concat()).weights(Some(config)))
    };
    let scale = ("w.weight_scale", Dtype::F8_E4M3, [4, 2].as_slice());
    let messages = [
        nvfp4(&[]),
        nvfp4(&[scale]),
        nvfp4(&[scale, ("w.weight_scale_2", Dtype::F32, &[4])]),
        nvfp4(&[("w.weight_scale", Dtype::F8_E4M3, &[4, 1]), ("w.weight_scale_2", Dtype::F32, &[])]),
        nvfp4(&[scale, ("w.weight_quantizer._svdquant_lora_a", Dtype::BF16, &[8, 32])]),
    ];
    insta::assert_snapshot!(messages.join("\n"), @"
    a weight is stored as U8 [4, 16] without its 'w.weight_scale': tensor 'w.weight'
      it is missing from the files or from the index: download or export the checkpoint again
    a weight is stored as U8 [4, 16] without its 'w.weight_scale_2': tensor 'w.weight'
      it is missing from the files or from the index: download or export the checkpoint again
    a weight of shape [4, 32] needs, according to the config, a companion of shape [1, 1] and dtype F32; 'w.weight_scale_2' is F32 [4]: tensor 'w.weight'
      the quantization_config and the stored tensors must agree: check that the config belongs to this checkpoint
    a weight of shape [4, 32] needs, according to the config, a companion of shape [4, 2] and dtype F8_E4M3; 'w.weight_scale' is F8_E4M3 [4, 1]: tensor 'w.weight'
      the quantization_config and the stored tensors must agree: check that the config belongs to this checkpoint
    quantization with a weight that is not used alone (svdquant_lora) is not supported yet: tensor 'w.weight_quantizer._svdquant_lora_a'
      dequantize the model to bf16 first, with the library that quantized it, and give that folder
    ");
}
