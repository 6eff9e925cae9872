//! Which tensor names PEFT gives to the factors of a module, and which modules go together.

use serde::{Deserialize, Serialize};

/// What a module is to a LoRA. It decides the names and the orientation of its factors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// A linear layer: `lora_A.weight` `[r, in]`, `lora_B.weight` `[out, r]`.
    Linear,
    /// An input embedding `[vocab, dim]`: `lora_embedding_A` `[r, vocab]`, `lora_embedding_B` `[dim, r]`.
    Embedding,
    /// The output head, a linear layer `[vocab, dim]` that is only extracted when asked for.
    Head,
    /// The router of a mixture of experts: linear in form, but no program serves a LoRA on it.
    Router,
    /// A table of positions.
    Positions,
}

impl Place {
    /// Whether it is extracted when no `--include` is given.
    pub fn by_default(self) -> bool {
        self == Place::Linear
    }

    /// Whether its rows are tokens.
    pub fn is_vocabulary(self) -> bool {
        matches!(self, Place::Embedding | Place::Head)
    }
}

/// The last part of a module's name, as `q_proj`: the field's word for a kind of module.
pub fn kind_of(module: &str) -> &str {
    module.rsplit('.').next().unwrap_or(module)
}

/// What `module` (its name without `.weight`) is, by the names that published architectures use.
pub fn place_of(module: &str) -> Place {
    let kind = kind_of(module);
    match kind {
        "embed_tokens" | "wte" | "word_embeddings" | "tok_embeddings" | "embed_in" | "embeddings" => {
            Place::Embedding
        }
        "lm_head" | "embed_out" | "output_layer" => Place::Head,
        "output" if !module.contains('.') || module.ends_with("model.output") => Place::Head,
        "gate" | "router" | "shared_expert_gate" => Place::Router,
        "wpe" | "pos_embed" | "embed_positions" | "relative_attention_bias" => Place::Positions,
        _ if kind.contains("position_embedding") || kind.contains("token_type_embedding") => Place::Positions,
        _ if module.ends_with("router.classifier") => Place::Router,
        _ => Place::Linear,
    }
}

/// The names of one module's two tensors in an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    /// `lora_A`, or `lora_embedding_A`.
    pub a: String,
    /// `lora_B`, or `lora_embedding_B`.
    pub b: String,
}

impl Keys {
    /// PEFT's names for `module`, as named in the base.
    pub fn of(module: &str, place: Place) -> Keys {
        let stem = format!("base_model.model.{module}");
        match place {
            Place::Embedding => {
                Keys { a: format!("{stem}.lora_embedding_A"), b: format!("{stem}.lora_embedding_B") }
            }
            _ => Keys { a: format!("{stem}.lora_A.weight"), b: format!("{stem}.lora_B.weight") },
        }
    }
}

/// The modules that servers fuse with `module` into one product (`q`, `k`, `v`; `gate`, `up`), itself left out.
/// Some loaders fail where an adapter holds a part of such a set.
pub fn fused_siblings(module: &str) -> Vec<String> {
    const FUSED: [&[&str]; 2] = [&["q_proj", "k_proj", "v_proj"], &["gate_proj", "up_proj"]];
    let kind = kind_of(module);
    let stem = &module[..module.len() - kind.len()];
    FUSED
        .iter()
        .filter(|set| set.contains(&kind))
        .flat_map(|set| set.iter())
        .filter(|&&other| other != kind)
        .map(|other| format!("{stem}{other}"))
        .collect()
}

/// A module that is a projection of one expert, as `model.layers.0.mlp.experts.7.up_proj`: what all experts of the layer have
/// before their number (`model.layers.0.mlp.experts`), the number, the projection.
pub fn expert_of(module: &str) -> Option<(&str, usize, &str)> {
    let (rest, projection) = module.rsplit_once('.')?;
    let (layer, expert) = rest.rsplit_once('.')?;
    let inside = layer == "experts" || layer.ends_with(".experts");
    Some((layer, expert.parse().ok().filter(|_| inside)?, projection))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_follow_published_names() {
        for (name, place) in [
            ("model.layers.0.self_attn.q_proj", Place::Linear),
            ("model.layers.0.mlp.gate_proj", Place::Linear),
            ("model.layers.0.mlp.gate", Place::Router),
            ("model.layers.0.block_sparse_moe.gate", Place::Router),
            ("model.layers.0.mlp.shared_expert_gate", Place::Router),
            ("model.embed_tokens", Place::Embedding),
            ("transformer.wpe", Place::Positions),
            ("bert.embeddings.position_embeddings", Place::Positions),
            ("lm_head", Place::Head),
            ("model.layers.3.attention.output", Place::Linear),
        ] {
            assert_eq!(place_of(name), place, "{name}");
        }
    }

    #[test]
    fn keys_are_pefts() {
        let linear = Keys::of("model.layers.0.self_attn.q_proj", Place::Linear);
        assert_eq!(linear.a, "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight");
        assert_eq!(linear.b, "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight");
        let table = Keys::of("model.embed_tokens", Place::Embedding);
        assert_eq!(table.a, "base_model.model.model.embed_tokens.lora_embedding_A");
    }

    #[test]
    fn fused_sets_are_complete_and_local() {
        assert_eq!(fused_siblings("l.0.attn.k_proj"), ["l.0.attn.q_proj", "l.0.attn.v_proj"]);
        assert_eq!(fused_siblings("l.0.mlp.up_proj"), ["l.0.mlp.gate_proj"]);
        assert!(fused_siblings("l.0.mlp.down_proj").is_empty());
    }

    #[test]
    fn an_expert_has_a_number() {
        assert_eq!(expert_of("l.0.mlp.experts.12.up_proj"), Some(("l.0.mlp.experts", 12, "up_proj")));
        for name in
            ["l.0.mlp.experts", "l.0.mlp.up_proj", "l.0.mlp.shared_experts.up_proj", "x.experts.up_proj.1"]
        {
            assert_eq!(expert_of(name), None, "{name}");
        }
    }
}
