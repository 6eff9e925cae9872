//! The quality of an adapter, measured without the library: weights are decoded and multiplied here, in f64.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::Dtype;
use serde_json::Value;
use trephine::lora::read::PeftAdapter;
use trephine::lora::rules;

use super::manifest;
use super::pair::{Tensor, dense, read_file, values};

/// The decoded weights of a checkpoint by module.
pub struct Weights(BTreeMap<String, (Vec<usize>, Vec<f64>)>);

impl Weights {
    /// Reads every file of a folder, and decodes block FP8 with blocks of 128 x 128.
    pub fn open(folder: &str) -> Weights {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let files = entries.filter(|path| path.extension().is_some_and(|end| end == "safetensors"));
        let tensors: BTreeMap<String, Tensor> =
            files.flat_map(|path| read_file(&path)).map(|t| (t.name.clone(), t)).collect();
        let weight = |(name, tensor): (&String, &Tensor)| {
            let module = name.strip_suffix(".weight")?;
            let decoded = match tensor.dtype {
                Dtype::F8_E4M3 => block_fp8(tensor, &tensors[&format!("{name}_scale_inv")]),
                _ => values(tensor),
            };
            Some((module.to_owned(), (tensor.shape.clone(), decoded)))
        };
        Weights(tensors.iter().filter_map(weight).collect())
    }

    /// A module; the head may be the embedding.
    fn get(&self, module: &str) -> &(Vec<usize>, Vec<f64>) {
        let tied = || self.0.get("model.embed_tokens").filter(|_| module == "lm_head");
        self.0.get(module).or_else(tied).unwrap_or_else(|| panic!("no {module}"))
    }
}

fn block_fp8(codes: &Tensor, scales: &Tensor) -> Vec<f64> {
    let (cols, scale) = (codes.shape[1], values(scales));
    let at = |(index, code): (usize, &u8)| {
        let (row, col) = (index / cols, index % cols);
        // Codes are decoded to f32 and multiplied in f32, as in the reference.
        f64::from(e4m3(*code) * scale[row / 128 * scales.shape[1] + col / 128] as f32)
    };
    codes.bytes.iter().enumerate().map(at).collect()
}

/// Decodes e4m3fn: sign, 4 bits of exponent with a bias of 7, 3 bits of mantissa, no infinities.
fn e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = match exponent {
        0 => mantissa / 8.0 * 2f32.powi(-6),
        15 if mantissa == 7.0 => f32::NAN,
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// A delta, and its residual without the factors.
pub struct FoundWeight {
    pub norm2: f64,
    pub error2: f64,
}

/// Measures one module of the manifest against two checkpoints.
pub fn delta(out: &Path, module: &Value, base: &Weights, tuned: &Weights) -> FoundWeight {
    let name = module["name"].as_str().unwrap();
    let product = product(out, name);
    let ((shape, base), (tuned_shape, tuned)) = (base.get(name), tuned.get(name));
    assert_eq!((shape, product.len()), (tuned_shape, shape[0] * shape[1]), "{name}");
    let mut found = FoundWeight { norm2: 0.0, error2: 0.0 };
    for ((base, tuned), product) in base.iter().zip(tuned).zip(&product) {
        found.norm2 += (tuned - base).powi(2);
        found.error2 += (tuned - base - product).powi(2);
    }
    found
}

/// `B·A` as a change of the weight: for an embedding its transpose.
fn product(out: &Path, module: &str) -> Vec<f64> {
    let factors = dense(&out.join("adapter_model.safetensors"));
    let stem = format!("base_model.model.{module}");
    let embedding = factors.contains_key(&format!("{stem}.lora_embedding_A"));
    let [a, b] =
        if embedding { ["lora_embedding_A", "lora_embedding_B"] } else { ["lora_A.weight", "lora_B.weight"] };
    let ((a_shape, a), (b_shape, b)) = (&factors[&format!("{stem}.{a}")], &factors[&format!("{stem}.{b}")]);
    let ([rank, inner], [outer, same]): ([usize; 2], [usize; 2]) =
        (a_shape[..].try_into().unwrap(), b_shape[..].try_into().unwrap());
    assert_eq!(rank, same, "{module}");
    let mut product = vec![0.0; outer * inner];
    for row in 0..outer {
        for k in 0..rank {
            let factor = b[row * rank + k];
            if factor != 0.0 {
                let into = &mut product[row * inner..(row + 1) * inner];
                into.iter_mut().zip(&a[k * inner..]).for_each(|(sum, a)| *sum += factor * a);
            }
        }
    }
    if !embedding {
        return product;
    }
    (0..outer * inner).map(|at| product[at % outer * inner + at / outer]).collect()
}

/// Asserts that the rules of every loader find nothing in `out`.
pub fn check_rules(out: &Path) {
    assert_eq!(rules::portable(&PeftAdapter::open_folder(out).unwrap(), None), []);
}

/// Asserts that the rules hold, that every module's error and norm are as recorded, and that modules which only
/// complete a set are zero.
pub fn check(out: &Path, base: &Weights, tuned: &Weights) {
    check_rules(out);
    let manifest = manifest(out);
    let (mut norm2, mut error2, mut allowed) = (0.0, 0.0, 0.0);
    for module in manifest["modules"].as_array().unwrap() {
        let name = module["name"].as_str().unwrap();
        if module["method"] == "none" {
            assert!(product(out, name).iter().all(|v| *v == 0.0), "{name}");
            continue;
        }
        let found = delta(out, module, base, tuned);
        let recorded = |key: &str| module[key].as_f64().unwrap();
        let (share, then) = (found.error2 / found.norm2, recorded("relative_error").powi(2));
        // A delta in bytes is rounded: what is stated of its error has to be true to 1e-3.
        let off = if module["precision"] == "int8" { 2e-3 } else { 1e-4 };
        assert!((share - then).abs() <= 1e-6 + off * share, "{name}: {share} found, {then} recorded");
        allowed += off * found.error2;
        let norm = found.norm2.sqrt();
        assert!((norm - recorded("delta_norm")).abs() <= 1e-6 * norm, "{name}: norm {norm}");
        assert!((1.0 - then - recorded("captured_energy")).abs() < 1e-12, "{name}");
        (norm2, error2) = (norm2 + found.norm2, error2 + found.error2);
    }
    let total = manifest["total"]["relative_error"].as_f64().unwrap();
    assert!((total.powi(2) - error2 / norm2).abs() <= 1e-5 + allowed / norm2, "{total} in all");
}
