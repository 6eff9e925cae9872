//! What a decoder's modules are called in a checkpoint.

use crate::checkpoint::Checkpoint;
use crate::{Error, Result};

/// The names of a decoder's modules.
#[derive(Clone, Debug)]
pub struct Names {
    /// The prefix of `layers.`, `embed_tokens` and `norm`.
    prefix: String,
    /// The output head, or the embedding if the two are tied.
    head: String,
    mixtral: bool,
}

impl Names {
    /// The names in this checkpoint.
    ///
    /// # Errors
    /// The checkpoint has no input embedding or no output head.
    pub(super) fn of(checkpoint: &Checkpoint, mixtral: bool) -> Result<Names> {
        let missing = |what: &str| Error::input(what).path(checkpoint.root()).hint("give the whole model");
        let embedding =
            checkpoint.input_embedding().ok_or_else(|| missing("the model has no input embedding"))?.name();
        let prefix = embedding.strip_suffix("embed_tokens").unwrap_or_default().to_owned();
        // With the prefixes `model.language_model.` and `language_model.model.`, the head is beside or above the inner
        // model.
        let outer = prefix.strip_suffix("model.").unwrap_or(&prefix);
        let heads = [format!("{outer}lm_head"), "lm_head".to_owned()];
        let head = heads.into_iter().find(|name| checkpoint.module(name).is_some());
        let head = head.ok_or_else(|| missing("the model has no output head"))?;
        Ok(Names { prefix, head, mixtral })
    }

    /// The input embedding.
    pub fn embedding(&self) -> String {
        format!("{}embed_tokens", self.prefix)
    }

    /// The norm before the head.
    pub fn last_norm(&self) -> String {
        format!("{}norm", self.prefix)
    }

    /// The output head.
    pub fn head(&self) -> &str {
        &self.head
    }

    /// A module of a layer, such as `self_attn.q_proj`.
    pub fn inside(&self, layer: usize, module: &str) -> String {
        format!("{}layers.{layer}.{module}", self.prefix)
    }

    /// The router of a layer's experts.
    pub fn router(&self, layer: usize) -> String {
        self.inside(layer, if self.mixtral { "block_sparse_moe.gate" } else { "mlp.gate" })
    }

    /// Gate, up and down of one expert.
    pub fn expert(&self, layer: usize, expert: usize) -> [String; 3] {
        let (path, parts) = if self.mixtral {
            ("block_sparse_moe", ["w1", "w3", "w2"])
        } else {
            ("mlp", ["gate_proj", "up_proj", "down_proj"])
        };
        parts.map(|part| self.inside(layer, &format!("{path}.experts.{expert}.{part}")))
    }
}
