//! The supported architectures, by `model_type`.

use serde_json::Value;

use super::{Names, Rotary};
use crate::checkpoint::Checkpoint;
use crate::{Error, Result};

/// The activation of an MLP's gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activation {
    /// x · sigmoid(x).
    Silu,
    /// GELU in its tanh approximation.
    GeluTanh,
}

/// The arrangement of norms in a layer, and the meaning of their weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NormStyle {
    /// One norm before attention and one before the MLP; the weight is a factor.
    Plain,
    /// Gemma's: norms before and after both parts; the factor is 1 + weight.
    Sandwich,
}

/// A mixture of experts in place of an MLP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mixture {
    /// Number of experts in a layer.
    pub experts: usize,
    /// Number of experts per token.
    pub per_token: usize,
    /// Whether the chosen experts' probabilities are scaled to a sum of one.
    pub normalized: bool,
    /// For each layer, whether it has experts.
    pub layers: Vec<bool>,
}

/// A decoder's architecture.
#[derive(Clone, Debug)]
pub struct Decoder {
    /// `model_type` of the text model.
    pub model_type: String,
    /// Number of layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Number of tokens in the vocabulary.
    pub vocabulary: usize,
    /// Added to the mean square in every norm.
    pub eps: f64,
    /// The factor of the scores before the softmax.
    pub attention_scale: f32,
    /// The soft cap of the scores, if set.
    pub attention_cap: Option<f32>,
    /// The soft cap of the logits, if set.
    pub logit_cap: Option<f32>,
    /// The factor of the embedding.
    pub embedding_scale: f32,
    /// The MLP's activation.
    pub activation: Activation,
    /// The arrangement of the norms.
    pub norms: NormStyle,
    /// For each layer, how many tokens back (including itself) a token sees; `None` for all.
    pub windows: Vec<Option<usize>>,
    /// For each layer, its rotary frequencies.
    pub rotary: Vec<Rotary>,
    /// The experts, if the model has them.
    pub mixture: Option<Mixture>,
    /// The modules' names.
    pub names: Names,
}

/// The supported models, by `model_type`.
pub const READ: [&str; 10] =
    ["llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "mixtral", "gemma2", "gemma3_text", "gemma3", "phi3"];

/// What there is one thing in memory of for each.
const COUNTS: [&str; 5] =
    ["num_hidden_layers", "num_experts", "num_local_experts", "num_attention_heads", "num_key_value_heads"];

/// The most of them: no model has a tenth.
const MOST_COUNTED: u64 = 16_384;

/// The largest width of a layer or a head.
const MOST_WIDE: u64 = 1 << 24;

impl Decoder {
    /// Reads the architecture of a checkpoint.
    ///
    /// # Errors
    /// A model that is not supported, by name; a config that lacks a required number, or has an impossible one.
    pub fn of(checkpoint: &Checkpoint) -> Result<Decoder> {
        let config = Fields::of(checkpoint)?;
        let model_type = config.model_type.clone();
        let gemma = model_type.starts_with("gemma");
        let (layers, hidden) = (config.size("num_hidden_layers")?, config.size("hidden_size")?);
        let heads = config.size("num_attention_heads")?;
        let head_dim = match config.optional("head_dim") {
            Some(_) => config.size("head_dim")?,
            None if gemma => 256,
            None if model_type == "qwen3" => 128,
            None => hidden / heads,
        };
        let kv_heads = config
            .optional("num_key_value_heads")
            .map_or(Ok(heads), |_| config.size("num_key_value_heads"))?;
        if !heads.is_multiple_of(kv_heads) || !head_dim.is_multiple_of(2) {
            return Err(
                config.wrong(&format!("{heads} heads of {head_dim} share {kv_heads} keys and values"))
            );
        }
        let scalar = config.number("query_pre_attn_scalar").filter(|_| gemma).unwrap_or(head_dim as f64);
        let cap = |key| config.number(key).map(|cap| cap as f32);
        let types = config.layer_types(layers)?;
        Ok(Decoder {
            layers,
            hidden,
            heads,
            kv_heads,
            head_dim,
            vocabulary: config.size("vocab_size")?,
            eps: config.number("rms_norm_eps").unwrap_or(1e-6),
            attention_scale: scalar.powf(-0.5) as f32,
            attention_cap: cap("attn_logit_softcapping"),
            logit_cap: cap("final_logit_softcapping"),
            embedding_scale: if gemma { (hidden as f32).sqrt() } else { 1.0 },
            activation: config.activation()?,
            norms: if gemma { NormStyle::Sandwich } else { NormStyle::Plain },
            windows: config.windows(&types)?,
            rotary: types
                .iter()
                .map(|sliding| Rotary::of(&config, head_dim, *sliding))
                .collect::<Result<_>>()?,
            mixture: config.mixture(layers)?,
            names: Names::of(checkpoint, model_type == "mixtral")?,
            model_type,
        })
    }

    /// Whether a layer has experts.
    pub fn has_experts(&self, layer: usize) -> bool {
        self.mixture.as_ref().is_some_and(|mixture| mixture.layers[layer])
    }
}

/// The fields of a `config.json`, those of the text model first.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    text: &'a Value,
    top: &'a Value,
    pub model_type: String,
    place: std::path::PathBuf,
}

impl<'a> Fields<'a> {
    fn of(checkpoint: &'a Checkpoint) -> Result<Fields<'a>> {
        let place = checkpoint.root().to_owned();
        let missing = |what: &str| {
            Error::input(what)
                .path(&place)
                .hint("give a folder in the Hugging Face layout, with its whole config.json")
        };
        let top = checkpoint.config().raw().ok_or_else(|| missing("the model has no config.json"))?;
        let text = top.get("text_config").filter(|text| text.is_object()).unwrap_or(top);
        let named = text.get("model_type").or_else(|| top.get("model_type")).and_then(Value::as_str);
        let model_type = named.ok_or_else(|| missing("the config has no model_type"))?.to_owned();
        if !READ.contains(&model_type.as_str()) {
            let hint = format!(
                "supported types: {}; for another model, scripts/calibrate.py writes the same calibration with transformers",
                READ.join(", ")
            );
            return Err(Error::input(format!("models of type '{model_type}' are not supported"))
                .path(&place)
                .hint(hint));
        }
        Ok(Fields { text, top, model_type, place })
    }

    pub fn optional(&self, key: &str) -> Option<&'a Value> {
        let field = |config: &'a Value| config.get(key).filter(|value| !value.is_null());
        field(self.text).or_else(|| field(self.top))
    }

    pub fn number(&self, key: &str) -> Option<f64> {
        self.optional(key)?.as_f64()
    }

    /// A whole number above zero.
    pub fn size(&self, key: &str) -> Result<usize> {
        let most = match key {
            "vocab_size" => 1 << 32,
            key if COUNTS.contains(&key) => MOST_COUNTED,
            _ => MOST_WIDE,
        };
        let value = self.optional(key).and_then(Value::as_u64).filter(|&size| size > 0 && size <= most);
        value.map(|size| size as usize).ok_or_else(|| self.wrong(&format!("no usable '{key}'")))
    }

    pub fn wrong(&self, what: &str) -> Error {
        Error::input(format!("the model's config cannot be used: {what}"))
            .path(self.place.join("config.json"))
            .hint("download the model's config again")
    }

    fn activation(&self) -> Result<Activation> {
        let name = ["hidden_activation", "hidden_act"].iter().find_map(|key| self.optional(key)?.as_str());
        match name.unwrap_or("silu") {
            "silu" | "swish" => Ok(Activation::Silu),
            "gelu_pytorch_tanh" | "gelu_new" => Ok(Activation::GeluTanh),
            // Gemma's first configs say `gelu` but mean the approximation, which is what transformers 5 computes.
            "gelu" if self.model_type.starts_with("gemma") => Ok(Activation::GeluTanh),
            other => Err(self.wrong(&format!("unknown activation '{other}'"))),
        }
    }

    /// For each layer, whether it has a sliding window.
    fn layer_types(&self, layers: usize) -> Result<Vec<bool>> {
        if let Some(types) = self.optional("layer_types").and_then(Value::as_array) {
            let sliding: Vec<bool> =
                types.iter().map(|kind| kind.as_str() == Some("sliding_attention")).collect();
            return if sliding.len() == layers {
                Ok(sliding)
            } else {
                Err(self.wrong(&format!("{} layer_types for {layers} layers", sliding.len())))
            };
        }
        let number = |key| self.optional(key).and_then(Value::as_u64);
        let rule = |layer: usize| match self.model_type.as_str() {
            "gemma2" => layer.is_multiple_of(2),
            "gemma3" | "gemma3_text" => {
                !(layer as u64 + 1).is_multiple_of(number("sliding_window_pattern").unwrap_or(6).max(1))
            }
            "qwen2" | "qwen3" => layer as u64 >= number("max_window_layers").unwrap_or(28),
            _ => true,
        };
        Ok((0..layers).map(rule).collect())
    }

    fn windows(&self, types: &[bool]) -> Result<Vec<Option<usize>>> {
        let asked = self.optional("use_sliding_window").and_then(Value::as_bool);
        let qwen = self.model_type.starts_with("qwen");
        let window = match self.optional("sliding_window") {
            Some(_) if !qwen || asked == Some(true) => Some(self.size("sliding_window")?),
            None if self.model_type.starts_with("gemma") => Some(4096),
            _ => None,
        };
        Ok(types.iter().map(|sliding| window.filter(|_| *sliding)).collect())
    }

    fn mixture(&self, layers: usize) -> Result<Option<Mixture>> {
        let whole = |key: &str, default: u64| self.optional(key).and_then(Value::as_u64).unwrap_or(default);
        let (experts, normalized) = match self.model_type.as_str() {
            "mixtral" => (self.size("num_local_experts")?, true),
            "qwen3_moe" => {
                let experts = self.size("num_experts").or_else(|_| self.size("num_local_experts"))?;
                (experts, self.optional("norm_topk_prob").and_then(Value::as_bool).unwrap_or(false))
            }
            _ => return Ok(None),
        };
        let per_token = self.size("num_experts_per_tok")?;
        if per_token > experts {
            return Err(self.wrong(&format!("{per_token} of {experts} experts for a token")));
        }
        let dense = self.optional("mlp_only_layers").and_then(Value::as_array).cloned().unwrap_or_default();
        let step = whole("decoder_sparse_step", 1).max(1);
        let has = |layer: usize| {
            let listed = dense.iter().any(|index| index.as_u64() == Some(layer as u64));
            self.model_type == "mixtral" || (!listed && (layer as u64 + 1).is_multiple_of(step))
        };
        Ok(Some(Mixture { experts, per_token, normalized, layers: (0..layers).map(has).collect() }))
    }
}
