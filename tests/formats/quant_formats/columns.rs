//! GPTQ and AWQ.

use safetensors::Dtype;
use serde_json::{Value, json};

use crate::quant::{Shelf, declared, refusal};

#[test]
fn refused_by_name() {
    let gptq = |key: &str, value: Value| {
        let mut raw = json!({"quant_method": "gptq", "bits": 4, "group_size": 128});
        raw[key] = value;
        declared("config.json", raw)
    };
    let awq = |key: &str, value: Value| {
        let mut raw = json!({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"});
        raw[key] = value;
        declared("config.json", raw)
    };
    let messages = [
        gptq("checkpoint_format", json!("marlin")),
        gptq("is_marlin_format", json!(true)),
        gptq("format", json!("gptq_p")),
        gptq("bits", json!(5)),
        gptq("bits", json!(6)),
        gptq("bits", json!(7)),
        gptq("dynamic", json!({"-:.*down_proj": {}, "+:.*q_proj": {"bits": 5}})),
        gptq("rotation", json!("hadamard")),
        gptq("pack_dtype", json!("int16")),
        awq("version", json!("GEMV")),
        awq("version", json!("gemv_fast")),
        awq("version", json!("marlin")),
        awq("backend", json!("llm-awq")),
        awq("bits", json!(8)),
    ];
    assert!(messages.iter().all(|m| m.contains("dequantize the model to bf16 first")), "{messages:?}");
    let named: Vec<_> = messages.iter().filter_map(|m| m.lines().next()).collect();
    insta::assert_snapshot!(named.join("\n"), @"
    quantization with gptq (marlin) is not supported yet
    quantization with gptq (marlin) is not supported yet
    quantization with gptq (gptq_p) is not supported yet
    quantization with gptq of 5 bits is not supported yet
    quantization with gptq of 6 bits is not supported yet
    quantization with gptq of 7 bits is not supported yet
    quantization with gptq of 5 bits (+:.*q_proj) is not supported yet
    quantization with gptq with `rotation` is not supported yet
    quantization with gptq packed as int16 is not supported yet
    quantization with awq (GEMV) is not supported yet
    quantization with awq (gemv_fast) is not supported yet
    quantization with awq (marlin) is not supported yet
    quantization with awq (llm-awq) is not supported yet
    quantization with awq of 8 bits is not supported yet
    ");
}

#[test]
fn configs_that_make_no_sense() {
    let messages = [
        declared("config.json", json!({"quant_method": "gptq", "group_size": 128})),
        declared("config.json", json!({"quant_method": "gptq", "bits": "four", "group_size": 128})),
        declared("config.json", json!({"quant_method": "gptq", "bits": 4})),
        declared("config.json", json!({"quant_method": "awq", "group_size": 0})),
        declared("config.json", json!({"quant_method": "awq", "group_size": -2})),
    ];
    insta::assert_snapshot!(messages.join("\n"), @r#"
    config.json: `bits` is missing
      put the model's own config.json, or its quantize_config.json, beside the weights
    config.json: `bits` is "four", not a number
      correct the quantization_config
    config.json: `group_size` is missing
      put the model's own config.json, or its quantize_config.json, beside the weights
    config.json: `group_size` is 0
      correct the quantization_config: it must be a positive number or -1
    config.json: `group_size` is -2
      correct the quantization_config: it must be a positive number or -1
    "#);
}

#[test]
fn words_that_do_not_go_with_their_companions() {
    let of = |config: Value, words: &[usize], zeros: &[usize], scales: (Dtype, &[usize]), index: usize| {
        let tensors = [
            ("w.qweight", Dtype::I32, words),
            ("w.qzeros", Dtype::I32, zeros),
            ("w.scales", scales.0, scales.1),
            ("w.g_idx", Dtype::I32, &[index]),
        ];
        refusal(Shelf::new(&tensors).weights(Some(config)))
    };
    let gptq = |bits: usize| json!({"quant_method": "gptq", "bits": bits, "group_size": 32});
    let awq = || json!({"quant_method": "awq", "group_size": 32});
    let fine = (Dtype::F16, [2, 32].as_slice());
    let messages = [
        of(gptq(4), &[8, 32], &[2, 5], fine, 64),
        of(gptq(4), &[8, 32], &[2, 4], (Dtype::F16, &[3, 32]), 64),
        of(gptq(4), &[8, 32], &[2, 4], (Dtype::I32, &[2, 32]), 64),
        of(gptq(4), &[8, 32], &[2, 4], fine, 63),
        of(gptq(8), &[8, 32], &[2, 4], fine, 64),
        of(gptq(3), &[8, 32], &[2, 3], fine, 64),
        of(gptq(4), &[8, 33], &[2, 4], fine, 64),
        of(awq(), &[64, 4], &[2, 3], fine, 64),
        refusal(Shelf::new(&[("w.qweight", Dtype::I32, &[8, 32])]).weights(Some(gptq(4)))),
    ];
    insta::assert_snapshot!(messages.join("\n"), @"
    a packed weight [8, 32] in groups of 32 needs a companion of shape [2, 4] and dtype I32; 'w.qzeros' is I32 [2, 5]: tensor 'w.qweight'
      the config and the stored tensors must agree: check that the config belongs to this checkpoint
    a packed weight [8, 32] in groups of 32 needs a companion of shape [2, 32] and dtype F16 or BF16 or F32; 'w.scales' is F16 [3, 32]: tensor 'w.qweight'
      the config and the stored tensors must agree: check that the config belongs to this checkpoint
    a packed weight [8, 32] in groups of 32 needs a companion of shape [2, 32] and dtype F16 or BF16 or F32; 'w.scales' is I32 [2, 32]: tensor 'w.qweight'
      the config and the stored tensors must agree: check that the config belongs to this checkpoint
    a packed weight [8, 32] in groups of 32 needs a companion of shape [64] and dtype I32; 'w.g_idx' is I32 [63]: tensor 'w.qweight'
      the config and the stored tensors must agree: check that the config belongs to this checkpoint
    a packed weight [8, 32] in groups of 32 needs a companion of shape [1, 8] and dtype I32; 'w.qzeros' is I32 [2, 4]: tensor 'w.qweight'
      the config and the stored tensors must agree: check that the config belongs to this checkpoint
    words of shape [8, 32] do not hold a whole number of 32-bit packs: tensor 'w.qweight'
      check that the config belongs to this checkpoint: `bits` determines the packing
    words of shape [8, 33] do not hold a whole number of 32-bit packs: tensor 'w.qweight'
      check that the config belongs to this checkpoint: `bits` determines the packing
    a packed weight [64, 4] in groups of 32 needs a companion of shape [2, 4] and dtype I32; 'w.qzeros' is I32 [2, 3]: tensor 'w.qweight'
      the config and the stored tensors must agree: check that the config belongs to this checkpoint
    a weight is stored as I32 [8, 32] without its 'w.qzeros': tensor 'w.qweight'
      it is missing from the files or from the index: download or export the checkpoint again
    ");
}

#[test]
fn an_index_of_groups_is_not_trusted() {
    let tensors = [
        ("w.qweight", Dtype::I32, [4, 32].as_slice()),
        ("w.qzeros", Dtype::I32, &[2, 4]),
        ("w.scales", Dtype::F16, &[2, 32]),
        ("w.g_idx", Dtype::I32, &[32]),
    ];
    let config = json!({"quant_method": "gptq", "bits": 4, "group_size": 16});
    let found = Shelf::new(&tensors).weights(Some(config)).unwrap();
    for bad in [2, -1, i32::MIN] {
        let index: Vec<u8> = (0..32).flat_map(|i| (if i == 31 { bad } else { 0 }).to_le_bytes()).collect();
        let parts: [&[u8]; 4] = [&[0; 512], &[0; 32], &[0; 128], &index];
        let message = refusal(found[0].weight.dequantize(0..1, &parts, &mut [0.0; 32]));
        assert!(message.contains("among the 2 that have scales: tensor 'w.g_idx'"), "{message}");
    }
}

/// GPTQModel's `dynamic`: the bits of a module are those of its words, and a group size that its scales have.
#[test]
fn modules_with_settings_of_their_own() {
    let config = json!({"quant_method": "gptq", "bits": 4, "group_size": 32, "dynamic": {
        "-:.*attn.*": {}, "+:.*mlp.*": {"bits": 8, "group_size": 64}, ".*head$": {"group_size": -1}}});
    let weight = |words: &[usize], zeros: &[usize], groups: usize| {
        let tensors = [
            ("w.qweight", Dtype::I32, words),
            ("w.qzeros", Dtype::I32, zeros),
            ("w.scales", Dtype::F16, &[groups, 32]),
        ];
        Shelf::new(&tensors).weights(Some(config.clone()))
    };
    for (words, zeros, groups, inputs, group) in [
        ([16, 32], [4, 4], 4, 128, 32),
        ([32, 32], [2, 8], 2, 128, 64),
        ([16, 32], [1, 4], 1, 128, 128),
        ([8, 32], [1, 4], 1, 64, 64),
    ] {
        let found = weight(&words, &zeros, groups).unwrap();
        assert_eq!(found[0].weight.shape(), [32, inputs], "{words:?} {zeros:?}");
        assert_eq!(found[0].weight.capabilities().block, Some([1, group]), "{words:?} {zeros:?}");
    }
    let message = refusal(weight(&[8, 32], &[2, 2], 2));
    assert!(message.contains("have 2 bits, which the config gives to no module"), "{message}");
    let message = refusal(weight(&[16, 32], &[3, 4], 3));
    assert!(message.contains("in groups of 32 needs a companion of shape [4, 4]"), "{message}");
}

#[test]
fn auto_rounds_packings_by_name() {
    let of = |key: &str, value: Value| {
        let mut raw = json!({"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": true,
            "data_type": "int", "packing_format": "auto_round:auto_gptq"});
        raw[key] = value;
        declared("config.json", raw)
    };
    let messages = [
        of("packing_format", json!("auto_round:marlin")),
        of("data_type", json!("nf4")),
        of("bits", json!(1)),
    ];
    let named: Vec<_> = messages.iter().filter_map(|m| m.lines().next()).collect();
    insta::assert_snapshot!(named.join("\n"), @"
    quantization with auto-round (auto_round:marlin) is not supported yet
    quantization with auto-round (nf4) is not supported yet
    quantization with gptq of 1 bits is not supported yet
    ");
}
