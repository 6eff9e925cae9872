//! Generated checkpoints: any tensors, any names, any bytes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// One tensor: name, shape, and values before they are stored.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub dtype: Dtype,
    pub bytes: Vec<u8>,
}

impl Tensor {
    /// A tensor that is stored as bf16.
    pub fn bf16(name: &str, shape: &[usize], values: &[f32]) -> Tensor {
        let bytes = values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
        Tensor { name: name.into(), shape: shape.into(), dtype: Dtype::BF16, bytes }
    }

    /// A tensor that is stored as f32.
    pub fn f32(name: &str, shape: &[usize], values: &[f32]) -> Tensor {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor { name: name.into(), shape: shape.into(), dtype: Dtype::F32, bytes }
    }
}

/// Numbers in (-1, 1) that depend only on the seed (splitmix64).
pub fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def0;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    (0..count).map(|_| (next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect()
}

/// `values` with a change of rank `rank` added: `scale · u · v`.
pub fn changed(values: &[f32], [m, n]: [usize; 2], rank: usize, scale: f32, seed: u64) -> Vec<f32> {
    let (u, v) = (noise(seed, m * rank), noise(seed + 1, rank * n));
    let mut out = values.to_vec();
    for i in 0..m {
        for k in 0..rank {
            let factor = scale * u[i * rank + k];
            for j in 0..n {
                out[i * n + j] += factor * v[k * n + j];
            }
        }
    }
    out
}

/// Writes one safetensors file.
pub fn write_file(path: &Path, tensors: &[Tensor]) {
    let views: Vec<(&str, TensorView<'_>)> = tensors
        .iter()
        .map(|t| (t.name.as_str(), TensorView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap()))
        .collect();
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Writes a checkpoint of one file with a config.
pub fn write(folder: &Path, tensors: &[Tensor], config: &serde_json::Value) -> PathBuf {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    write_file(&folder.join("model.safetensors"), tensors);
    folder.to_owned()
}

/// Reads a whole safetensors file.
pub fn read_file(path: &Path) -> Vec<Tensor> {
    let bytes = fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |(name, view): (String, TensorView<'_>)| Tensor {
        name,
        shape: view.shape().to_vec(),
        dtype: view.dtype(),
        bytes: view.data().to_vec(),
    };
    let mut tensors: Vec<Tensor> = file.tensors().into_iter().map(tensor).collect();
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    tensors
}

/// The values of a dense tensor.
pub fn values(tensor: &Tensor) -> Vec<f64> {
    let bytes = &tensor.bytes;
    match tensor.dtype {
        Dtype::BF16 => bytes.as_chunks().0.iter().map(|b| f64::from(half::bf16::from_le_bytes(*b))).collect(),
        Dtype::F16 => bytes.as_chunks().0.iter().map(|b| f64::from(half::f16::from_le_bytes(*b))).collect(),
        Dtype::F32 => bytes.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
        other => panic!("{other} is not dense"),
    }
}

/// All tensors of a file by name, as shape and values.
pub fn dense(path: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f64>)> {
    let tensors = read_file(path).into_iter();
    tensors.map(|t| (t.name.clone(), (t.shape.clone(), values(&t)))).collect()
}

/// The config of a plain model.
pub fn config() -> serde_json::Value {
    serde_json::json!({"model_type": "qwen3", "tie_word_embeddings": false})
}

/// Writes a pair of checkpoints to `home`, `base` and `tuned`, with these weights in bf16 and one norm.
pub fn pair(home: &Path, weights: &[(&str, [usize; 2])]) -> (String, String) {
    let (mut base, mut tuned) = (Vec::new(), Vec::new());
    for (seed, (name, shape)) in weights.iter().enumerate() {
        let [m, n] = *shape;
        let values = noise(1000 + seed as u64, m * n);
        let after = changed(&values, *shape, 3.min(m).min(n), 0.05, 5000 + 2 * seed as u64);
        base.push(Tensor::bf16(&format!("{name}.weight"), shape, &values));
        tuned.push(Tensor::bf16(&format!("{name}.weight"), shape, &after));
    }
    let norm = noise(7, 64);
    base.push(Tensor::bf16("model.norm.weight", &[64], &norm));
    tuned.push(Tensor::bf16("model.norm.weight", &[64], &changed(&norm, [64, 1], 1, 0.5, 9)));
    let written = [("base", base), ("tuned", tuned)]
        .map(|(side, tensors)| write(&home.join(side), &tensors, &config()).to_string_lossy().into_owned());
    let [base, tuned] = written;
    (base, tuned)
}
