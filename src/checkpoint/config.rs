//! The model's config: the few fields that Trephine needs.

use std::path::Path;

use serde_json::Value;

use crate::Result;
use crate::checkpoint::json::read_json;
use crate::quant::declared::Declared;
use crate::storage::{Folder, LocalFolder};

/// The longest config. A quantization that names every module may take some megabytes.
const LONGEST: u64 = 16 << 20;

/// A `config.json`, empty where there is none.
#[derive(Clone, Debug, Default)]
pub struct Config {
    raw: Option<Value>,
    quantization: Option<Declared>,
}

impl Config {
    /// Reads the configs of a folder: `config.json`, and if that declares no quantization, the file beside it
    /// that does.
    ///
    /// # Errors
    /// A file that is not JSON or cannot be read.
    pub fn load(folder: &Path) -> Result<Config> {
        Config::read(&LocalFolder::new(folder))
    }

    /// The same from any place.
    ///
    /// # Errors
    /// The errors of [`load`](Self::load).
    pub fn read(folder: &dyn Folder) -> Result<Config> {
        let raw: Option<Value> = read_json(folder, "config.json", LONGEST)?;
        let mut quantization = raw.as_ref().and_then(declared);
        for origin in ["hf_quant_config.json", "quantize_config.json", "quanto_qmap.json"] {
            if quantization.is_none() {
                let raw: Option<Value> = read_json(folder, origin, LONGEST)?;
                quantization = raw.map(|raw| Declared { origin: origin.to_owned(), raw });
            }
        }
        Ok(Config { raw, quantization })
    }

    /// A config from another source than a `config.json`, for example GGUF metadata.
    pub(crate) fn of(raw: Value) -> Config {
        Config { raw: Some(raw), quantization: None }
    }

    /// The unchanged JSON.
    pub fn raw(&self) -> Option<&Value> {
        self.raw.as_ref()
    }

    /// The class of the model, the first of `architectures`.
    pub fn architecture(&self) -> Option<&str> {
        self.raw.as_ref()?.pointer("/architectures/0")?.as_str()
    }

    /// `model_type`.
    pub fn model_type(&self) -> Option<&str> {
        self.raw.as_ref()?.get("model_type")?.as_str()
    }

    /// PEFT's `task_type` for an adapter of this model: PEFT's wrapper for it needs a model that generates text. `None`
    /// for models that do not: bare models, masked language models, classifiers. A config that names no class counts as
    /// a causal language model, like most models.
    pub fn task_type(&self) -> Option<&'static str> {
        let Some(classes) = self.raw.as_ref().and_then(|raw| raw.get("architectures")?.as_array()) else {
            return Some("CAUSAL_LM");
        };
        let generates = |class: &str| {
            ["ForCausalLM", "LMHeadModel", "ForConditionalGeneration"].iter().any(|end| class.ends_with(end))
        };
        if !classes.is_empty() && !classes.iter().filter_map(Value::as_str).any(generates) {
            return None;
        }
        let encodes = self.raw.as_ref().and_then(|raw| raw.get("is_encoder_decoder")?.as_bool());
        Some(if encodes == Some(true) { "SEQ_2_SEQ_LM" } else { "CAUSAL_LM" })
    }

    /// `model_type` of the decoder of an encoder and a decoder that were put together.
    pub fn decoder_model_type(&self) -> Option<&str> {
        self.raw.as_ref()?.pointer("/decoder/model_type")?.as_str()
    }

    /// `model_type` of the language model inside a multimodal model (`text_config`).
    pub fn text_model_type(&self) -> Option<&str> {
        self.raw.as_ref()?.pointer("/text_config/model_type")?.as_str()
    }

    /// Whether the output head is the input embedding. The default of a config is true, as in transformers: this
    /// matters only when no head is stored. Without a config it is false.
    pub fn tie_word_embeddings(&self) -> bool {
        self.raw.is_some() && self.field("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(true)
    }

    /// `vocab_size`.
    pub fn vocab_size(&self) -> Option<u64> {
        self.field("vocab_size")?.as_u64()
    }

    /// `hidden_size`, the width of the residual stream.
    pub fn hidden_size(&self) -> Option<usize> {
        usize::try_from(self.field("hidden_size")?.as_u64()?).ok()
    }

    /// The declaration of the quantization, if there is one.
    pub fn quantization(&self) -> Option<&Declared> {
        self.quantization.as_ref()
    }

    /// A field at the top level, or otherwise in `text_config`.
    fn field(&self, key: &str) -> Option<&Value> {
        let raw = self.raw.as_ref()?;
        raw.get(key).filter(|value| !value.is_null()).or_else(|| raw.get("text_config")?.get(key))
    }
}

/// The quantization that `config.json` declares. `compression_config` is compressed-tensors' older name for it.
fn declared(config: &Value) -> Option<Declared> {
    let nested = config.get("text_config");
    let places = [config.get("quantization_config"), config.get("compression_config")];
    let nested = nested.and_then(|text| text.get("quantization_config"));
    // MLX: only where it says how, for other programs have a key of this name.
    let mlx =
        config.get("quantization").filter(|raw| raw.get("bits").is_some() && raw.get("group_size").is_some());
    let raw = places.into_iter().chain([nested, mlx]).flatten().find(|raw| !raw.is_null())?;
    Some(Declared { origin: "config.json".to_owned(), raw: raw.clone() })
}
