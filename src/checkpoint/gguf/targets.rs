//! The names and the order of rows that llama.cpp's converter gives to a model's linear weights, for adapters.
//!
//! llama.cpp's `conversion/` and gguf-py's `tensor_mapping.py` define them; `scripts/fixtures_gguf_lora.py` runs the
//! converter on every architecture here.

use crate::checkpoint::config::Config;
use crate::shared::number_in_name;
use crate::{Error, Result};

/// One architecture: `model_type` of the config, the name in a GGUF file, and whether the rows of Q and K are permuted.
const ARCHITECTURES: [(&str, &str, bool); 10] = [
    ("llama", "llama", true),
    ("mistral", "llama", true),
    ("granite", "granite", true),
    ("qwen2", "qwen2", false),
    ("qwen3", "qwen3", false),
    ("gemma2", "gemma2", false),
    ("gemma3_text", "gemma3", false),
    ("phi3", "phi3", false),
    ("glm4", "glm4", false),
    ("olmo2", "olmo2", false),
];

/// The linear weights of a layer.
const INSIDE: [(&str, &str); 9] = [
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.gate_up_proj", "ffn_up"),
];

/// What is known of a base for an adapter in GGUF.
#[derive(Debug)]
pub(crate) struct AdapterTarget {
    architecture: &'static str,
    permuted: bool,
    heads: Option<usize>,
    kv_heads: Option<usize>,
    tied: bool,
}

/// Where the factors of a module go.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The weight's name, without `.lora_a`.
    pub(crate) name: String,
    /// The rows of a head, where rows are permuted.
    pub(crate) head: Option<usize>,
}

impl AdapterTarget {
    /// The target for a base with this config.
    ///
    /// # Errors
    /// A model whose names are not known, by its `model_type`.
    pub(crate) fn of(config: &Config) -> Result<AdapterTarget> {
        let model_type = config.model_type().unwrap_or("no model_type");
        let Some((_, architecture, permuted)) = ARCHITECTURES.iter().find(|(known, ..)| *known == model_type)
        else {
            let known: Vec<&str> = ARCHITECTURES.iter().map(|(known, ..)| *known).collect();
            return Err(Error::input(format!(
                "adapters in GGUF are not supported for models of type '{model_type}' yet"
            ))
            .hint(format!(
                "llama.cpp's convert_lora_to_gguf.py may know it; here are known: {}",
                known.join(", ")
            )));
        };
        let number = |key: &str| config.raw()?.get(key)?.as_u64().and_then(|n| usize::try_from(n).ok());
        let heads = number("num_attention_heads");
        Ok(AdapterTarget {
            architecture,
            permuted: *permuted,
            heads,
            kv_heads: number("num_key_value_heads").or(heads),
            tied: config.tie_word_embeddings(),
        })
    }

    /// `general.architecture`.
    pub(crate) fn architecture(&self) -> &'static str {
        self.architecture
    }

    /// The place of a module with `out` rows.
    ///
    /// # Errors
    /// A module that llama.cpp has no LoRA for, or whose rows do not fit the number of heads.
    pub(crate) fn place(&self, module: &str, out: usize) -> Result<Place> {
        let refuse = |what: String, hint: &'static str| Err(Error::input(what).tensor(module).hint(hint));
        let plain = |name: String| Ok(Place { name, head: None });
        if matches!(module, "lm_head" | "model.embed_tokens") {
            if self.tied {
                let what = "llama.cpp takes no LoRA on a head or embedding that are tied in the base";
                return refuse(
                    what.to_owned(),
                    "`trephine sanitize --for llama.cpp --base` leaves it out, with its norm",
                );
            }
            return plain(if module == "lm_head" { "output.weight" } else { "token_embd.weight" }.to_owned());
        }
        let inside = module.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
        let known = inside.and_then(|(layer, stem)| {
            let (_, theirs) = INSIDE.iter().find(|(ours, _)| *ours == stem)?;
            Some((number_in_name(layer)?, *theirs))
        });
        let Some((layer, theirs)) = known else {
            let what = "llama.cpp's name for this module is not known here".to_owned();
            return refuse(what, "experts and other parts are not written yet: use convert_lora_to_gguf.py");
        };
        let name = format!("blk.{layer}.{theirs}.weight");
        let heads = match theirs {
            "attn_q" if self.permuted => self.heads,
            "attn_k" if self.permuted => self.kv_heads,
            _ => return plain(name),
        };
        match heads.filter(|heads| (1..=out).contains(heads) && out.is_multiple_of(2 * heads)) {
            Some(heads) => Ok(Place { name, head: Some(out / heads) }),
            None => refuse(
                match heads {
                    Some(heads) => format!("{heads} heads do not divide the {out} rows of this module"),
                    None => "the base's config does not say its number of heads".to_owned(),
                },
                "check that the base's config belongs to the adapter",
            ),
        }
    }
}

/// Puts rows of `width` bytes into llama.cpp's order: in each head, row `j + k * head / 2` becomes row `2 j + k`.
pub(crate) fn permute_rows(bytes: &[u8], width: usize, head: usize) -> Vec<u8> {
    let mut permuted = Vec::with_capacity(bytes.len());
    for block in bytes.chunks_exact((head * width).max(1)) {
        for row in 0..head {
            let from = row / 2 + row % 2 * (head / 2);
            permuted.extend_from_slice(&block[from * width..(from + 1) * width]);
        }
    }
    permuted
}

#[cfg(test)]
mod tests {
    use super::permute_rows;

    #[test]
    fn halves_of_a_head_become_neighbours() {
        assert_eq!(permute_rows(&[0, 1, 2, 3, 10, 11, 12, 13], 1, 4), [0, 2, 1, 3, 10, 12, 11, 13]);
    }
}
