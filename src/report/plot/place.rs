//! A module's place in the model: its layer and its kind.

use crate::commands::extract::plan::kind;
use crate::lora::names::place_of;
use crate::report::words::clean;

/// A row and a column in a map of the model.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Spot {
    /// The layer; `None` for modules outside all layers.
    pub layer: Option<usize>,
    /// The kind, for example `q_proj`, safe to show.
    pub kind: String,
}

impl Spot {
    /// The place of a module, from its name without `.weight`: the first number in it is the layer. Kinds of a vision
    /// tower are distinct from those of the language model, whose layers are numbered separately.
    pub fn of(module: &str) -> Spot {
        let mut parts = module.split('.');
        let layer = parts.find_map(|part| part.parse().ok());
        let kind = kind(module, place_of(module));
        let vision = module.split('.').any(|part| part.starts_with("visual") || part.starts_with("vision"));
        let kind = match kind.as_str() {
            "" => "(no name)".to_owned(),
            kind if vision => format!("vision {kind}"),
            _ => kind,
        };
        Spot { layer, kind: clean(&kind) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_and_kinds_follow_from_names() {
        let spot = |name: &str| (Spot::of(name).layer, Spot::of(name).kind);
        assert_eq!(spot("model.layers.7.self_attn.q_proj"), (Some(7), "q_proj".into()));
        assert_eq!(spot("model.layers.3.mlp.experts.127.down_proj"), (Some(3), "experts.down_proj".into()));
        let stacked = "model.layers.3.mlp.experts.down_proj.127";
        assert_eq!(spot(stacked), (Some(3), "experts.down_proj".into()));
        assert_eq!(spot("model.visual.blocks.2.attn.qkv"), (Some(2), "vision qkv".into()));
        assert_eq!(spot("model.embed_tokens"), (None, "embeddings".into()));
        assert_eq!(spot("lm_head"), (None, "lm_head".into()));
        assert_eq!(spot("model.layers.1."), (Some(1), "(no name)".into()));
    }
}
