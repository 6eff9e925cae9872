//! Parses the names of an adapter's tensors: which weight of the base each belongs to, and its role for it.
//!
//! PEFT stores `base_model.model.<module>.lora_A.weight`. Tensors saved in other ways may lack the prefix, or keep the
//! adapter's own name (`lora_A.default.weight`), which PEFT removes when it saves and inserts when it loads.

use crate::lora::names::kind_of;

/// The prefix that PEFT puts before the base's own names.
pub(crate) const PREFIX: &str = "base_model.model.";

/// The role of a tensor for the weight it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// `lora_A` `[r, in]`.
    A,
    /// `lora_B` `[out, r]`.
    B,
    /// `lora_embedding_A` `[r, vocab]`.
    EmbeddingA,
    /// `lora_embedding_B` `[dim, r]`.
    EmbeddingB,
    /// `lora_B.bias` `[out]`.
    LoraBias,
    /// `lora_magnitude_vector`, DoRA's.
    Magnitude,
    /// A whole parameter that replaces the base's.
    Whole,
    /// An unchanged parameter of the base: PEFT's `base_layer` and `original_module`.
    Original,
    /// An unknown role.
    Unknown,
}

/// A parsed tensor name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key<'a> {
    /// The module's name in the base; for a whole parameter with the parameter's name, for example `model.norm.weight`.
    pub(crate) target: String,
    /// The tensor's role for it.
    pub(crate) part: Part,
    /// Whether the name had the [`PREFIX`].
    pub(crate) prefixed: bool,
    /// The adapter's own name, if the key still contains it, for example `default`.
    pub(crate) adapter: Option<&'a str>,
    /// What a wrapper of the model during training left in the name.
    pub(crate) wrapper: Option<&'static str>,
}

/// What `torch.compile`, FSDP and activation checkpointing put into the names of a module's parts.
const WRAPPERS: [&str; 3] = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];

/// What data parallelism puts before all names.
const PARALLEL: &str = "module";

impl Key<'_> {
    /// Parses `name`.
    pub(crate) fn of(name: &str) -> Key<'_> {
        let (mut bare, mut prefixed, mut wrapper) = (name, false, None);
        loop {
            if let Some(rest) = bare.strip_prefix(PREFIX) {
                if prefixed {
                    wrapper = Some("base_model.model");
                }
                (bare, prefixed) = (rest, true);
            } else if let Some((found, rest)) = wrapped(bare) {
                (bare, wrapper) = (rest, Some(found));
            } else {
                break;
            }
        }
        let mut parts: Vec<&str> = bare.split('.').collect();
        if let Some(found) = parts.iter().find_map(|part| WRAPPERS.into_iter().find(|known| known == part)) {
            wrapper = Some(found);
            parts.retain(|part| !WRAPPERS.contains(part));
        }
        let (target, part, adapter) = parse(&parts);
        Key { target, part, prefixed, adapter, wrapper }
    }
}

/// The wrapper at the start of a name, and the rest of it.
fn wrapped(name: &str) -> Option<(&'static str, &str)> {
    let (first, rest) = name.split_once('.')?;
    WRAPPERS.into_iter().chain([PARALLEL]).find(|known| *known == first).map(|known| (known, rest))
}

fn parse<'a>(parts: &[&'a str]) -> (String, Part, Option<&'a str>) {
    let whole = |part| (parts.join("."), part, None);
    let marked = parts.iter().rposition(|part| marker(part).is_some());
    let Some((index, found)) = marked.and_then(|index| Some((index, marker(parts[index])?))) else {
        // LoRA's relatives (LoHa, VeRA, trainable tokens) mark their tensors with words of their own.
        let foreign = |part: &&str| part.starts_with("lora_") || *part == "token_adapter";
        return whole(if parts.iter().any(foreign) { Part::Unknown } else { Part::Whole });
    };
    let (module, rest) = (parts[..index].join("."), &parts[index + 1..]);
    match (found, rest) {
        (Part::A | Part::B, ["weight"]) => (module, found, None),
        (Part::A | Part::B, [name, "weight"]) => (module, found, Some(name)),
        (Part::B, ["bias"]) => (module, Part::LoraBias, None),
        (Part::B, [name, "bias"]) => (module, Part::LoraBias, Some(name)),
        (Part::EmbeddingA | Part::EmbeddingB, []) => (module, found, None),
        (Part::EmbeddingA | Part::EmbeddingB, [name]) if *name != "weight" => (module, found, Some(name)),
        (Part::Magnitude, [] | ["weight"]) => (module, found, None),
        (Part::Magnitude, [name] | [name, "weight"]) => (module, found, Some(name)),
        (Part::Whole, [name, parameter]) => (format!("{module}.{parameter}"), found, Some(name)),
        // PEFT freezes the weight that it wraps, but its bias is trained if the config asks for it.
        (Part::Original, ["bias"]) if parts[index] == "base_layer" => {
            (format!("{module}.bias"), Part::Whole, None)
        }
        (Part::Original, [parameter]) => (format!("{module}.{parameter}"), found, None),
        _ => whole(Part::Unknown),
    }
}

fn marker(part: &str) -> Option<Part> {
    Some(match part {
        "lora_A" => Part::A,
        "lora_B" => Part::B,
        "lora_embedding_A" => Part::EmbeddingA,
        "lora_embedding_B" => Part::EmbeddingB,
        "lora_magnitude_vector" => Part::Magnitude,
        "modules_to_save" => Part::Whole,
        "base_layer" | "original_module" => Part::Original,
        _ => return None,
    })
}

/// Whether a whole parameter, for example `model.layers.0.input_layernorm.weight`, belongs to a norm: by its name, or
/// because it has only one dimension.
pub(crate) fn is_norm(parameter: &str, shape: &[usize]) -> bool {
    let module = parameter.rsplit_once('.').map_or(parameter, |(module, _)| module);
    shape.len() == 1 && parameter.ends_with(".weight") || kind_of(module).contains("norm")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> (String, Part, bool, Option<&str>) {
        let Key { target, part, prefixed, adapter, .. } = Key::of(name);
        (target, part, prefixed, adapter)
    }

    #[test]
    fn every_name_that_peft_writes_is_known() {
        let q = "model.layers.0.self_attn.q_proj";
        for (tail, target, part) in [
            ("q_proj.lora_A.weight", q, Part::A),
            ("q_proj.lora_B.weight", q, Part::B),
            ("q_proj.lora_B.bias", q, Part::LoraBias),
            ("q_proj.lora_magnitude_vector", q, Part::Magnitude),
            ("q_proj.lora_magnitude_vector.weight", q, Part::Magnitude),
            ("q_proj.bias", &format!("{q}.bias"), Part::Whole),
            ("q_proj.base_layer.weight", &format!("{q}.weight"), Part::Original),
            ("q_proj.base_layer.bias", &format!("{q}.bias"), Part::Whole),
        ] {
            let name = format!("base_model.model.model.layers.0.self_attn.{tail}");
            assert_eq!(key(&name), (target.to_owned(), part, true, None), "{name}");
        }
        let table = "base_model.model.model.embed_tokens.lora_embedding_A";
        assert_eq!(key(table), ("model.embed_tokens".into(), Part::EmbeddingA, true, None));
        let norm = "base_model.model.model.norm.weight";
        assert_eq!(key(norm), ("model.norm.weight".into(), Part::Whole, true, None));
        let experts = "base_model.model.model.layers.0.mlp.experts.base_layer.lora_A.weight";
        assert_eq!(key(experts), ("model.layers.0.mlp.experts.base_layer".into(), Part::A, true, None));
    }

    #[test]
    fn an_adapters_own_name_is_taken_out() {
        for (name, target, part) in [
            ("base_model.model.a.q_proj.lora_A.default.weight", "a.q_proj", Part::A),
            ("base_model.model.a.q_proj.lora_B.default.bias", "a.q_proj", Part::LoraBias),
            ("base_model.model.wte.lora_embedding_B.default", "wte", Part::EmbeddingB),
            ("base_model.model.a.q_proj.lora_magnitude_vector.default.weight", "a.q_proj", Part::Magnitude),
            ("base_model.model.lm_head.modules_to_save.default.weight", "lm_head.weight", Part::Whole),
        ] {
            assert_eq!(key(name), (target.to_owned(), part, true, Some("default")), "{name}");
        }
        let original = "base_model.model.lm_head.original_module.weight";
        assert_eq!(key(original), ("lm_head.weight".into(), Part::Original, true, None));
    }

    #[test]
    fn a_missing_prefix_and_foreign_words_are_seen() {
        assert_eq!(key("model.a.lora_A.weight"), ("model.a".into(), Part::A, false, None));
        for name in [
            "base_model.model.a.lora_A",
            "base_model.model.a.lora_A.x.y.weight",
            "base_model.model.a.lora_embedding_A.weight",
            "base_model.model.a.lora_diag.weight",
            "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta",
        ] {
            assert_eq!(key(name).1, Part::Unknown, "{name}");
        }
    }

    #[test]
    fn wrappers_of_training_are_taken_out() {
        let plain = "base_model.model.model.layers.0.q_proj.lora_A.weight";
        assert_eq!(Key::of(plain).wrapper, None);
        for (name, wrapper) in [
            ("base_model.model._orig_mod.model.layers.0.q_proj.lora_A.weight", "_orig_mod"),
            ("_orig_mod.base_model.model.model.layers.0.q_proj.lora_A.weight", "_orig_mod"),
            (
                "base_model.model.model.layers.0._fsdp_wrapped_module.q_proj.lora_A.weight",
                "_fsdp_wrapped_module",
            ),
            (
                "base_model.model.model.layers.0._checkpoint_wrapped_module.q_proj.lora_A.weight",
                "_checkpoint_wrapped_module",
            ),
            ("module.base_model.model.model.layers.0.q_proj.lora_A.weight", "module"),
            ("base_model.model.module.model.layers.0.q_proj.lora_A.weight", "module"),
            ("base_model.model.base_model.model.model.layers.0.q_proj.lora_A.weight", "base_model.model"),
        ] {
            let found = Key::of(name);
            assert_eq!(
                (found.target.as_str(), found.part, found.prefixed),
                ("model.layers.0.q_proj", Part::A, true)
            );
            assert_eq!(found.wrapper, Some(wrapper), "{name}");
        }
        assert_eq!(Key::of("base_model.model.a.module.lora_A.weight").target, "a.module", "not at the start");
    }

    #[test]
    fn norms_are_known_by_name_or_shape() {
        assert!(is_norm("model.layers.0.input_layernorm.weight", &[8]));
        assert!(is_norm("model.layers.0.ln_1.weight", &[8]));
        assert!(is_norm("model.norm.bias", &[8]));
        assert!(!is_norm("lm_head.weight", &[8, 4]));
        assert!(!is_norm("model.layers.0.self_attn.q_proj.bias", &[8]));
    }
}
