//! The names that transformers gives to the modules of a published checkpoint.

use std::collections::HashMap;

use crate::checkpoint::config::Config;
use crate::checkpoint::module_tree::kinds::{ModuleKind, kind_of_module};
use crate::checkpoint::module_tree::table::{ClassRules, Rules, table};

/// Where the names of a model's modules were learned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// From the table: the class.
    Table(String),
    /// The table does not know the model: modules are named as the files are.
    Unknown,
}

/// The names of one model's modules, in its files and as transformers loads it.
#[derive(Clone, Debug)]
pub struct ModuleTree {
    rules: Option<&'static ClassRules>,
    origin: Origin,
    head: &'static str,
    model_type: Option<String>,
    has_conv1d: bool,
    keyed_as_files: bool,
    refused: bool,
}

impl ModuleTree {
    /// The tree of a model with this config: by the class that the config names, else by its type.
    pub fn of(config: &Config) -> ModuleTree {
        let table = table();
        let class = config.architecture();
        let known = match class {
            Some(class) => table.classes.get(class),
            None => config.model_type().and_then(|kind| table.types.get(kind)),
        };
        let name = class.or(config.model_type()).unwrap_or_default().to_owned();
        let origin = if known.is_some() { Origin::Table(name) } else { Origin::Unknown };
        let types = [config.model_type(), config.decoder_model_type()];
        ModuleTree {
            rules: known.map(|at| &table.rules[*at]),
            origin,
            head: class.and_then(|class| table.heads.get(class)).unwrap_or(&"lm_head"),
            model_type: config.model_type().map(str::to_owned),
            keyed_as_files: class.is_some_and(|class| table.as_files.contains(class)),
            refused: class.is_some_and(|class| table.refused.contains(class)),
            has_conv1d: types.into_iter().flatten().any(|kind| table.conv1d.contains(&kind)),
        }
    }

    /// The output head by its name in files.
    pub fn head(&self) -> &'static str {
        self.head
    }

    /// Whether PEFT takes the keys of an adapter for names in files, and would rename those that are the model's.
    pub(crate) fn is_keyed_as_files(&self) -> bool {
        self.keyed_as_files
    }

    /// The name that published files have for the module that the model calls `loaded`; that itself where they do not
    /// differ.
    pub(crate) fn published_name_of(&self, loaded: &str) -> String {
        let (flat, numbers) = flat(loaded);
        let from = |(from, to): (&&str, &&str)| {
            let rest = flat.strip_prefix(*to).filter(|rest| rest.is_empty() || rest.starts_with('.'))?;
            let name = numbered(&format!("{from}{rest}"), &numbers);
            (name != loaded && self.module_of(&name) == loaded).then_some((to.len(), name))
        };
        let found = self.rules.iter().flat_map(|rules| rules.names.iter()).filter_map(from).max();
        found.map_or_else(|| loaded.to_owned(), |(_, name)| name)
    }

    /// Whether PEFT refuses every adapter of a model of this class.
    pub(crate) fn is_refused_by_peft(&self) -> bool {
        self.refused
    }

    /// Whether the model has layers whose weights lie as `[in, out]`.
    pub fn has_conv1d(&self) -> bool {
        self.has_conv1d
    }

    /// Whether the weight of the module that a file calls `stored` lies there as `[in, out]`: `Conv1D`, of GPT-2 and
    /// its kin.
    pub(crate) fn is_conv1d(&self, stored: &str) -> bool {
        self.has_conv1d && kind_of_module(stored, self.model_type.as_deref()) == Some(ModuleKind::Conv1d)
    }

    /// Where the names come from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The layers of the model whose rows the matrix that a file calls `stored` holds, one after the other.
    pub(crate) fn layers_of(&self, stored: &str) -> Option<Vec<String>> {
        self.lookup(stored, |rules| &rules.splits)
    }

    /// The same for a matrix that has the rows in another order than the model's layers.
    pub(crate) fn reordered_layers_of(&self, stored: &str) -> Option<Vec<String>> {
        self.lookup(stored, |rules| &rules.reordered)
    }

    /// The path in the model of a layer's experts, which published files call so behind `layers.`, whichever of the two
    /// layouts has what stands before.
    pub(crate) fn experts_path(&self, path: &str) -> String {
        let named = self.module_of(path);
        if named != path {
            return named;
        }
        let (flat, numbers) = flat(path);
        let parts = |name: &str| name.split_once("layers.#.").map(|(a, b)| (a.to_owned(), b.to_owned()));
        let Some((head, tail)) = parts(&flat) else { return named };
        let fits = |(from, to): (&&str, &&str)| {
            let alike =
                parts(from).is_some_and(|of| of.1 == tail) && parts(to).is_some_and(|of| of.0 == head);
            alike.then(|| numbered(to, &numbers))
        };
        let found = self.rules.into_iter().flat_map(|rules| &rules.names).filter_map(fits).min();
        found.unwrap_or(named)
    }

    /// Whether files that are published hold the rows of the layer that the model calls `loaded` in such a matrix.
    pub(crate) fn is_reordered_layer(&self, loaded: &str) -> bool {
        let Some(rules) = self.rules.filter(|rules| !rules.reordered.is_empty()) else { return false };
        let (flat, _) = flat(loaded);
        rules.reordered.values().flatten().any(|layer| *layer == flat)
    }

    fn lookup(
        &self,
        stored: &str,
        of: impl Fn(&'static ClassRules) -> &'static HashMap<&'static str, Vec<&'static str>>,
    ) -> Option<Vec<String>> {
        let known = of(self.rules?);
        if known.is_empty() {
            return None;
        }
        let (flat, numbers) = flat(stored);
        let layers = known.get(flat.as_str())?;
        Some(layers.iter().map(|layer| numbered(layer, &numbers)).collect())
    }

    /// The layer of the model that the one that a file calls `stored` is a half of, and which.
    pub(crate) fn half_of(&self, stored: &str) -> Option<(String, usize)> {
        let rules = self.rules.filter(|rules| !rules.halves.is_empty())?;
        let (flat, numbers) = flat(stored);
        let (layer, half) = rules.halves.get(flat.as_str())?;
        Some((numbered(layer, &numbers), *half))
    }

    /// The name of the module, or tensor, that a file calls `stored`. A name that is the model's own already stays. A
    /// single expert is no module of the model where that keeps stacks: loaders know it by the file's name, inside of
    /// whatever the model is in.
    pub fn module_of(&self, stored: &str) -> String {
        let named =
            self.rules.and_then(|rules| renamed(&rules.names, stored)).unwrap_or_else(|| stored.to_owned());
        if !is_single_expert(stored) {
            return named;
        }
        match (named.find("layers."), stored.find("layers.")) {
            (Some(to), Some(from)) => format!("{}{}", &named[..to], &stored[from..]),
            (Some(_), None) => named,
            _ => stored.to_owned(),
        }
    }
}

/// A name with its numbers as `#`, and the numbers.
fn flat(name: &str) -> (String, Vec<&str>) {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let numbers = name.split('.').filter(|part| is_number(part)).collect();
    let parts: Vec<&str> = name.split('.').map(|part| if is_number(part) { "#" } else { part }).collect();
    (parts.join("."), numbers)
}

/// A name of the table with its numbers in place of `#`.
fn numbered(name: &str, numbers: &[&str]) -> String {
    let mut numbers = numbers.iter().copied();
    let parts = name.split('.').map(|part| if part == "#" { numbers.next().unwrap_or(part) } else { part });
    parts.collect::<Vec<_>>().join(".")
}

/// Whether a name is that of one expert's projection, or of a tensor of it: `experts.7.up_proj`.
fn is_single_expert(name: &str) -> bool {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let mut parts = name.split('.').skip_while(|part| *part != "experts").skip(1);
    parts.next().is_some_and(is_number) && parts.next().is_some()
}

/// `stored` by the rule with the longest beginning.
fn renamed(rules: &Rules, stored: &str) -> Option<String> {
    let parts: Vec<&str> = stored.split('.').collect();
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let flat: Vec<&str> = parts.iter().map(|part| if is_number(part) { "#" } else { part }).collect();
    (1..=parts.len()).rev().find_map(|count| {
        // With its numbers as they are, else whatever they are.
        let literal = rules.get(parts[..count].join(".").as_str());
        let to = literal.or_else(|| rules.get(flat[..count].join(".").as_str()))?;
        let mut numbers = parts[..count].iter().filter(|part| is_number(part));
        let head = to.split('.').filter(|part| !part.is_empty());
        let head = head.map(|part| if part == "#" { numbers.next().copied().unwrap_or(part) } else { part });
        Some(head.chain(parts[count..].iter().copied()).collect::<Vec<_>>().join("."))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{ModuleTree, Origin};
    use crate::checkpoint::Config;

    fn tree(class: &str, kind: &str) -> ModuleTree {
        ModuleTree::of(&Config::of(json!({"architectures": [class], "model_type": kind})))
    }

    #[test]
    fn names_of_files_become_those_of_the_model() {
        for (class, kind, stored, module) in [
            (
                "LlavaForConditionalGeneration",
                "llava",
                "language_model.model.layers.3.mlp.up_proj",
                "model.language_model.layers.3.mlp.up_proj",
            ),
            (
                "LlavaForConditionalGeneration",
                "llava",
                "multi_modal_projector.linear_1",
                "model.multi_modal_projector.linear_1",
            ),
            (
                "Qwen2_5_VLForConditionalGeneration",
                "qwen2_5_vl",
                "visual.blocks.0.attn.proj",
                "model.visual.blocks.0.attn.proj",
            ),
            (
                "Qwen2_5_VLForConditionalGeneration",
                "qwen2_5_vl",
                "model.layers.11.self_attn.q_proj",
                "model.language_model.layers.11.self_attn.q_proj",
            ),
            (
                "Qwen3ForCausalLM",
                "qwen3",
                "model.layers.0.self_attn.q_proj",
                "model.layers.0.self_attn.q_proj",
            ),
            ("ANewOne", "qwen2_5_vl", "visual.blocks.0.attn.proj", "visual.blocks.0.attn.proj"),
        ] {
            let tree = tree(class, kind);
            assert_eq!(tree.module_of(stored), module, "{class}");
            assert_eq!(tree.module_of(module), module, "{class}: its own names stay");
            assert_eq!(*tree.origin() == Origin::Unknown, class == "ANewOne");
        }
        let nameless = ModuleTree::of(&Config::of(json!({"model_type": "llava"})));
        assert_eq!(nameless.module_of("vision_tower.a.b"), "model.vision_tower.a.b");
    }

    #[test]
    fn layers_that_files_hold_otherwise() {
        let nomic = tree("NomicBertModel", "nomic_bert");
        let layers = ["q", "k", "v"].map(|kind| format!("layers.7.self_attn.{kind}_proj"));
        assert_eq!(nomic.layers_of("encoder.layers.7.attn.Wqkv").unwrap(), layers);
        assert!(nomic.layers_of("encoder.layers.7.attn.out_proj").is_none());
        let kimi = tree("Kimi_K25ForConditionalGeneration", "kimi_k25");
        let whole = "vision_tower.encoder.blocks.3.wqkv";
        assert!(kimi.layers_of(whole).is_none(), "its rows are in another order");
        assert_eq!(kimi.reordered_layers_of(whole).unwrap()[1], "model.vision_tower.layers.3.attn.k_proj");
        let minimax = tree("MiniMaxM3SparseForConditionalGeneration", "minimax_m3_vl");
        let layer = "language_model.model.layers.1.block_sparse_moe.shared_experts";
        let joined = "model.language_model.layers.1.mlp.shared_experts.gate_up_proj".to_owned();
        assert_eq!(minimax.half_of(&format!("{layer}.up_proj")), Some((joined, 1)));
        for head in ["language_model.model", "model.language_model"] {
            let path = minimax.experts_path(&format!("{head}.layers.1.block_sparse_moe.experts"));
            assert_eq!(path, "model.language_model.layers.1.mlp.experts");
        }
    }

    #[test]
    fn keys_that_peft_renames_itself() {
        assert!(tree("DeepseekOcr2ForConditionalGeneration", "deepseek_ocr2").is_keyed_as_files());
        assert!(!tree("LlavaForConditionalGeneration", "llava").is_keyed_as_files());
        let ocr = tree("DeepseekOcr2ForConditionalGeneration", "deepseek_ocr2");
        let published = ocr.published_name_of("model.language_model.layers.3.self_attn.q_proj");
        assert_eq!(published, "model.layers.3.self_attn.q_proj");
        // Of a list that becomes named layers, none is taken for the language model's.
        let ernie = tree("Ernie4_5_VLMoeForConditionalGeneration", "ernie4_5_vl_moe");
        for (stored, layer) in [("0", "fc1"), ("2", "fc2"), ("3", "ln")] {
            let loaded = format!("model.resampler_model.spatial_linear.{layer}");
            assert_eq!(ernie.module_of(&format!("model.resampler_model.spatial_linear.{stored}")), loaded);
            assert_eq!(ernie.module_of(&loaded), loaded, "its own names stay");
        }
        let expert = "layers.1.mlp.text_moe.experts.down_proj.0";
        assert_eq!(ernie.module_of(&format!("model.{expert}")), format!("model.language_model.{expert}"));
        // A bias that lies beside the experts does not move them.
        let laguna = tree("LagunaForCausalLM", "laguna");
        assert_eq!(laguna.module_of("model.layers.1.mlp.experts"), "model.layers.1.mlp.experts");
    }
}
