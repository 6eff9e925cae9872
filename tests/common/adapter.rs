//! Adapters made on the spot, as PEFT would lay them on disk.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::pair::{Tensor, noise, write_file};

/// Both factors of a linear layer `[out, in]`, in bf16.
pub fn lora(module: &str, [out, inner]: [usize; 2], rank: usize, seed: u64) -> Vec<Tensor> {
    let stem = format!("base_model.model.{module}");
    vec![
        Tensor::bf16(&format!("{stem}.lora_A.weight"), &[rank, inner], &noise(seed, rank * inner)),
        Tensor::bf16(&format!("{stem}.lora_B.weight"), &[out, rank], &noise(seed + 1, out * rank)),
    ]
}

/// The config of rank 4 with `lora_alpha` 8 for these kinds of module.
pub fn config(targets: &[&str]) -> Value {
    json!({"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "some/base", "r": 4,
        "lora_alpha": 8, "target_modules": targets})
}

/// Writes an adapter's two files.
pub fn write_adapter(folder: &Path, tensors: &[Tensor], config: &Value) -> PathBuf {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    write_file(&folder.join("adapter_model.safetensors"), tensors);
    folder.to_owned()
}
