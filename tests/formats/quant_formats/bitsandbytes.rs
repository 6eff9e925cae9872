//! bitsandbytes.

use safetensors::Dtype;
use serde_json::{Value, json};

use crate::quant::{Shelf, refusal};

const STATE: &str = "w.weight.quant_state.bitsandbytes__nf4";

fn config() -> Option<Value> {
    Some(json!({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4"}))
}

/// The refusal of an NF4 weight of 64 bytes, correctly [4, 32], whose JSON is `state`.
fn nf4(state: &Value, config: Option<Value>, absmax: (Dtype, usize)) -> String {
    let tensors = [
        ("w.weight", Dtype::U8, [64, 1].as_slice()),
        ("w.weight.absmax", absmax.0, &[absmax.1]),
        ("w.weight.quant_map", Dtype::F32, &[16]),
        (STATE, Dtype::U8, &[79]),
    ];
    refusal(Shelf::new(&tensors).with(STATE, state.to_string().as_bytes()).weights(config))
}

#[test]
fn states_that_do_not_go_with_their_weight() {
    let state = |shape: Value, dtype: &str, block: i64| json!({"shape": shape, "dtype": dtype, "blocksize": block, "quant_type": "nf4"});
    let fine = state(json!([4, 32]), "bfloat16", 64);
    let two = (Dtype::F32, 2);
    let nested = json!({"shape": [4, 32], "dtype": "float16", "blocksize": 64, "nested_blocksize": 256, "nested_offset": 0.1});
    let messages = [
        nf4(&state(json!([4, 32, 1]), "bfloat16", 64), config(), two),
        nf4(&state(json!([4, 34]), "bfloat16", 64), config(), two),
        nf4(&state(json!([u64::MAX, u64::MAX]), "bfloat16", 64), config(), two),
        nf4(&state(json!([4, 32]), "float8", 64), config(), two),
        nf4(&state(json!([4, 32]), "float32", 0), config(), two),
        nf4(&fine, config(), (Dtype::F32, 3)),
        nf4(&fine, config(), (Dtype::U8, 2)),
        nf4(&nested, config(), (Dtype::U8, 2)),
        nf4(&json!("no object"), config(), two),
        nf4(&fine, Some(json!({"load_in_4bit": true, "bnb_4bit_quant_type": "fp4"})), two),
        nf4(&fine, Some(json!({"load_in_8bit": true})), two),
        refusal(Shelf::new(&[("w.weight", Dtype::U8, &[64, 1])]).weights(config())),
    ];
    insta::assert_snapshot!(messages.join("\n"), @"
    'w.weight.quant_state.bitsandbytes__nf4' is not usable: its shape is not 2-D: tensor 'w.weight'
      export the checkpoint again
    'w.weight.quant_state.bitsandbytes__nf4' is not usable: it describes 136 values, but the weight is U8 [64, 1]: tensor 'w.weight'
      export the checkpoint again
    'w.weight.quant_state.bitsandbytes__nf4' is not usable: its shape is empty or too large: tensor 'w.weight'
      export the checkpoint again
    'w.weight.quant_state.bitsandbytes__nf4' is not usable: its dtype is not bfloat16, float16 or float32: tensor 'w.weight'
      export the checkpoint again
    'w.weight.quant_state.bitsandbytes__nf4' is not usable: it has no blocksize: tensor 'w.weight'
      export the checkpoint again
    'w.weight.quant_state.bitsandbytes__nf4' is not usable: 'w.weight.absmax' should be F32 [2], but it is F32 [3]: tensor 'w.weight'
      export the checkpoint again
    'w.weight.quant_state.bitsandbytes__nf4' is not usable: 'w.weight.absmax' should be F32 [2], but it is U8 [2]: tensor 'w.weight'
      export the checkpoint again
    a weight is stored as U8 [64, 1] without its 'w.weight.nested_absmax': tensor 'w.weight'
      it is missing from the files or from the index: download or export the checkpoint again
    'w.weight.quant_state.bitsandbytes__nf4' is not usable: its shape is not 2-D: tensor 'w.weight'
      export the checkpoint again
    a weight is stored as nf4, but the config declares bitsandbytes (fp4): tensor 'w.weight'
      check that the config belongs to this checkpoint
    a weight is stored as nf4, but the config declares bitsandbytes (LLM.int8): tensor 'w.weight'
      check that the config belongs to this checkpoint
    a weight is stored as U8 [64, 1] without its 'w.weight.quant_state.bitsandbytes__nf4': tensor 'w.weight'
      it is missing from the files or from the index: download or export the checkpoint again
    ");
}

#[test]
fn llm_int8() {
    let int8 = || Some(json!({"quant_method": "bitsandbytes", "load_in_8bit": true}));
    let weight = ("w.weight", Dtype::I8, [4, 6].as_slice());
    let format = ("w.weight_format", Dtype::U8, [].as_slice());
    let scale = ("w.SCB", Dtype::F32, [4].as_slice());
    let messages = [
        refusal(Shelf::new(&[weight]).weights(int8())),
        refusal(Shelf::new(&[weight, ("w.SCB", Dtype::F32, &[6])]).weights(int8())),
        refusal(Shelf::new(&[weight, scale, format]).with("w.weight_format", &[2]).weights(int8())),
        refusal(Shelf::new(&[weight, scale]).weights(config())),
    ];
    insta::assert_snapshot!(messages.join("\n"), @"
    a weight is stored as I8 [4, 6] without its 'w.SCB': tensor 'w.weight'
      it is missing from the files or from the index: download or export the checkpoint again
    a weight of shape [4, 6] needs a scale F32 [4]; 'w.SCB' is F32 [6]: tensor 'w.weight'
      export the checkpoint again
    quantization with LLM.int8 in tiles (weight_format other than 0) is not supported yet: tensor 'w.weight_format'
      dequantize the model to bf16 first, with the library that quantized it, and give that folder
    a weight is stored as I8 [4, 6], which the declared quantization, bitsandbytes (nf4), does not cover: tensor 'w.weight'
      put the model's own config.json, with its quantization_config, beside the weights, or dequantize the model to bf16 and give that folder
    ");
    // A skipped module is dense.
    let found = Shelf::new(&[("lm_head.weight", Dtype::BF16, &[4, 6])]).weights(int8()).unwrap();
    assert!(!found[0].quantized);
}
