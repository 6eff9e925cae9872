//! What a config declares about a quantized checkpoint, and the errors for what a format does not find.

use crate::quant::weight::{TensorInfo, Tensors};
use crate::{Error, Result};
use serde_json::Value;

/// A checkpoint's declaration of how it is quantized.
#[derive(Clone, Debug, PartialEq)]
pub struct Declared {
    /// The file that declares it: `config.json`, `hf_quant_config.json` or `quantize_config.json`.
    pub origin: String,
    /// The declaration as JSON.
    pub raw: Value,
}

impl Declared {
    /// The declared method's name in lower case. Without a `quant_method`, `hf_quant_config.json` means modelopt and
    /// `quantize_config.json` means GPTQ; older bitsandbytes configs are recognized by their flags.
    pub fn method(&self) -> Option<String> {
        let text = |key| self.raw.get(key).and_then(Value::as_str).map(str::to_lowercase);
        let has = |key| self.raw.get(key).is_some();
        text("quant_method").or_else(|| match self.origin.as_str() {
            "hf_quant_config.json" => Some("modelopt".to_owned()),
            "quantize_config.json" => Some("gptq".to_owned()),
            "quanto_qmap.json" => Some("quanto".to_owned()),
            _ if has("load_in_4bit") || has("load_in_8bit") => Some("bitsandbytes".to_owned()),
            // MLX declares the group size and the bits of all modules, and no method.
            "config.json" if has("group_size") && has("bits") => Some("mlx".to_owned()),
            _ => None,
        })
    }

    /// The string under the top-level `key`.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.raw.get(key).and_then(Value::as_str)
    }
}

/// The error for a scheme that is not supported, with the scheme's name.
pub(crate) fn unsupported(name: &str) -> Error {
    Error::input(format!("quantization with {name} is not supported yet"))
        .hint("dequantize the model to bf16 first, with the library that quantized it, and give that folder")
}

/// The error for a weight that lacks one of its companion tensors.
pub(crate) fn missing(weight: &TensorInfo, name: &str) -> Error {
    Error::input(format!("a weight is stored as {} without its '{name}'", weight.describe()))
        .tensor(&weight.name)
        .hint("it is missing from the files or from the index: download or export the checkpoint again")
}

/// Refuses a module that computes more than a product with its weight: modelopt can keep part of the weight as low-rank
/// factors.
pub(crate) fn refuse_extra_terms(module: &str, tensors: &dyn Tensors) -> Result<()> {
    let parts = ["svdquant_lora_a", "svdquant_lora_b", "weight_quantizer._svdquant_lora_a"]
        .map(|part| format!("{module}.{part}"));
    match parts.iter().find(|name| tensors.stored(name).is_some()) {
        Some(name) => Err(unsupported("a weight that is not used alone (svdquant_lora)").tensor(name)),
        None => Ok(()),
    }
}
