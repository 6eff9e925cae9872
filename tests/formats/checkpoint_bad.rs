//! Bad input, each kind with its message: file, tensor, bytes, hint.

use crate::checkpoint_files::{Folder, f32s, safetensors, with_header};
use proptest::prelude::*;
use serde_json::json;
use trephine::checkpoint::Checkpoint;

/// The refusal of a folder with this one file in it.
fn file(bytes: &[u8]) -> String {
    let folder = Folder::new();
    folder.write("model.safetensors", bytes);
    folder.refusal(folder.open())
}

/// The refusal of a file with this header and that many bytes after it.
fn header(header: &str, data: usize) -> String {
    file(&with_header(header, &vec![0; data]))
}

fn good() -> Vec<u8> {
    safetensors(&[("x.weight", "F32", &[1, 2], f32s(2))])
}

#[test]
fn files_that_are_cut_short() {
    insta::assert_snapshot!(file(b""), @"
    the file is empty: [folder]/model.safetensors
      the file is damaged or was cut short: download or copy it again
    ");
    insta::assert_snapshot!(file(b"\x10\0\0"), @"
    the file has 3 bytes, too few for a header: [folder]/model.safetensors
      the file is damaged or was cut short: download or copy it again
    ");
    insta::assert_snapshot!(file(&good()[..40]), @"
    the header claims 63 bytes, but the file ends after 40: [folder]/model.safetensors
      the file is damaged or was cut short: download or copy it again
    ");
    insta::assert_snapshot!(file(&good()[..good().len() - 3]), @"
    the bytes of a tensor are 0 to 8, but the file holds only 5 after its header: tensor 'x.weight': [folder]/model.safetensors
      the file is damaged or was cut short: download or copy it again
    ");
    insta::assert_snapshot!(file(&[good(), vec![0; 5]].concat()), @"
    bytes 8 to 13, after the last tensor, belong to no tensor: [folder]/model.safetensors
      the file is damaged or was cut short: download or copy it again
    ");
}

#[test]
fn a_header_over_100_mb() {
    insta::assert_snapshot!(file(&[&100_000_001u64.to_le_bytes()[..], b"{}"].concat()), @"
    the header claims 100000001 bytes; the format allows 100000000: [folder]/model.safetensors
      this is probably not a safetensors file: download or export it again
    ");
    insta::assert_snapshot!(file(&[0xff; 64]), @"
    the header claims 18446744073709551615 bytes; the format allows 100000000: [folder]/model.safetensors
      this is probably not a safetensors file: download or export it again
    ");
}

#[test]
fn a_git_lfs_pointer() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n";
    insta::assert_snapshot!(file(pointer), @"
    this is a Git LFS pointer, not the file itself: [folder]/model.safetensors
      run `git lfs pull` in its folder
    ");
    let folder = Folder::new();
    folder.write("model.safetensors", &good());
    folder.write("config.json", pointer);
    insta::assert_snapshot!(folder.refusal(folder.open()), @"
    this is a Git LFS pointer, not the file itself: [folder]/config.json
      run `git lfs pull` in its folder
    ");
}

#[test]
fn headers_that_are_not_json() {
    insta::assert_snapshot!(header("[]", 0), @"
    the header is not a JSON object: [folder]/model.safetensors: invalid type: sequence, expected an object of tensors at line 1 column 1
      the file is damaged or was cut short: download or copy it again
    ");
    insta::assert_snapshot!(header("{\"x\": ", 0), @"
    the header is not a JSON object: [folder]/model.safetensors: EOF while parsing a value at line 1 column 6
      the file is damaged or was cut short: download or copy it again
    ");
    insta::assert_snapshot!(file(&[&4u64.to_le_bytes()[..], b"{\"\xff\""].concat()), @"
    the header is not UTF-8: [folder]/model.safetensors
      the file is damaged or was cut short: download or copy it again
    ");
    insta::assert_snapshot!(header(r#"{"__metadata__": {"format": 3}}"#, 0), @"
    the header is not valid: [folder]/model.safetensors: invalid type: integer `3`, expected a string at line 1 column 30
      the file is damaged or was cut short: download or copy it again
    ");
}

#[test]
fn offsets_that_do_not_add_up() {
    let two = |a: &str, b: &str| {
        format!(
            r#"{{"a": {{"dtype":"U8","shape":[4],"data_offsets":{a}}}, "b": {{"dtype":"U8","shape":[4],"data_offsets":{b}}}}}"#
        )
    };
    insta::assert_snapshot!(header(&two("[0,4]", "[2,6]"), 6), @"
    the bytes of a tensor, from 2, overlap those of 'a', up to 4: tensor 'b': [folder]/model.safetensors
      the file is damaged or was cut short: download or copy it again
    ");
    insta::assert_snapshot!(header(&two("[0,4]", "[0,4]"), 4), @"
    the bytes of a tensor, from 0, overlap those of 'a', up to 4: tensor 'b': [folder]/model.safetensors
      the file is damaged or was cut short: download or copy it again
    ");
    insta::assert_snapshot!(header(&two("[0,4]", "[6,10]"), 10), @"
    bytes 4 to 6, before a tensor, belong to no tensor: tensor 'b': [folder]/model.safetensors
      the file is damaged or was cut short: download or copy it again
    ");
    insta::assert_snapshot!(header(&two("[0,4]", "[4,8]"), 7), @"
    the bytes of a tensor are 4 to 8, but the file holds only 7 after its header: tensor 'b': [folder]/model.safetensors
      the file is damaged or was cut short: download or copy it again
    ");
    insta::assert_snapshot!(header(&two("[0,4]", "[4,8]"), 9), @"
    bytes 8 to 9, after the last tensor, belong to no tensor: [folder]/model.safetensors
      the file is damaged or was cut short: download or copy it again
    ");
    insta::assert_snapshot!(header(&two("[0,4]", "[8,4]"), 8), @"
    the bytes of a tensor end at 4, before their start at 8: tensor 'b': [folder]/model.safetensors
      the file is damaged or was cut short: download or copy it again
    ");
    insta::assert_snapshot!(header(&two("[0,4]", "[4,9]"), 9), @"
    U8 [4] needs 4 bytes, but its offsets give 5: tensor 'b': [folder]/model.safetensors
      the file is damaged or was cut short: download or copy it again
    ");
    insta::assert_snapshot!(header(&two("[0,4]", "[4,18446744073709551615]"), 8), @"
    U8 [4] needs 4 bytes, but its offsets give 18446744073709551611: tensor 'b': [folder]/model.safetensors
      the file is damaged or was cut short: download or copy it again
    ");
    insta::assert_snapshot!(header(&two("[0,4]", "[18446744073709551612,0]"), 8), @"
    the bytes of a tensor end at 0, before their start at 18446744073709551612: tensor 'b': [folder]/model.safetensors
      the file is damaged or was cut short: download or copy it again
    ");
    insta::assert_snapshot!(header(&two("[0,4]", "[4,99999999999999999999999]"), 8), @"
    data_offsets is [4,1e+23], not a list of whole numbers: tensor 'b': [folder]/model.safetensors
      the file is damaged or was cut short: download or copy it again
    ");
    insta::assert_snapshot!(header(&two("[0,4]", "[4]"), 8), @"
    data_offsets has 1 numbers, not 2: tensor 'b': [folder]/model.safetensors
      the file is damaged or was cut short: download or copy it again
    ");
}

#[test]
fn entries_that_make_no_sense() {
    let one = |entry: &str| header(&format!(r#"{{"a": {entry}}}"#), 4);
    insta::assert_snapshot!(one(r#"{"dtype":"F7","shape":[4],"data_offsets":[0,4]}"#), @r#"
    unknown dtype "F7": tensor 'a': [folder]/model.safetensors
      use a newer trephine that may know it, or convert the checkpoint to bf16 or f32
    "#);
    insta::assert_snapshot!(one(r#"{"dtype":"U8","data_offsets":[0,4]}"#), @"
    the header's entry has no shape: tensor 'a': [folder]/model.safetensors
      the file is damaged or was cut short: download or copy it again
    ");
    insta::assert_snapshot!(one(r#"{"dtype":"U8","shape":[-4],"data_offsets":[0,4]}"#), @"
    shape is [-4], not a list of whole numbers: tensor 'a': [folder]/model.safetensors
      the file is damaged or was cut short: download or copy it again
    ");
    insta::assert_snapshot!(one(r#"{"dtype":"F64","shape":[4294967296,4294967296],"data_offsets":[0,4]}"#), @"
    shape [4294967296, 4294967296] overflows: tensor 'a': [folder]/model.safetensors
      the file is damaged or was cut short: download or copy it again
    ");
    insta::assert_snapshot!(one(r#"{"dtype":"F4","shape":[7],"data_offsets":[0,4]}"#), @"
    F4 [7] does not fill whole bytes: tensor 'a': [folder]/model.safetensors
      the file is damaged or was cut short: download or copy it again
    ");
    insta::assert_snapshot!(header(r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#, 4), @"
    the header names a tensor twice: tensor 'a': [folder]/model.safetensors
      the file is damaged or was cut short: download or copy it again
    ");
}

#[test]
fn indexes_that_lie() {
    let with = |map: &[(&str, &str)]| {
        let folder = Folder::new();
        folder.write("model-1.safetensors", &good());
        folder.index(map);
        folder.refusal(folder.open())
    };
    insta::assert_snapshot!(with(&[("x.weight", "model-1.safetensors"), ("y.weight", "model-2.safetensors")]), @"
    a file with 1 of the index's 2 tensors is missing: [folder]/model-2.safetensors
      the download is incomplete: fetch the checkpoint again
    ");
    insta::assert_snapshot!(with(&[("x.weight", "model-1.safetensors"), ("y.weight", "model-1.safetensors")]), @"
    the index puts a tensor in 'model-1.safetensors', which does not hold it: tensor 'y.weight': [folder]/model.safetensors.index.json
      index and files come from different exports: fetch the checkpoint again
    ");
    insta::assert_snapshot!(with(&[("x.weight", "../model-1.safetensors")]), @"
    the index points outside its folder, to '../model-1.safetensors': tensor 'x.weight': [folder]/model.safetensors.index.json
      do not use this checkpoint: ask who made it
    ");
    insta::assert_snapshot!(with(&[("x.weight", "/etc/passwd")]), @"
    the index points outside its folder, to '/etc/passwd': tensor 'x.weight': [folder]/model.safetensors.index.json
      do not use this checkpoint: ask who made it
    ");
    insta::assert_snapshot!(with(&[("x.weight", "sub/../../model-1.safetensors")]), @"
    the index points outside its folder, to 'sub/../../model-1.safetensors': tensor 'x.weight': [folder]/model.safetensors.index.json
      do not use this checkpoint: ask who made it
    ");
    let folder = Folder::new();
    folder.write("model.safetensors.index.json", b"{\"weight_map\": ");
    insta::assert_snapshot!(folder.refusal(folder.open()), @"
    this is not JSON: [folder]/model.safetensors.index.json: EOF while parsing a value at line 1 column 15
      download or export this file again
    ");
    folder.write("model.safetensors.index.json", b"{\"weight_map\": {\"x\": 3}}");
    insta::assert_snapshot!(folder.refusal(folder.open()), @"
    the index's entry is not a file name: tensor 'x': [folder]/model.safetensors.index.json
      download or export the index again
    ");
    folder.write("model.safetensors.index.json", b"{}");
    insta::assert_snapshot!(folder.refusal(folder.open()), @"
    the index has no weight_map: [folder]/model.safetensors.index.json
      download or export the index again
    ");
}

#[test]
fn a_tensor_in_two_files() {
    let folder = Folder::new();
    folder.write("model.safetensors", &good());
    folder.write("model.fp16.safetensors", &good());
    insta::assert_snapshot!(folder.refusal(folder.open()), @"
    two files hold the same tensor, this one and 'model.fp16.safetensors': tensor 'x.weight': [folder]/model.safetensors
      the folder mixes two exports: keep one, or add the index that says which is meant
    ");
}

#[test]
fn folders_that_are_no_checkpoint() {
    let holding = |names: &[&str]| {
        let folder = Folder::new();
        names.iter().for_each(|name| folder.write(name, b"{}"));
        folder.refusal(folder.open())
    };
    insta::assert_snapshot!(holding(&["config.json", "tokenizer.json"]), @"
    the folder holds no .safetensors and no .gguf: [folder]
      give the folder of a model
    ");
    insta::assert_snapshot!(holding(&["config.json", "pytorch_model-00001-of-00002.bin"]), @"
    the weights are in PyTorch's pickle format (.bin), not in safetensors: [folder]
      convert them with `save_pretrained`, which writes safetensors
    ");
    insta::assert_snapshot!(holding(&["Qwen3-32B-Q4_K_M.gguf"]), @"
    the file does not begin with the magic bytes of GGUF: [folder]/Qwen3-32B-Q4_K_M.gguf
      the file is damaged or was cut short: download or copy it again
    ");
    insta::assert_snapshot!(holding(&["adapter_config.json", "adapter_model.safetensors"]), @"
    this is an adapter, not a checkpoint: [folder]
      give a model that has it merged
    ");
    let folder = Folder::new();
    folder.write("model.gguf", b"GGUF");
    let path = folder.path().join("model.gguf");
    insta::assert_snapshot!(folder.refusal(Checkpoint::open(path.to_str().unwrap())), @"
    the file ends after 4 bytes, within its header: [folder]/model.gguf
      the file is damaged or was cut short: download or copy it again
    ");
    let path = folder.path().join("nothing");
    insta::assert_snapshot!(folder.refusal(Checkpoint::open(path.to_str().unwrap())), @"
    no such file or folder: [folder]/nothing
      give a folder, a .safetensors or .gguf file, or a name such as Qwen/Qwen3-32B
    ");
}

#[test]
fn quantized_weights_that_nothing_explains() {
    let folder = Folder::new();
    folder.write("model.safetensors", &safetensors(&[("a.q_proj.weight", "F8_E4M3", &[2, 4], vec![0; 8])]));
    insta::assert_snapshot!(folder.refusal(folder.open()), @"
    a weight is stored as F8_E4M3 [2, 4], but nothing declares how it is quantized: tensor 'a.q_proj.weight': [folder]/model.safetensors
      put the model's own config.json, with its quantization_config, beside the weights, or dequantize the model to bf16 and give that folder
    ");
    folder.write_json(
        "config.json",
        &json!({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}),
    );
    insta::assert_snapshot!(folder.refusal(folder.open()), @"
    a weight is stored as F8_E4M3 [2, 4] without its scale, 'a.q_proj.weight_scale_inv': tensor 'a.q_proj.weight': [folder]/model.safetensors
      the scale is missing from the files or from the index: download or export the checkpoint again
    ");
    folder.write_json("config.json", &json!({"quantization_config": {"quant_method": "aqlm"}}));
    insta::assert_snapshot!(folder.refusal(folder.open()), @"
    quantization with aqlm is not supported yet: [folder]
      dequantize the model to bf16 first, with the library that quantized it, and give that folder
    ");
    folder.write_json("config.json", &json!({}));
    folder.write_json("hf_quant_config.json", &json!({"quantization": {"quant_algo": "NVFP4_SVD"}}));
    insta::assert_snapshot!(folder.refusal(folder.open()), @"
    quantization with modelopt (NVFP4_SVD) is not supported yet: [folder]
      dequantize the model to bf16 first, with the library that quantized it, and give that folder
    ");
}

#[test]
fn a_file_that_shrinks_after_it_was_opened() {
    let folder = Folder::new();
    folder.write("model.safetensors", &good());
    let checkpoint = folder.open().unwrap();
    folder.write("model.safetensors", &good()[..20]);
    let tensor = checkpoint.tensor("x.weight").unwrap();
    insta::assert_snapshot!(folder.refusal(checkpoint.read(tensor, 0..8)), @"
    the file had 79 bytes when it was opened and now has 20: tensor 'x.weight': [folder]/model.safetensors
      something writes to the checkpoint: wait until it is whole, then run the command again
    ");
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let folder = Folder::new();
        folder.write("model.safetensors", &bytes);
        let _ = folder.open();
    }

    #[test]
    fn arbitrary_json_never_panics(json in r#"(\{"a":)?\{("(dtype|shape|data_offsets)":("(F32|U8|F4|X)"|\[[0-9]{0,20}(,[0-9]{0,20})?\]|null),?){0,4}\}?\}?"#, data in 0usize..40) {
        let folder = Folder::new();
        folder.write("model.safetensors", &with_header(&json, &vec![0; data]));
        let _ = folder.open();
    }

    #[test]
    fn a_damaged_header_is_refused_or_read_within_its_file(at in 0usize..1000, bits in 1u8..) {
        let folder = Folder::new();
        let mut bytes = safetensors(&[("x.weight", "F32", &[3, 2], f32s(6)), ("y.weight", "BF16", &[2, 2], vec![1; 8])]);
        let at = at % bytes.len();
        bytes[at] ^= bits;
        folder.write("model.safetensors", &bytes);
        if let Ok(checkpoint) = folder.open() {
            for tensor in checkpoint.tensors() {
                let window = checkpoint.read(tensor, 0..tensor.size()).unwrap();
                prop_assert_eq!(&*window, &bytes[tensor.bytes.start as usize..tensor.bytes.end as usize]);
            }
            for module in checkpoint.modules() {
                let [rows, columns] = module.shape();
                module.panel(&checkpoint, 0..rows, &mut vec![0f32; rows * columns]).unwrap();
            }
        }
    }

    #[test]
    fn what_the_crate_writes_comes_back(shapes in proptest::collection::vec(proptest::collection::vec(0usize..6, 0..4), 1..8)) {
        let data: Vec<Vec<u8>> = shapes.iter().map(|shape| f32s(shape.iter().product())).collect();
        let views = shapes.iter().zip(&data).enumerate().map(|(i, (shape, data))| {
            (format!("t{i}.weight"), safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), data).unwrap())
        });
        let folder = Folder::new();
        folder.write("model.safetensors", &safetensors::serialize(views, None).unwrap());
        let checkpoint = folder.open().unwrap();
        prop_assert_eq!(checkpoint.tensors().len(), shapes.len());
        for (i, (shape, data)) in shapes.iter().zip(&data).enumerate() {
            let tensor = checkpoint.tensor(&format!("t{i}.weight")).unwrap();
            prop_assert_eq!(&tensor.stored.shape, shape);
            prop_assert_eq!(&*checkpoint.read(tensor, 0..tensor.size()).unwrap(), data.as_slice());
        }
        prop_assert_eq!(checkpoint.modules().len(), shapes.iter().filter(|shape| shape.len() == 2 && !shape.contains(&0)).count());
    }
}

/// Weights under names that no format knows are not taken for a dense model.
#[test]
fn codes_that_no_weight_accounts_for() {
    let file = |name: &str, dtype: &str, shape: &[usize]| {
        let bytes = vec![0; shape.iter().product()];
        let norm = ("model.norm.weight", "F32", [2].as_slice(), f32s(2));
        let folder = Folder::new();
        folder.write("model.safetensors", &safetensors(&[norm, (name, dtype, shape, bytes)]));
        folder
    };
    let refused = |name, dtype, shape: &[usize]| {
        let folder = file(name, dtype, shape);
        folder.refusal(folder.open())
    };
    insta::assert_snapshot!(refused("x.q_proj.weight._data", "I8", &[4, 8]), @"
    a tensor of codes, I8 [4, 8], belongs to no weight that is read, in the layout of optimum-quanto: tensor 'x.q_proj.weight._data': [folder]/model.safetensors
      put the quanto_qmap.json that was saved with it beside the weights: it says how they are quantized
    ");
    insta::assert_snapshot!(refused("x.q_proj.codes", "U8", &[4, 8]), @"
    a tensor of codes, U8 [4, 8], belongs to no weight that is read: tensor 'x.q_proj.codes': [folder]/model.safetensors
      dequantize the model to bf16 with the library that quantized it, and give that folder
    ");
    // Masks and tables of integers are no weights.
    for name in ["h.0.attn.bias", "h.0.attention_mask", "x.relative_position_index"] {
        assert!(file(name, "U8", &[4, 4]).open().is_ok(), "{name}");
    }
}

#[test]
fn a_part_of_a_set_without_an_index_is_missing() {
    let folder = Folder::new();
    for part in [1, 3] {
        let name = format!("x.{part}.weight");
        folder.write(
            &format!("model-0000{part}-of-00003.safetensors"),
            &safetensors(&[(&name, "F32", &[1, 2], f32s(2))]),
        );
    }
    insta::assert_snapshot!(folder.refusal(folder.open()), @"
    a part of the checkpoint is missing: 2 of 3 files are there: [folder]/model-00002-of-00003.safetensors
      the download is incomplete: fetch the checkpoint again
    ");
    folder
        .write("model-00002-of-00003.safetensors", &safetensors(&[("x.2.weight", "F32", &[1, 2], f32s(2))]));
    assert!(folder.open().is_ok());
}
