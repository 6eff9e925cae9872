//! What a pinned transformers does with the names in published files, from a table that was exported from it.

use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;

const TABLE: &str = include_str!("renames.tsv");

/// How the names of a class differ in files and in the model: the beginning of a name in a file, numbers as `#`, and
/// what stands there in the model. The longest that fits counts.
pub(super) type Rules = HashMap<&'static str, &'static str>;

/// What is one tensor in files and several layers in the model, or the other way round, in one class. Numbers
/// are `#`.
#[derive(Debug, Default)]
pub(super) struct ClassRules {
    pub(super) names: Rules,
    /// A matrix of a file, and the layers whose rows it holds, one after the other.
    pub(super) splits: HashMap<&'static str, Vec<&'static str>>,
    /// The same, where the model has the rows in another order: its layers are no slices of the file's matrix.
    pub(super) reordered: HashMap<&'static str, Vec<&'static str>>,
    /// A layer of a file, the layer of the model that it is a half of, and which half.
    pub(super) halves: HashMap<&'static str, (&'static str, usize)>,
}

impl ClassRules {
    /// Reads a line `from TAB to`, of which either may be several names with blanks between them; `~` stands before
    /// layers with their rows in another order.
    fn add(&mut self, from: &'static str, to: &'static str) {
        if let Some((first, second)) = from.split_once(' ') {
            self.halves.extend([(first, (to, 0)), (second, (to, 1))]);
        } else if let Some(to) = to.strip_prefix('~') {
            self.reordered.insert(from, to.split(' ').collect());
        } else if to.contains(' ') {
            self.splits.insert(from, to.split(' ').collect());
        } else {
            self.names.insert(from, to);
        }
    }
}

/// What the table knows, by class.
pub(super) struct Table {
    pub(super) classes: HashMap<&'static str, usize>,
    /// The class of a type that is taken where a config names none.
    pub(super) types: HashMap<&'static str, usize>,
    pub(super) rules: Vec<ClassRules>,
    /// Output heads that are not called `lm_head`, by class.
    pub(super) heads: HashMap<&'static str, &'static str>,
    /// Classes of which PEFT takes an adapter's keys for names in files.
    pub(super) as_files: HashSet<&'static str>,
    /// Classes named as if they generated text, which they do not.
    without_generation: HashSet<&'static str>,
    /// Classes on which PEFT takes no adapter at all.
    pub(super) refused: HashSet<&'static str>,
    /// Types with layers that are stored `[in, out]`.
    pub(super) conv1d: Vec<&'static str>,
    /// Types of which transformers turns single experts into stacks, by what PEFT does about it.
    experts: HashMap<&'static str, ExpertConversion>,
}

/// What PEFT does with an adapter of single experts where transformers 5 keeps these as stacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertConversion {
    /// It turns the config's targets and the keys.
    Config(FusedExperts),
    /// It turns the keys alone.
    Keys,
    /// Nothing: an adapter of such experts has no effect there.
    Nothing,
}

/// A family of models by the names of an expert's projections.
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

pub(super) fn table() -> &'static Table {
    static PARSED: OnceLock<Table> = OnceLock::new();
    PARSED.get_or_init(|| parse(TABLE))
}

fn parse(text: &'static str) -> Table {
    let (mut classes, mut types, mut rules) = (HashMap::new(), HashMap::new(), Vec::<ClassRules>::new());
    let (mut heads, mut conv1d, mut experts) = (HashMap::new(), Vec::new(), HashMap::new());
    let (mut as_files, mut without_generation, mut refused) =
        (HashSet::new(), HashSet::new(), HashSet::new());
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if let Some(names) = line.strip_prefix("= ") {
            rules.push(ClassRules::default());
            for (kind, class) in names.split(' ').filter_map(|name| name.split_once(':')) {
                classes.insert(class, rules.len() - 1);
                // The class that generates text, of several.
                if class.ends_with("ForConditionalGeneration") || class.ends_with("ForCausalLM") {
                    types.insert(kind, rules.len() - 1);
                } else {
                    types.entry(kind).or_insert(rules.len() - 1);
                }
            }
        } else if let Some(types) = line.strip_prefix("* ") {
            conv1d.extend(types.split(' '));
        } else if let Some(names) = line.strip_prefix("! ") {
            as_files.extend(names.split(' '));
        } else if let Some(names) = line.strip_prefix("~ ") {
            without_generation.extend(names.split(' '));
        } else if let Some(names) = line.strip_prefix("? ") {
            refused.extend(names.split(' '));
        } else if let Some((head, names)) = line.strip_prefix("% ").and_then(|line| line.split_once(' ')) {
            heads.extend(names.split(' ').map(|class| (class, head)));
        } else if let Some(names) = line.strip_prefix("@ ") {
            let mut names = names.split(' ');
            let conversion = match names.next() {
                Some("mixtral") => ExpertConversion::Config(FusedExperts::Mixtral),
                Some("qwen2_moe") => ExpertConversion::Config(FusedExperts::Qwen),
                Some("none") => ExpertConversion::Nothing,
                _ => ExpertConversion::Keys,
            };
            experts.extend(names.map(|name| (name, conversion)));
        } else if let (Some((from, to)), Some(rules)) = (line.split_once('\t'), rules.last_mut()) {
            rules.add(from, to);
        }
    }
    Table { classes, types, rules, heads, as_files, without_generation, refused, conv1d, experts }
}

/// Whether a class does not generate text, though its name says so: PEFT's wrappers for such tasks refuse it.
pub(crate) fn is_without_generation(class: &str) -> bool {
    table().without_generation.contains(class)
}

/// What PEFT does with single experts of a model of this type, where transformers keeps them as stacks.
pub(crate) fn expert_conversion(model_type: &str) -> Option<ExpertConversion> {
    table().experts.get(model_type).copied()
}

#[cfg(test)]
mod tests {
    use super::{ExpertConversion, FusedExperts, expert_conversion};

    #[test]
    fn families_of_experts() {
        assert_eq!(expert_conversion("deepseek_v3"), Some(ExpertConversion::Config(FusedExperts::Qwen)));
        assert_eq!(expert_conversion("mixtral"), Some(ExpertConversion::Config(FusedExperts::Mixtral)));
        for kind in ["jamba", "qwen2_moe"] {
            assert_eq!(expert_conversion(kind), Some(ExpertConversion::Keys), "{kind}");
        }
        for kind in ["nemotron_h", "ernie4_5_vl_moe"] {
            assert_eq!(expert_conversion(kind), Some(ExpertConversion::Nothing), "{kind}");
        }
        assert_eq!(expert_conversion("llama"), None);
    }
}
