//! One suite for every format: each file in `tests/fixtures/FORMAT/` holds a weight, the config that declares it,
//! and its values by a reference library (see `scripts/fixtures_*.py`). The decoded values must match bit for bit,
//! in any panels.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use safetensors::{Dtype, SafeTensors};
use serde_json::json;
use trephine::Result;
use trephine::checkpoint::{Checkpoint, Module, ModuleReader};
use trephine::quant::expert::Experts;
use trephine::quant::number::{E4M3, round_to_bf16};
use trephine::quant::{Declared, Dequantize, FoundWeight, Scheme, TensorInfo, Tensors};

pub(crate) struct Shelf(BTreeMap<String, (TensorInfo, Vec<u8>)>);

impl Tensors for Shelf {
    fn stored(&self, name: &str) -> Option<&TensorInfo> {
        self.0.get(name).map(|(stored, _)| stored)
    }

    fn content(&self, name: &str) -> Result<Vec<u8>> {
        Ok(self.0[name].1.clone())
    }
}

impl Shelf {
    pub(crate) fn new(tensors: &[(&str, Dtype, &[usize])]) -> Shelf {
        let stored = tensors.iter().map(|&(name, dtype, shape)| TensorInfo {
            name: name.into(),
            dtype,
            shape: shape.into(),
        });
        Shelf(stored.map(|stored| (stored.name.to_string(), (stored, Vec::new()))).collect())
    }

    /// The same with the content of one of them.
    pub(crate) fn with(mut self, name: &str, bytes: &[u8]) -> Shelf {
        self.0.get_mut(name).unwrap().1 = bytes.to_vec();
        self
    }

    /// All weights on the shelf, by the config.
    pub(crate) fn weights(&self, config: Option<serde_json::Value>) -> Result<Vec<FoundWeight>> {
        self.weights_of(config, Experts::default())
    }

    /// The same for a model whose experts have that layout.
    pub(crate) fn weights_of(
        &self,
        config: Option<serde_json::Value>,
        experts: Experts,
    ) -> Result<Vec<FoundWeight>> {
        let declared = config.map(|raw| Declared { origin: "config.json".into(), raw });
        let scheme = Scheme::with_experts(declared.as_ref(), experts)?;
        let found: Result<Vec<_>> = self.0.values().map(|(lead, _)| scheme.weights(lead, self)).collect();
        Ok(found?.concat())
    }
}

/// The bytes of each part that `rows` needs, moved to an odd address.
fn parts(weight: &dyn Dequantize, whole: &[Vec<u8>], rows: std::ops::Range<usize>) -> Vec<Vec<u8>> {
    let spans = weight.spans(rows);
    whole.iter().zip(spans).map(|(bytes, span)| [&[0], &bytes[span]].concat()).collect()
}

pub(crate) fn decode(weight: &dyn Dequantize, whole: &[Vec<u8>], rows: std::ops::Range<usize>) -> Vec<f32> {
    let parts = parts(weight, whole, rows.clone());
    let parts: Vec<&[u8]> = parts.iter().map(|bytes| &bytes[1..]).collect();
    let mut out = vec![f32::MAX; rows.len() * weight.shape()[1]];
    weight.dequantize(rows, &parts, &mut out).unwrap();
    out
}

pub(crate) fn assert_bits(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
        assert!(same, "{what}: value {i} is {got:e}, the reference has {want:e}");
    }
}

/// Panels that begin and end inside blocks, at their edges, and at single rows.
fn cuts(rows: usize) -> Vec<usize> {
    let mut cuts = vec![0, 1, 2, 31, 33, 127, 128, 129, 191, 300, 575, rows];
    cuts.retain(|&cut| cut <= rows);
    cuts.sort_unstable();
    cuts.dedup();
    cuts
}

/// The folders under `tests/fixtures`, and how many cases each holds.
const FORMATS: [(&str, usize); 14] = [
    ("mlx", 12),
    ("quanto", 4),
    ("modelopt_more", 6),
    ("auto_round", 17),
    ("block_fp8", 10),
    ("compressed", 39),
    ("bitsandbytes", 16),
    ("fp8", 11),
    ("gptq", 11),
    ("awq", 5),
    ("modelopt", 4),
    ("mxfp4", 3),
    ("fp8_experts", 3),
    ("e5m2", 5),
];

#[test]
fn every_fixture_comes_out_bit_for_bit() {
    for (format, cases) in FORMATS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(format);
        let files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
        assert_eq!(files.len(), cases, "fixtures of {format}");
        files.iter().for_each(|file| fixture(file));
    }
}

fn fixture(path: &Path) {
    let name = path.display();
    let bytes = fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let config = serde_json::from_str(&header.metadata().as_ref().unwrap()["quantization_config"]).unwrap();
    let stored = file.tensors().into_iter().filter(|(name, _)| name.starts_with("w.")).map(|(name, view)| {
        let stored = TensorInfo::new(&name, view.dtype(), view.shape());
        (name, (stored, view.data().to_vec()))
    });
    let experts = experts(header.metadata().as_ref().unwrap().get("config"));
    let found = Shelf(stored.collect()).weights_of(Some(config), experts).unwrap();
    let expected: Vec<f32> = numbers(file.tensor("expected_f32").unwrap().data(), f32::from_le_bytes);
    let bridge =
        numbers(file.tensor("bridge_bf16").unwrap().data(), |b| half::bf16::from_le_bytes(b).to_f32());
    // One weight, or those of the experts of a stack.
    let shape = file.tensor("expected_f32").unwrap().shape().to_vec();
    let count = if shape.len() == 3 { shape[0] } else { 1 };
    assert_eq!(found.len(), count, "{name}: {found:?}");
    for (index, FoundWeight { module, weight, quantized }) in found.iter().enumerate() {
        assert!(*quantized, "{name}");
        assert_eq!(*module, module_name(&shape, index), "{name}");
        let whole: Vec<_> =
            weight.tensors().iter().map(|t| file.tensor(&t.name).unwrap().data().to_vec()).collect();
        let [rows, columns] = weight.shape();
        let part = index * rows * columns..(index + 1) * rows * columns;
        let (expected, bridge) = (&expected[part.clone()], &bridge[part]);
        conforms(&format!("{name}, {module}"), &**weight, &whole, expected, bridge);
        within(&**weight, &whole, &name.to_string());
    }
}

/// The values of a weight are bit for bit those of a reference: whole, in panels, in f64, rounded.
pub(crate) fn conforms(
    name: &str,
    weight: &dyn Dequantize,
    whole: &[Vec<u8>],
    expected: &[f32],
    bridge: &[f32],
) {
    let [rows, columns] = weight.shape();
    let mut values = decode(weight, whole, 0..rows);
    assert_bits(&values, expected, &format!("{name}, whole"));
    for cut in cuts(rows).windows(2) {
        let panel = decode(weight, whole, cut[0]..cut[1]);
        assert_bits(&panel, &expected[cut[0] * columns..cut[1] * columns], &format!("{name}, rows {cut:?}"));
    }
    assert!(decode(weight, whole, rows..rows).is_empty(), "{name}, no rows");
    round_to_bf16(&mut values);
    assert_bits(&values, bridge, &format!("{name}, as bf16"));
    in_f64(weight, whole, expected);
}

/// The tensors that a weight declares as its own are exactly those that it reads.
pub(crate) fn within(weight: &dyn Dequantize, whole: &[Vec<u8>], name: &str) {
    let extents = weight.extents();
    for (i, span) in weight.spans(0..weight.shape()[0]).into_iter().enumerate() {
        assert!(span.is_empty() || extents[i] == span, "{name}: {:?} of {span:?}", extents[i]);
        assert!(extents[i].end <= whole[i].len(), "{name}: {:?}", extents[i]);
    }
}

/// The expert layout of the model that a fixture's metadata names, if it names one.
fn experts(config: Option<&String>) -> Experts {
    let Some(config) = config else { return Experts::default() };
    let config: serde_json::Value = serde_json::from_str(config).unwrap();
    let hidden = config.pointer("/text_config/hidden_size").unwrap().as_u64().unwrap();
    Experts::of(&[config["model_type"].as_str().unwrap()], Some(hidden as usize))
}

/// The module of a fixture's weight: `w`, or an expert of `w`.
fn module_name(shape: &[usize], index: usize) -> String {
    if shape.len() == 3 { format!("w.experts.gate_up_proj.{index}") } else { "w".to_owned() }
}

/// The same values from a folder with the config and the file, as a run reads them.
#[test]
fn every_fixture_opens_as_a_checkpoint() {
    for (format, _) in FORMATS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(format);
        for file in fs::read_dir(folder).unwrap() {
            let file = file.unwrap().path();
            let bytes = fs::read(&file).unwrap();
            let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
            let metadata = header.metadata().as_ref().unwrap();
            let mut config = json!({});
            if let Some(model) = metadata.get("config") {
                config = serde_json::from_str(model).unwrap();
            }
            config["quantization_config"] = serde_json::from_str(&metadata["quantization_config"]).unwrap();
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
            fs::write(folder.path().join("model.safetensors"), &bytes).unwrap();
            let checkpoint = Checkpoint::open(folder.path().to_str().unwrap()).unwrap();
            let whole = SafeTensors::deserialize(&bytes).unwrap();
            let want = numbers(whole.tensor("expected_f32").unwrap().data(), f32::from_le_bytes);
            let shape = whole.tensor("expected_f32").unwrap().shape().to_vec();
            for index in 0..if shape.len() == 3 { shape[0] } else { 1 } {
                let module = checkpoint.module(&module_name(&shape, index)).unwrap();
                let [rows, columns] = module.shape();
                let want = &want[index * rows * columns..(index + 1) * rows * columns];
                as_a_run_reads(&checkpoint, module, want, &file.display().to_string());
            }
            // Every tensor of the weight is read as a part of it, and none is left over.
            for other in checkpoint.others() {
                assert!(
                    ["expected_f32", "bridge_bf16", "w.input_scale"].contains(&other.name()),
                    "{other:?}"
                );
            }
        }
    }
}

/// A module read at once, by rows of one mapping, and through a reader.
fn as_a_run_reads(checkpoint: &Checkpoint, module: &Module, want: &[f32], file: &str) {
    let [rows, columns] = module.shape();
    let mut got = vec![0f32; rows * columns];
    module.panel(checkpoint, 0..rows, &mut got).unwrap();
    assert_bits(&got, want, file);
    // Rows that are mapped once may be decoded in pieces.
    let from = rows / 3;
    let panel = module.read(checkpoint, from..rows).unwrap();
    for row in from..rows {
        let out = &mut got[row * columns..][..columns];
        out.fill(f32::MAX);
        panel.decode_some(row..row + 1, out).unwrap();
        let mut wide = vec![0f64; columns];
        panel.decode_some_f64(row..row + 1, &mut wide).unwrap();
        assert!(wide.iter().zip(&*out).all(|(w, n)| *w == f64::from(*n) || n.is_nan()));
    }
    assert_bits(&got, want, file);
    let reader = ModuleReader::open(checkpoint, module).unwrap();
    for cut in cuts(rows).windows(2) {
        let mut slice = vec![0f32; (cut[1] - cut[0]) * columns];
        reader.panel(cut[0]..cut[1], &mut slice).unwrap();
        assert_bits(&slice, &want[cut[0] * columns..cut[1] * columns], "a reader's slice");
    }
}

fn in_f64(weight: &dyn Dequantize, whole: &[Vec<u8>], expected: &[f32]) {
    let rows = 0..weight.shape()[0];
    let parts = parts(weight, whole, rows.clone());
    let parts: Vec<&[u8]> = parts.iter().map(|bytes| &bytes[1..]).collect();
    let mut wide = vec![0f64; expected.len()];
    weight.dequantize_f64(rows, &parts, &mut wide).unwrap();
    for (got, want) in wide.iter().zip(expected) {
        assert!(*got == f64::from(*want) || got.is_nan() && want.is_nan(), "{got:e} is not {want:e}");
    }
}

pub(crate) fn numbers<const N: usize>(bytes: &[u8], decode: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks::<N>().0.iter().map(|&b| decode(b)).collect()
}

/// A dense `[3, 5]` weight of that dtype.
fn dense(dtype: Dtype) -> Arc<dyn Dequantize> {
    Shelf::new(&[("w.weight", dtype, &[3, 5])]).weights(None).unwrap()[0].weight.clone()
}

#[test]
fn dense_types() {
    let values: Vec<f64> = (0..15).map(|i| f64::from(i - 7) / 3.0 * 10f64.powi(i - 9)).collect();
    let bytes =
        |encode: &dyn Fn(f64) -> Vec<u8>| vec![values.iter().flat_map(|&v| encode(v)).collect::<Vec<u8>>()];
    let rounded = |round: &dyn Fn(f64) -> f64| values.iter().map(|&v| round(v) as f32).collect::<Vec<f32>>();
    let (bf16, f16) = (half::bf16::from_f64, half::f16::from_f64);

    let stored = bytes(&|v| bf16(v).to_le_bytes().to_vec());
    let expected = rounded(&|v| bf16(v).to_f64());
    assert_bits(&decode(&*dense(Dtype::BF16), &stored, 0..3), &expected, "bf16");
    assert_bits(&decode(&*dense(Dtype::BF16), &stored, 1..2), &expected[5..10], "the middle row");
    in_f64(&*dense(Dtype::BF16), &stored, &expected);

    let (stored, expected) = (bytes(&|v| f16(v).to_le_bytes().to_vec()), rounded(&|v| f16(v).to_f64()));
    assert_bits(&decode(&*dense(Dtype::F16), &stored, 0..3), &expected, "f16");
    in_f64(&*dense(Dtype::F16), &stored, &expected);

    let (stored, expected) = (bytes(&|v| (v as f32).to_le_bytes().to_vec()), rounded(&|v| v));
    assert_bits(&decode(&*dense(Dtype::F32), &stored, 0..3), &expected, "f32");
    in_f64(&*dense(Dtype::F32), &stored, &expected);
    assert!(!dense(Dtype::F32).is_wide());

    let wide = dense(Dtype::F64);
    assert!(wide.is_wide());
    let stored = bytes(&|v| v.to_le_bytes().to_vec());
    assert_bits(&decode(&*wide, &stored, 0..3), &expected, "f64 narrowed");
    let mut exact = vec![0f64; 15];
    wide.dequantize_f64(0..3, &[&stored[0]], &mut exact).unwrap();
    assert_eq!(exact, values, "f64 exactly");
}

#[test]
fn all_f16_codes_agree_with_half() {
    let codes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let shelf = Shelf::new(&[("w.weight", Dtype::F16, &[64, 1024])]);
    let got = decode(&*shelf.weights(None).unwrap()[0].weight, &[codes], 0..64);
    let want: Vec<f32> = (0..=u16::MAX).map(|bits| half::f16::from_bits(bits).to_f32()).collect();
    assert_bits(&got, &want, "f16");
}

#[test]
fn nan_codes_of_fp8_give_nan() {
    let shelf = Shelf::new(&[
        ("w.weight", Dtype::F8_E4M3, &[2, 128]),
        ("w.weight_scale_inv", Dtype::F32, &[1, 1]),
        ("w.input_scale", Dtype::F32, &[1]),
    ]);
    let found = shelf.weights(Some(json!({"quant_method": "fp8", "weight_block_size": [128, 128]}))).unwrap();
    let [found] = found.as_slice() else { panic!("one weight: {found:?}") };
    let codes: Vec<u8> = (0..=255).collect();
    let got = decode(&*found.weight, &[codes, 2f32.to_le_bytes().to_vec()], 0..2);
    let want: Vec<f32> = E4M3.iter().map(|v| v * 2.0).collect();
    assert_bits(&got, &want, "all codes");
    assert!(got[0x7f].is_nan() && got[0xff].is_nan());
}

#[test]
fn what_a_weight_is_says_its_dtype() {
    let config = json!({"quant_method": "fp8", "weight_block_size": [128, 128], "modules_to_not_convert": ["lm_head"]});
    let shelf = Shelf::new(&[
        ("lm_head.weight", Dtype::BF16, &[10, 20]),
        ("embed_tokens.weight", Dtype::BF16, &[10, 20]), // dense, though on no list
        ("norm.weight", Dtype::BF16, &[20]),
        ("q.weight", Dtype::F8_E4M3, &[130, 20]),
        ("q.weight_scale_inv", Dtype::F32, &[2, 1]),
        ("table", Dtype::I64, &[4, 4]),
        ("experts.gate_up_proj", Dtype::F8_E4M3, &[2, 8, 8]),
        ("experts.gate_up_proj_scale_inv", Dtype::F32, &[2, 1, 1]),
    ]);
    let found = shelf.weights(Some(config)).unwrap();
    let found: Vec<_> = found.iter().map(|f| (f.module.as_str(), f.quantized)).collect();
    assert_eq!(
        found,
        [
            ("embed_tokens", false),
            ("experts.gate_up_proj.0", true),
            ("experts.gate_up_proj.1", true),
            ("lm_head", false),
            ("q", true)
        ]
    );
}

/// The message and the hint.
pub(crate) fn refusal<T: std::fmt::Debug>(result: Result<T>) -> String {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), trephine::Kind::Input);
    format!("{error}\n  {}", error.cure().unwrap_or("NO CURE"))
}

pub(crate) fn declared(origin: &str, raw: serde_json::Value) -> String {
    refusal(Scheme::from_config(Some(&Declared { origin: origin.into(), raw })))
}

#[test]
fn other_schemes_are_refused_by_name() {
    for method in ["hqq", "aqlm", "fbgemm_fp8", "torchao", "a-new-one"] {
        let message = declared("config.json", json!({"quant_method": method}));
        assert!(
            message.starts_with(&format!("quantization with {method} is not supported yet")),
            "{message}"
        );
    }
    let messages = [
        declared("config.json", json!({"quant_method": "fp8", "weight_scale_semantics": "inverse"})),
        declared(
            "config.json",
            json!({"quant_method": "fp8", "fmt": "e3m4", "weight_block_size": [128, 128]}),
        ),
        declared("hf_quant_config.json", json!({"quantization": {"quant_algo": "NVFP4_SVD"}})),
        declared("quantize_config.json", json!({"bits": 5})),
        declared("config.json", json!({"bits": 4})),
    ];
    insta::assert_snapshot!(messages.join("\n"), @"
    quantization with inverse FP8 scales without a weight_block_size is not supported yet
      dequantize the model to bf16 first, with the library that quantized it, and give that folder
    quantization with fp8 (fmt e3m4) is not supported yet
      dequantize the model to bf16 first, with the library that quantized it, and give that folder
    quantization with modelopt (NVFP4_SVD) is not supported yet
      dequantize the model to bf16 first, with the library that quantized it, and give that folder
    quantization with gptq of 5 bits is not supported yet
      dequantize the model to bf16 first, with the library that quantized it, and give that folder
    the quantization declared by config.json has no quant_method
      add its `quant_method`, or dequantize the model to bf16 and give that folder
    ");
}

#[test]
fn configs_that_make_no_sense() {
    let fp8 = |size, semantics| {
        let raw =
            json!({"quant_method": "fp8", "weight_block_size": size, "weight_scale_semantics": semantics});
        declared("config.json", raw)
    };
    let messages = [
        fp8(json!([128]), json!(null)),
        fp8(json!([0, 128]), json!(null)),
        fp8(json!([128, 128, 128]), json!(null)),
        fp8(json!([128, 128]), json!("logarithmic")),
    ];
    insta::assert_snapshot!(messages.join("\n"), @r#"
    config.json: weight_block_size is [128], not two positive numbers
      correct the quantization_config
    config.json: weight_block_size is [0,128], not two positive numbers
      correct the quantization_config
    config.json: weight_block_size is [128,128,128], not two positive numbers
      correct the quantization_config
    config.json: unknown weight_scale_semantics: "logarithmic"
      correct the quantization_config
    "#);
}

#[test]
fn weights_that_nothing_explains() {
    let fp8 = || Some(json!({"quant_method": "fp8", "weight_block_size": [128, 128]}));
    let weight = ("a.q_proj.weight", Dtype::F8_E4M3, [192, 300].as_slice());
    let with = |name, dtype, shape: &[usize]| Shelf::new(&[weight, (name, dtype, shape)]).weights(fp8());
    let messages = [
        refusal(Shelf::new(&[weight]).weights(fp8())),
        refusal(Shelf::new(&[weight]).weights(None)),
        refusal(with("a.q_proj.weight_scale_inv", Dtype::F32, &[2, 2])),
        refusal(with("a.q_proj.weight_scale_inv", Dtype::F32, &[1])),
        refusal(with("a.q_proj.weight_scale_inv", Dtype::I32, &[2, 3])),
        refusal(Shelf::new(&[("a.weight", Dtype::I8, &[8, 8])]).weights(fp8())),
        refusal(Shelf::new(&[("a.qweight", Dtype::I32, &[8, 8])]).weights(None)),
    ];
    insta::assert_snapshot!(messages.join("\n"), @"
    a weight is stored as F8_E4M3 [192, 300] without its scale, 'a.q_proj.weight_scale_inv': tensor 'a.q_proj.weight'
      the scale is missing from the files or from the index: download or export the checkpoint again
    a weight is stored as F8_E4M3 [192, 300], but nothing declares how it is quantized: tensor 'a.q_proj.weight'
      put the model's own config.json, with its quantization_config, beside the weights, or dequantize the model to bf16 and give that folder
    a weight of shape [192, 300] in blocks of 128 x 128 needs a scale of shape [2, 3] and dtype F32, BF16, F16, F8_E8M0 or U8; 'a.q_proj.weight_scale_inv' is F32 [2, 2]: tensor 'a.q_proj.weight'
      weight_block_size in the config and the stored scales must agree: check that the config belongs to this checkpoint
    a weight of shape [192, 300] in blocks of 128 x 128 needs a scale of shape [2, 3] and dtype F32, BF16, F16, F8_E8M0 or U8; 'a.q_proj.weight_scale_inv' is F32 [1]: tensor 'a.q_proj.weight'
      weight_block_size in the config and the stored scales must agree: check that the config belongs to this checkpoint
    a weight of shape [192, 300] in blocks of 128 x 128 needs a scale of shape [2, 3] and dtype F32, BF16, F16, F8_E8M0 or U8; 'a.q_proj.weight_scale_inv' is I32 [2, 3]: tensor 'a.q_proj.weight'
      weight_block_size in the config and the stored scales must agree: check that the config belongs to this checkpoint
    a weight is stored as I8 [8, 8], which the declared quantization, block FP8 (128 x 128), does not cover: tensor 'a.weight'
      put the model's own config.json, with its quantization_config, beside the weights, or dequantize the model to bf16 and give that folder
    a weight is stored as I32 [8, 8] (its name is that of GPTQ or AWQ), but nothing declares how it is quantized: tensor 'a.qweight'
      put the model's own config.json, with its quantization_config, beside the weights, or dequantize the model to bf16 and give that folder
    ");
}
