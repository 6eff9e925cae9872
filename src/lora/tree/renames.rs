//! The names that transformers gives to the modules of a published checkpoint, from a table that was exported from it.

use std::collections::HashMap;
use std::sync::OnceLock;

use crate::checkpoint::Config;

const TABLE: &str = include_str!("renames.tsv");

/// How the names of a class differ in files and in the model: the beginning of a name in a file, numbers as `#`, and what stands
/// there in the model. The longest that fits counts.
type Rules = HashMap<&'static str, &'static str>;

/// What the table knows, by class.
struct Table {
    classes: HashMap<&'static str, usize>,
    /// The class of a type that is taken where a config names none.
    types: HashMap<&'static str, usize>,
    rules: Vec<Rules>,
    /// Types whose experts PEFT moves into stacks, by how it knows them.
    fused: HashMap<&'static str, FusedExperts>,
}

/// A family of models whose single experts transformers 5 keeps as stacks, so that PEFT rewrites an adapter's targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FusedExperts {
    /// `gate_proj`, `up_proj` and `down_proj`.
    Qwen,
    /// `w1`, `w3` and `w2`.
    Mixtral,
}

impl FusedExperts {
    /// The kinds that PEFT takes for experts wherever they are in the model: gate, up, down, router.
    pub fn kinds(self) -> [&'static str; 4] {
        match self {
            FusedExperts::Qwen => ["gate_proj", "up_proj", "down_proj", "gate"],
            FusedExperts::Mixtral => ["w1", "w3", "w2", "gate"],
        }
    }
}

fn table() -> &'static Table {
    static PARSED: OnceLock<Table> = OnceLock::new();
    PARSED.get_or_init(|| parse(TABLE))
}

fn parse(text: &'static str) -> Table {
    let (mut classes, mut types, mut rules, mut fused) =
        (HashMap::new(), HashMap::new(), Vec::<Rules>::new(), HashMap::new());
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if let Some(names) = line.strip_prefix("= ") {
            rules.push(Rules::new());
            for (kind, class) in names.split(' ').filter_map(|name| name.split_once(':')) {
                classes.insert(class, rules.len() - 1);
                // The class that generates text, of several.
                if class.ends_with("ForConditionalGeneration") || class.ends_with("ForCausalLM") {
                    types.insert(kind, rules.len() - 1);
                } else {
                    types.entry(kind).or_insert(rules.len() - 1);
                }
            }
        } else if let Some(names) = line.strip_prefix("@ ") {
            let mut names = names.split(' ');
            let family =
                if names.next() == Some("mixtral") { FusedExperts::Mixtral } else { FusedExperts::Qwen };
            fused.extend(names.map(|name| (name, family)));
        } else if let (Some((from, to)), Some(rules)) = (line.split_once('\t'), rules.last_mut()) {
            rules.insert(from, to);
        }
    }
    Table { classes, types, rules, fused }
}

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
    rules: Option<&'static Rules>,
    origin: Origin,
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
        match known {
            Some(at) => ModuleTree { rules: Some(&table.rules[*at]), origin: Origin::Table(name) },
            None => ModuleTree { rules: None, origin: Origin::Unknown },
        }
    }

    /// Where the names come from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The name of the module, or tensor, that a file calls `stored`. A name that is the model's own already stays.
    pub fn module_of(&self, stored: &str) -> String {
        self.rules.and_then(|rules| renamed(rules, stored)).unwrap_or_else(|| stored.to_owned())
    }
}

/// The family whose experts PEFT moves into stacks, of a model of this type.
pub fn fused_experts(model_type: &str) -> Option<FusedExperts> {
    table().fused.get(model_type).copied()
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

    use super::{FusedExperts, ModuleTree, Origin, fused_experts};
    use crate::checkpoint::Config;

    fn tree(class: &str, kind: &str) -> ModuleTree {
        ModuleTree::of(&Config::of(json!({"architectures": [class], "model_type": kind})))
    }

    #[test]
    fn names_of_files_become_those_of_the_model() {
        for (class, kind, stored, module) in [
            ("LlavaForConditionalGeneration", "llava", "language_model.model.layers.3.mlp.up_proj", "model.language_model.layers.3.mlp.up_proj"),
            ("LlavaForConditionalGeneration", "llava", "multi_modal_projector.linear_1", "model.multi_modal_projector.linear_1"),
            ("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl", "visual.blocks.0.attn.proj", "model.visual.blocks.0.attn.proj"),
            ("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl", "model.layers.11.self_attn.q_proj", "model.language_model.layers.11.self_attn.q_proj"),
            ("Qwen3ForCausalLM", "qwen3", "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.q_proj"),
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
    fn families_of_experts() {
        assert_eq!(fused_experts("deepseek_v3"), Some(FusedExperts::Qwen));
        assert_eq!(fused_experts("mixtral"), Some(FusedExperts::Mixtral));
        assert_eq!(fused_experts("llama"), None);
    }
}
