//! Bases quantized by common tools: the attention of one layer of `tests/data/base`, by each of them (see
//! `scripts/fixtures_quantized.py`). The decoded values are those of the format's reference library, and an adapter
//! against such a base is as near to the best one as an adapter against the bf16 base.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::pair::dense;
use crate::common::{data, extract_with};
use faer::Mat;
use trephine::checkpoint::Checkpoint;

const RANK: usize = 16;

/// The folders of fixtures, and the names of their formats.
const BASES: [(&str, &str); 20] = [
    ("auto_awq", "AWQ (gemm)"),
    ("auto_gptq", "GPTQ v1 (4 bits)"),
    ("bitsandbytes_fp4", "bitsandbytes (fp4)"),
    ("bitsandbytes_int8", "bitsandbytes (LLM.int8)"),
    ("bitsandbytes_nf4", "bitsandbytes (nf4)"),
    ("compressed_fp8", "compressed-tensors (naive-quantized)"),
    ("compressed_fp8_tensor", "compressed-tensors (naive-quantized)"),
    ("compressed_int8", "compressed-tensors (int-quantized)"),
    ("compressed_mxfp4", "compressed-tensors (mxfp4-pack-quantized)"),
    ("compressed_mxfp8", "compressed-tensors (mxfp8-quantized)"),
    ("compressed_nvfp4", "compressed-tensors (nvfp4-pack-quantized)"),
    ("compressed_w4a16", "compressed-tensors (pack-quantized)"),
    ("compressed_w8a16", "compressed-tensors (pack-quantized)"),
    ("fp8_blocks", "block FP8 (32 x 32)"),
    ("fp8_e5m2", "FP8 without blocks"),
    ("fp8_tensor", "FP8 without blocks"),
    ("gguf_q4_0", "GGUF (Q4_0)"),
    ("gguf_q8_0", "GGUF (Q8_0)"),
    ("modelopt_fp8", "modelopt (FP8)"),
    ("modelopt_nvfp4", "modelopt (NVFP4)"),
];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/quantized").join(name)
}

fn open(folder: &str) -> Checkpoint {
    Checkpoint::open(folder).unwrap()
}

fn values(checkpoint: &Checkpoint, module: &str) -> ([usize; 2], Vec<f32>) {
    let module = checkpoint.module(module).unwrap_or_else(|| panic!("no {module}"));
    let [rows, columns] = module.shape();
    let mut values = vec![0f32; rows * columns];
    module.panel(checkpoint, 0..rows, &mut values).unwrap();
    ([rows, columns], values)
}

/// The digests of the reference's values, by module.
fn expected(name: &str) -> serde_json::Map<String, serde_json::Value> {
    serde_json::from_slice(&fs::read(folder(name).join("expected.json")).unwrap()).unwrap()
}

#[test]
fn what_tools_wrote_comes_out_as_their_references_have_it() {
    let folders = fs::read_dir(folder("")).unwrap().count();
    assert_eq!(folders, BASES.len());
    for (name, label) in BASES {
        let checkpoint = open(folder(name).to_str().unwrap());
        assert_eq!(checkpoint.scheme().label(), label, "{name}");
        let expected = expected(name);
        assert_eq!((checkpoint.modules().len(), expected.len()), (4, 4), "{name}");
        for (module, digest) in expected {
            let (_, values) = values(&checkpoint, &module);
            // Minus zero becomes zero, as in the script.
            let bytes: Vec<u8> = values.iter().flat_map(|v| (v + 0.0).to_le_bytes()).collect();
            assert_eq!(blake3::hash(&bytes).to_hex().as_str(), digest, "{name}: {module}");
        }
    }
}

/// The relative excess of each module's error over the least error of its rank, for an adapter against `base`.
fn excess(base: &str, out: &Path) -> Vec<(String, f64)> {
    let more = ["--rank", &RANK.to_string(), "--include", "*.layers.1.self_attn.*_proj"];
    extract_with(base, &data("tuned"), out, &more).code(0);
    let (base, tuned) = (open(base), open(&data("tuned")));
    let factors = dense(&out.join("adapter_model.safetensors"));
    let mat = |[rows, columns]: [usize; 2], values: &dyn Fn(usize) -> f64| {
        Mat::from_fn(rows, columns, |i, j| values(i * columns + j))
    };
    let factor = |module: &str, which: &str| {
        let (shape, values) = &factors[&format!("base_model.model.{module}.lora_{which}.weight")];
        mat([shape[0], shape[1]], &|at| values[at])
    };
    let modules = expected("auto_gptq").into_iter().map(|(module, _)| module);
    let one = |module: String| {
        let (shape, b) = values(&base, &module);
        let (_, t) = values(&tuned, &module);
        let delta = mat(shape, &|at| f64::from(t[at]) - f64::from(b[at]));
        let beyond = delta.singular_values().unwrap().into_iter().skip(RANK).map(|s| s * s).sum::<f64>();
        let error = (&delta - factor(&module, "B") * factor(&module, "A")).norm_l2();
        (module, error / beyond.sqrt() - 1.0)
    };
    modules.map(one).collect()
}

#[test]
fn an_adapter_lies_as_near_to_the_optimum_as_against_bf16() {
    let home = tempfile::tempdir().unwrap();
    let plain = excess(&data("base"), &home.path().join("bf16"));
    let bound = plain.iter().map(|(_, excess)| *excess).fold(0.0, f64::max);
    assert!(bound < 0.001, "{plain:?}");
    for (name, _) in BASES {
        for (module, excess) in excess(folder(name).to_str().unwrap(), &home.path().join(name)) {
            println!("{name} {module} {excess:.2e}, bf16 at most {bound:.2e}");
            // A fifth of the tolerance; the bf16 base stays within it too.
            assert!(
                (-1e-6..0.001).contains(&excess),
                "{name}: {module} is {excess} above the least, bf16 {bound}"
            );
        }
    }
}
