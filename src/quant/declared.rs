//! What a config declares of a quantized checkpoint, and the errors of formats that do not find what was declared.

use crate::quant::weight::{TensorInfo, Tensors};
use crate::{Error, Result};
use serde_json::Value;

/// A checkpoint's declaration of how it is quantized.
#[derive(Clone, Debug, PartialEq)]
pub struct Declared {
    /// The file that says so: `config.json`, `hf_quant_config.json` or `quantize_config.json`.
    pub origin: String,
    /// What it says, as JSON.
    pub raw: Value,
}

impl Declared {
    /// The declared method's name, lower case. `hf_quant_config.json` is modelopt's and `quantize_config.json` GPTQ's unless they
    /// say otherwise; older bitsandbytes configs are known by their flags.
    pub fn method(&self) -> Option<String> {
        let text = |key| self.raw.get(key).and_then(Value::as_str).map(str::to_lowercase);
        let has = |key| self.raw.get(key).is_some();
        text("quant_method").or_else(|| match self.origin.as_str() {
            "hf_quant_config.json" => Some("modelopt".to_owned()),
            "quantize_config.json" => Some("gptq".to_owned()),
            _ if has("load_in_4bit") || has("load_in_8bit") => Some("bitsandbytes".to_owned()),
            _ => None,
        })
    }

    /// A string under `key`, at the top.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.raw.get(key).and_then(Value::as_str)
    }
}

/// The refusal of a scheme, by its name.
pub(crate) fn unsupported(name: &str) -> Error {
    Error::input(format!("quantization with {name} is not supported yet"))
        .hint("dequantize the model to bf16 first, with the library that quantized it, and give that folder")
}

/// The error of a weight without one of its companions.
pub(crate) fn missing(weight: &TensorInfo, name: &str) -> Error {
    Error::input(format!("a weight is stored as {} without its '{name}'", weight.describe()))
        .tensor(&weight.name)
        .hint("it is missing from the files or from the index: download or export the checkpoint again")
}

/// Refuses a module whose weight alone is not what it computes: modelopt can scale the inputs of it first, or keep a part of the
/// weight in low rank.
pub(crate) fn alone(module: &str, tensors: &dyn Tensors) -> Result<()> {
    let parts =
        ["pre_quant_scale", "svdquant_lora_a", "svdquant_lora_b"].map(|part| format!("{module}.{part}"));
    match parts.iter().find(|name| tensors.stored(name).is_some()) {
        Some(name) => {
            Err(unsupported("a weight that is not used alone (pre_quant_scale, svdquant_lora)").tensor(name))
        }
        None => Ok(()),
    }
}
