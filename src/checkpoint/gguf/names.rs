//! Translation of GGUF metadata and tensor names to Hugging Face's.
//!
//! gguf-py's `tensor_mapping.py` and llama.cpp's `convert_hf_to_gguf.py` define the opposite direction.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::quant::expert::layout::Experts;
use crate::{Error, Result};

type Metadata = BTreeMap<String, Value>;

/// The properties that follow from a model's architecture.
#[derive(Debug)]
pub(crate) struct Family {
    architecture: String,
    /// `model_type` of the config; `None` for `llama` without experts, because llama.cpp uses that for Mistral's models
    /// as well.
    model_type: Option<&'static str>,
    /// Whether the rows of Q and K are permuted.
    permuted: bool,
    heads: Option<u64>,
    kv_heads: Option<u64>,
    /// The number of experts in a layer.
    experts: Option<u64>,
}

/// Supported architectures, and their `model_type`.
const READ: [(&str, Option<&str>); 11] = [
    ("llama", None),
    ("qwen2", Some("qwen2")),
    ("qwen3", Some("qwen3")),
    ("qwen2moe", Some("qwen2_moe")),
    ("qwen3moe", Some("qwen3_moe")),
    ("gemma2", Some("gemma2")),
    ("gemma3", Some("gemma3_text")),
    ("phi3", Some("phi3")),
    ("granite", Some("granite")),
    ("glm4", Some("glm4")),
    ("olmo2", Some("olmo2")),
];

/// The tensors outside the layers.
const OUTSIDE: [(&str, &str); 3] =
    [("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// The tensors of a layer.
const INSIDE: [(&str, &str); 16] = [
    ("attn_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("ffn_gate_inp", "mlp.gate"),
    ("ffn_gate_shexp", "mlp.shared_expert.gate_proj"),
    ("ffn_up_shexp", "mlp.shared_expert.up_proj"),
    ("ffn_down_shexp", "mlp.shared_expert.down_proj"),
    ("ffn_gate_inp_shexp", "mlp.shared_expert_gate"),
];

impl Family {
    /// The family of a model with this metadata.
    ///
    /// # Errors
    /// An unsupported architecture, by its name.
    pub(crate) fn of(metadata: &Metadata) -> Result<Family> {
        let name = metadata.get("general.architecture").and_then(Value::as_str);
        let name = name.ok_or_else(|| {
            Error::input("the file does not say its general.architecture").hint("convert the model again")
        })?;
        let Some((_, model_type)) = READ.iter().find(|(known, _)| *known == name) else {
            let known = READ.map(|(known, _)| known).join(", ");
            return Err(Error::input(format!(
                "GGUF models of the architecture '{name}' are not supported yet"
            ))
            .hint(format!(
                "give the model's original safetensors; the supported architectures are {known}"
            )));
        };
        let number = |key: &str| metadata.get(&format!("{name}.{key}")).and_then(Value::as_u64);
        let experts = number("expert_count").filter(|count| *count > 0);
        Ok(Family {
            architecture: name.to_owned(),
            // Of the models under `llama`, those with experts are Mixtral.
            model_type: model_type.or((name == "llama" && experts.is_some()).then_some("mixtral")),
            permuted: ["llama", "granite"].contains(&name),
            heads: number("attention.head_count"),
            kv_heads: number("attention.head_count_kv").or(number("attention.head_count")),
            experts,
        })
    }

    /// The modules of the `count` experts in the stack that a file calls `name`, if it is one.
    pub(crate) fn experts(&self, name: &str, count: usize) -> Option<Vec<String>> {
        let (layer, stem) = name.strip_prefix("blk.")?.strip_suffix(".weight")?.split_once('.')?;
        let stem = stem.strip_suffix("_exps")?;
        (0..count).map(|expert| self.expert(layer, stem, expert)).collect()
    }

    /// The module of one expert's projection.
    fn expert(&self, layer: &str, stem: &str, expert: usize) -> Option<String> {
        let projection = ["ffn_gate", "ffn_up", "ffn_down"].iter().position(|known| *known == stem)?;
        let model_type = self.model_type.filter(|_| self.experts.is_some())?;
        let layer: usize = layer.parse().ok()?;
        let path = format!("model.layers.{layer}.mlp.experts");
        Some(Experts::of(&[model_type], None).single(&path, expert, projection))
    }

    /// A tensor's name in Hugging Face's files, or its own name if there is none.
    pub(crate) fn name(&self, name: &str) -> String {
        self.translated(name).unwrap_or_else(|| name.to_owned())
    }

    fn translated(&self, name: &str) -> Option<String> {
        let (stem, end) = name.rsplit_once('.').filter(|(_, end)| ["weight", "bias"].contains(end))?;
        let find = |table: &[(&str, &'static str)], stem: &str| {
            table.iter().find(|(known, _)| *known == stem).map(|(_, theirs)| *theirs)
        };
        let gemma = ["gemma2", "gemma3"].contains(&self.architecture.as_str());
        if let Some(theirs) = find(&OUTSIDE, stem).filter(|_| !(gemma && stem == "output_norm")) {
            return Some(format!("{theirs}.{end}"));
        }
        let (layer, stem) = stem.strip_prefix("blk.")?.split_once('.')?;
        if layer.is_empty() || !layer.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        // Older files have experts singly.
        if let Some((stem, expert)) = stem.split_once('.') {
            return Some(format!("{}.{end}", self.expert(layer, stem, expert.parse().ok()?)?));
        }
        // A permuted bias would be compared in the wrong order. Without a partner it is reported as left out.
        if self.permuted && end == "bias" && ["attn_q", "attn_k"].contains(&stem) {
            return None;
        }
        // Gemma's norms are stored with one more than its checkpoints hold, and would be compared in the wrong place:
        // they keep llama.cpp's names.
        if gemma && stem.ends_with("_norm") {
            return None;
        }
        let own = self.own().iter().find(|(known, _)| *known == stem).map(|(_, theirs)| *theirs);
        let theirs = match (own, stem, self.permuted) {
            (Some(theirs), ..) => theirs,
            (None, "ffn_gate_inp", true) => "block_sparse_moe.gate",
            _ => find(&INSIDE, stem)?,
        };
        Some(format!("model.layers.{layer}.{theirs}.{end}"))
    }

    /// The names of the layers' tensors that differ from those of the other architectures.
    fn own(&self) -> &'static [(&'static str, &'static str)] {
        match self.architecture.as_str() {
            "phi3" => &[("attn_qkv", "self_attn.qkv_proj"), ("ffn_up", "mlp.gate_up_proj")],
            "glm4" => &[
                ("ffn_up", "mlp.gate_up_proj"),
                ("post_attention_norm", "post_self_attn_layernorm"),
                ("post_ffw_norm", "post_mlp_layernorm"),
            ],
            "olmo2" => &[
                ("post_attention_norm", "post_attention_layernorm"),
                ("post_ffw_norm", "post_feedforward_layernorm"),
            ],
            _ => &[],
        }
    }

    /// The number of rows in a head, if the `out` rows of the tensor `name` are permuted.
    ///
    /// # Errors
    /// A number of heads that is not given or does not divide the rows.
    pub(crate) fn head(&self, name: &str, out: usize) -> Result<Option<usize>> {
        let stem = name.strip_suffix(".weight").and_then(|name| name.rsplit('.').next());
        let (heads, key) = match stem {
            Some("attn_q") if self.permuted => (self.heads, "attention.head_count"),
            Some("attn_k") if self.permuted => (self.kv_heads, "attention.head_count_kv"),
            _ => return Ok(None),
        };
        let fits = |heads: &usize| (1..=out).contains(heads) && out.is_multiple_of(2 * heads);
        match heads.and_then(|heads| usize::try_from(heads).ok()).filter(fits) {
            Some(heads) => Ok(Some(out / heads)),
            None => {
                let key = format!("{}.{key}", self.architecture);
                let what = match heads {
                    Some(heads) => format!("{key} is {heads}, which does not match {out} rows"),
                    None => format!("{key} is not given"),
                };
                Err(Error::input(what).hint("convert the model again"))
            }
        }
    }

    /// The fields of a `config.json` that the metadata contains.
    pub(crate) fn config(&self, metadata: &Metadata) -> Value {
        let number = |key: &str| metadata.get(&format!("{}.{key}", self.architecture)).cloned();
        let mut config = json!({
            "hidden_size": number("embedding_length"),
            "intermediate_size": number("feed_forward_length"),
            "num_hidden_layers": number("block_count"),
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "num_experts": self.experts,
            "num_local_experts": self.experts,
            // `llama` stands for several model types: Mistral and others are stored under it too.
            "gguf_architecture": self.architecture,
        });
        if let Some(model_type) = self.model_type {
            config["model_type"] = json!(model_type);
        }
        config
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Family, Metadata};
    use crate::checkpoint::config::Config;
    use crate::checkpoint::gguf::targets::AdapterTarget;

    /// The names that adapters are written by, which llama.cpp's converter has, lead back to the modules.
    #[test]
    fn every_linear_weight_goes_there_and_back() {
        const FUSED: [&str; 4] =
            ["self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"];
        const SPLIT: [&str; 7] = [
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        ];
        const GLM: [&str; 4] = ["self_attn.q_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"];
        for (model_type, modules) in [
            ("llama", SPLIT.as_slice()),
            ("mistral", &SPLIT),
            ("granite", &SPLIT),
            ("qwen2", &SPLIT),
            ("qwen3", &SPLIT),
            ("gemma2", &SPLIT),
            ("gemma3_text", &SPLIT),
            ("phi3", &FUSED),
            ("glm4", &GLM),
            ("olmo2", &SPLIT),
        ] {
            let config =
                json!({"model_type": model_type, "num_attention_heads": 4, "tie_word_embeddings": false});
            let target = AdapterTarget::of(&Config::of(config)).unwrap();
            let architecture = target.architecture();
            let metadata = Metadata::from([
                ("general.architecture".to_owned(), json!(architecture)),
                (format!("{architecture}.attention.head_count"), Value::from(4)),
            ]);
            let family = Family::of(&metadata).unwrap();
            for module in modules {
                let module = format!("model.layers.7.{module}");
                let place = target.place(&module, 32).unwrap();
                assert_eq!(family.name(&place.name), format!("{module}.weight"), "{model_type}");
                assert_eq!(family.head(&place.name, 32).unwrap(), place.head, "{model_type}: {module}");
            }
            for (module, weight) in
                [("lm_head", "output.weight"), ("model.embed_tokens", "token_embd.weight")]
            {
                assert_eq!(target.place(module, 20).unwrap().name, weight);
                assert_eq!(family.name(weight), format!("{module}.weight"));
            }
        }
    }

    #[test]
    fn experts_have_the_names_of_their_model() {
        let family = |name: &str| {
            let count = (format!("{name}.expert_count"), json!(2));
            Family::of(&Metadata::from([("general.architecture".to_owned(), json!(name)), count])).unwrap()
        };
        let [qwen, llama] = ["qwen3moe", "llama"].map(family);
        let names = ["model.layers.3.mlp.experts.0.up_proj", "model.layers.3.mlp.experts.1.up_proj"];
        assert_eq!(qwen.experts("blk.3.ffn_up_exps.weight", 2).unwrap(), names);
        let names =
            ["model.layers.3.block_sparse_moe.experts.0.w2", "model.layers.3.block_sparse_moe.experts.1.w2"];
        assert_eq!(llama.experts("blk.3.ffn_down_exps.weight", 2).unwrap(), names);
        assert_eq!(llama.name("blk.3.ffn_down.1.weight"), format!("{}.weight", names[1]));
        assert_eq!(llama.config(&Metadata::new())["model_type"], "mixtral");
        assert!(qwen.experts("blk.3.attn_q.weight", 2).is_none());
    }

    #[test]
    fn norms_of_gemma_are_not_taken_for_those_of_its_checkpoints() {
        let family = |name: &str| {
            Family::of(&Metadata::from([("general.architecture".to_owned(), json!(name))])).unwrap()
        };
        for norm in ["blk.0.attn_norm.weight", "blk.0.attn_q_norm.weight", "output_norm.weight"] {
            assert_eq!(family("gemma3").name(norm), norm);
        }
        let glm = "model.layers.0.post_self_attn_layernorm.weight";
        assert_eq!(family("glm4").name("blk.0.post_attention_norm.weight"), glm);
        assert_eq!(family("glm4").name("output_norm.weight"), "model.norm.weight");
    }
}
