//! compressed-tensors.

use safetensors::Dtype;
use serde_json::{Value, json};
use trephine::Result;
use trephine::quant::FoundWeight;

use crate::quant::{Shelf, declared, refusal};

/// A config with one group for all linear layers.
fn config(format: &str, weights: Value) -> Value {
    groups(format, json!({"group_0": {"targets": ["Linear"], "weights": weights}}))
}

fn groups(format: &str, groups: Value) -> Value {
    json!({"quant_method": "compressed-tensors", "format": format, "config_groups": groups, "ignore": ["lm_head", "re:.*gate$"]})
}

fn int4(group_size: usize) -> Value {
    json!({"num_bits": 4, "type": "int", "strategy": "group", "group_size": group_size})
}

fn channel() -> Value {
    json!({"num_bits": 8, "type": "float", "strategy": "channel"})
}

#[test]
fn refused_by_name() {
    let with = |key: &str, value: Value| {
        let mut raw = config("pack-quantized", int4(128));
        raw[key] = value;
        declared("config.json", raw)
    };
    let bits = |bits: u64| {
        declared("config.json", config("pack-quantized", json!({"num_bits": bits, "strategy": "channel"})))
    };
    let mut messages = vec![
        with("transform_config", json!({"config_groups": {"u": {"type": "hadamard"}}})),
        with("sparsity_config", json!({"format": "sparse-24-bitmask"})),
        with("format", json!("marlin-24")),
        with("format", json!("sparse-24-bitmask")),
        declared(
            "config.json",
            config(
                "float-quantized",
                json!({"num_bits": 8, "type": "float", "symmetric": false, "strategy": "channel"}),
            ),
        ),
        declared("config.json", config("int-quantized", json!({"num_bits": 8, "strategy": "attn_head"}))),
    ];
    messages.extend([1, 9].map(bits));
    assert!(messages.iter().all(|m| m.contains("dequantize the model to bf16 first")), "{messages:?}");
    let named: Vec<_> = messages.iter().map(|m| m.lines().next().unwrap()).collect();
    insta::assert_snapshot!(named.join("\n"), @"
    quantization with a transform_config (weights in a rotated basis) is not supported yet
    quantization with compressed-tensors (sparse-24-bitmask) is not supported yet
    quantization with compressed-tensors (marlin-24, int of 4 bits) is not supported yet
    quantization with compressed-tensors (sparse-24-bitmask, int of 4 bits) is not supported yet
    quantization with asymmetric FP8 or FP4 is not supported yet
    quantization with compressed-tensors (weights by attn_head) is not supported yet
    quantization with compressed-tensors (pack-quantized, int of 1 bits) is not supported yet
    quantization with compressed-tensors (pack-quantized, int of 9 bits) is not supported yet
    ");
}

#[test]
fn configs_that_make_no_sense() {
    let messages = [
        declared("config.json", groups("float-quantized", json!({}))),
        declared("config.json", config("pack-quantized", json!({"num_bits": 4, "strategy": "group"}))),
        declared(
            "config.json",
            config(
                "float-quantized",
                json!({"type": "float", "strategy": "block", "block_structure": [128, 0]}),
            ),
        ),
        declared(
            "config.json",
            groups("float-quantized", json!({"g": {"targets": ["re:("], "weights": channel()}})),
        ),
    ];
    let lines: Vec<_> =
        messages.iter().map(|m| m.lines().filter(|l| !l.trim().is_empty()).collect::<Vec<_>>()).collect();
    let firsts: Vec<_> = lines.iter().map(|l| l[0]).collect();
    insta::assert_snapshot!(firsts.join("\n"), @r#"
    config.json: compressed-tensors (float-quantized) without config_groups
    config.json: config_groups.group_0: groups need a positive group_size
    config.json: config_groups.group_0: blocks need a block_structure of two positive numbers
    config.json: config_groups.g: the list of modules cannot be read: the pattern 're:(' cannot be read: regex parse error:
    "#);
}

/// The modules that were found, and whether they are quantized.
fn names(found: Result<Vec<FoundWeight>>) -> Vec<(String, bool)> {
    found.unwrap().into_iter().map(|f| (f.module, f.quantized)).collect()
}

#[test]
fn each_module_goes_by_the_group_that_names_it_best() {
    let int8 = json!({"num_bits": 8, "type": "int", "strategy": "channel"});
    let raw = groups(
        "mixed-precision",
        json!({
            "group_0": {"targets": ["Linear"], "weights": channel(), "format": "float-quantized"},
            "group_1": {"targets": ["re:.*down_proj"], "weights": int8, "format": "int-quantized"},
            "group_2": {"targets": ["Linear"], "weights": null, "input_activations": {"num_bits": 8}},
        }),
    );
    let tensors = [
        ("a.down_proj.weight", Dtype::I8, [8, 4].as_slice()),
        ("a.down_proj.weight_scale", Dtype::F32, &[8, 1]),
        ("a.up_proj.weight", Dtype::F8_E4M3, &[8, 4]),
        ("a.up_proj.weight_scale", Dtype::BF16, &[8, 1]),
        ("a.up_proj.input_scale", Dtype::BF16, &[1]),
        ("a.gate.weight", Dtype::BF16, &[8, 4]),
        ("lm_head.weight", Dtype::BF16, &[8, 4]),
    ];
    let found = names(Shelf::new(&tensors).weights(Some(raw)));
    let expected = [("a.down_proj", true), ("a.gate", false), ("a.up_proj", true), ("lm_head", false)];
    assert_eq!(found, expected.map(|(name, quantized)| (name.to_owned(), quantized)));

    // A dense format has nothing quantized in it.
    let dense = json!({"quant_method": "compressed-tensors", "format": "dense"});
    let found = names(Shelf::new(&[("a.gate.weight", Dtype::BF16, &[8, 4])]).weights(Some(dense)));
    assert_eq!(found, [("a.gate".to_owned(), false)]);
}

#[test]
fn weights_that_the_config_does_not_explain() {
    let fp8 = |tensors: &[(&str, Dtype, &[usize])], strategy: Value| {
        let raw = config("float-quantized", strategy);
        refusal(Shelf::new(tensors).weights(Some(raw)))
    };
    let packed = |packed: &[usize], scale: &[usize], shape: [u64; 2]| {
        let tensors = [
            ("w.weight_packed", Dtype::I32, packed),
            ("w.weight_scale", Dtype::BF16, scale),
            ("w.weight_shape", Dtype::I64, &[2]),
        ];
        let shape: Vec<u8> = shape.into_iter().flat_map(u64::to_le_bytes).collect();
        let shelf = Shelf::new(&tensors).with("w.weight_shape", &shape);
        refusal(shelf.weights(Some(config("pack-quantized", int4(32)))))
    };
    let weight = ("w.weight", Dtype::F8_E4M3, [8, 64].as_slice());
    let two = json!({
        "a": {"targets": ["Linear"], "weights": channel()},
        "b": {"targets": ["Linear"], "weights": {"type": "float", "strategy": "tensor"}},
    });
    let messages = [
        fp8(&[weight], channel()),
        fp8(&[weight, ("w.weight_scale", Dtype::F32, &[7, 1])], channel()),
        fp8(&[weight, ("w.weight_scale", Dtype::F8_E4M3, &[8, 1])], channel()),
        fp8(&[("w.weight", Dtype::I8, &[8, 64])], channel()),
        fp8(&[("lm_head.weight", Dtype::F8_E4M3, &[8, 64])], channel()),
        fp8(&[("embed_tokens.weight", Dtype::F8_E4M3, &[8, 64])], channel()),
        refusal(Shelf::new(&[weight]).weights(Some(groups("float-quantized", two)))),
        packed(&[8, 7], &[8, 2], [8, 64]),
        packed(&[8, 8], &[8, 3], [8, 64]),
        packed(&[8, 6], &[8, 2], [8, 48]),
        packed(&[8, 8], &[8, 2], [8, u64::MAX]),
        refusal(
            Shelf::new(&[("w.weight_packed", Dtype::I32, &[8, 8])])
                .weights(Some(config("pack-quantized", int4(32)))),
        ),
    ];
    insta::assert_snapshot!(messages.join("\n"), @"
    a weight is stored as F8_E4M3 [8, 64] without its 'w.weight_scale': tensor 'w.weight'
      it is missing from the files or from the index: download or export the checkpoint again
    a weight of shape [8, 64] needs, according to the config, a companion of shape [8, 1] and dtype F32, BF16 or F16; 'w.weight_scale' is F32 [7, 1]: tensor 'w.weight'
      the quantization_config and the stored tensors must agree: check that the config belongs to this checkpoint
    a weight of shape [8, 64] needs, according to the config, a companion of shape [8, 1] and dtype F32, BF16 or F16; 'w.weight_scale' is F8_E4M3 [8, 1]: tensor 'w.weight'
      the quantization_config and the stored tensors must agree: check that the config belongs to this checkpoint
    a weight is stored as I8 [8, 64], which does not match its config group: tensor 'w.weight'
      check that the config belongs to this checkpoint
    a weight is stored as F8_E4M3 [8, 64], but the config's `ignore` says that it is not quantized: tensor 'lm_head.weight'
      the model's own config.json says how each module is quantized: check that this one belongs to the checkpoint
    a weight is stored as F8_E4M3 [8, 64], but no config group matches it: tensor 'embed_tokens.weight'
      the model's own config.json says how each module is quantized: check that this one belongs to the checkpoint
    a weight is stored as F8_E4M3 [8, 64], but two different config groups match it equally well: tensor 'w.weight'
      the model's own config.json says how each module is quantized: check that this one belongs to the checkpoint
    a weight of shape [8, 64] needs, according to the config, a companion of shape [8, 8] and dtype I32; 'w.weight_packed' is I32 [8, 7]: tensor 'w.weight_shape'
      the quantization_config and the stored tensors must agree: check that the config belongs to this checkpoint
    a weight of shape [8, 64] needs, according to the config, a companion of shape [8, 2] and dtype F32, BF16 or F16; 'w.weight_scale' is BF16 [8, 3]: tensor 'w.weight_packed'
      the quantization_config and the stored tensors must agree: check that the config belongs to this checkpoint
    48 columns is not a whole number of groups of 32: tensor 'w.weight_packed'
      check that the config belongs to this checkpoint
    'w.weight_shape' is I64 [2], not a shape of two numbers: tensor 'w.weight_packed'
      export the checkpoint again
    a weight is stored as I32 [8, 8] without its 'w.weight_shape': tensor 'w.weight_packed'
      it is missing from the files or from the index: download or export the checkpoint again
    ");
}

#[test]
fn nvfp4_needs_its_global_scale() {
    let nvfp4 = |global: Option<(Dtype, &[usize])>| {
        let mut tensors = vec![
            ("w.weight_packed", Dtype::U8, [4, 16].as_slice()),
            ("w.weight_scale", Dtype::F8_E4M3, &[4, 2]),
        ];
        tensors.extend(global.map(|(dtype, shape)| ("w.weight_global_scale", dtype, shape)));
        let weights = json!({"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16});
        refusal(Shelf::new(&tensors).weights(Some(config("nvfp4-pack-quantized", weights))))
    };
    let messages = [nvfp4(None), nvfp4(Some((Dtype::BF16, &[1]))), nvfp4(Some((Dtype::F32, &[4, 1])))];
    insta::assert_snapshot!(messages.join("\n"), @"
    a weight is stored as U8 [4, 16] without its 'w.weight_global_scale': tensor 'w.weight_packed'
      it is missing from the files or from the index: download or export the checkpoint again
    a weight of shape [4, 32] needs, according to the config, a companion of shape [1, 1] and dtype F32; 'w.weight_global_scale' is BF16 [1]: tensor 'w.weight_packed'
      the quantization_config and the stored tensors must agree: check that the config belongs to this checkpoint
    a weight of shape [4, 32] needs, according to the config, a companion of shape [1, 1] and dtype F32; 'w.weight_global_scale' is F32 [4, 1]: tensor 'w.weight_packed'
      the quantization_config and the stored tensors must agree: check that the config belongs to this checkpoint
    ");
}

#[test]
fn an_index_of_groups_is_not_trusted() {
    let tensors = [
        ("w.weight_packed", Dtype::I32, [1, 8].as_slice()),
        ("w.weight_scale", Dtype::F32, &[1, 2]),
        ("w.weight_shape", Dtype::I64, &[2]),
        ("w.weight_g_idx", Dtype::I32, &[64]),
    ];
    let shape: Vec<u8> = [1u64, 64].into_iter().flat_map(u64::to_le_bytes).collect();
    let shelf = Shelf::new(&tensors).with("w.weight_shape", &shape);
    let found = shelf.weights(Some(config("pack-quantized", int4(32)))).unwrap();
    let index: Vec<u8> = (0..64i32).flat_map(|i| (i / 31).to_le_bytes()).collect();
    let parts: [&[u8]; 4] = [&[0; 32], &[0; 8], &[], &index];
    let message = refusal(found[0].weight.dequantize(0..1, &parts, &mut [0.0; 64]));
    assert!(message.contains("among the 2 that have scales: tensor 'w.weight_g_idx'"), "{message}");
}
