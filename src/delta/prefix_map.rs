//! Names that differ by a prefix, for example `model.layers.0` and `model.language_model.layers.0`.

use std::collections::{BTreeMap, BTreeSet};

use crate::checkpoint::module_tree::ModuleTree;
use crate::checkpoint::{Checkpoint, Module, Tensor};

/// The mapping from names in the base to names in the tuned checkpoint.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Renaming {
    /// The prefix of names in the base.
    pub base: String,
    /// The prefix in the tuned checkpoint instead.
    pub tuned: String,
    /// Names in the base, and those of the same module or tensor in the tuned checkpoint, where the two are stored in
    /// different layouts of one model: as it is published, and as it is in memory.
    pub modules: BTreeMap<String, String>,
    /// The partners in `modules`, which belong to no other name: a tower's layer is not paired by its prefix with the
    /// language model's.
    partners: BTreeSet<String>,
}

impl Renaming {
    /// The names under which the tuned checkpoint may have `name`, best first.
    pub fn candidates(&self, name: &str) -> Vec<String> {
        let mut names = Vec::with_capacity(4);
        names.extend(self.modules.get(name).cloned());
        if let Some(rest) = name.strip_prefix(&self.base).filter(|_| self.base != self.tuned) {
            names.push(format!("{}{rest}", self.tuned));
        }
        names.push(name.to_owned());
        // The head is outside the inner model: `lm_head` and `language_model.lm_head`.
        let outer = |prefix: &str| prefix.strip_suffix("model.").map(str::to_owned);
        if let (Some(base), Some(tuned)) = (outer(&self.base), outer(&self.tuned))
            && let Some(rest) = name.strip_prefix(&base)
        {
            names.push(format!("{tuned}{rest}"));
        }
        let own = self.modules.get(name);
        names.retain(|other| other == name || own == Some(other) || !self.partners.contains(other));
        names
    }

    /// The mapping that pairs the most modules: by what both are in the model, and by two prefixes before `layers.`.
    pub fn detect(base: &Checkpoint, tuned: &Checkpoint) -> Renaming {
        let modules = by_modules(base, tuned);
        let matches = |names: &Renaming| {
            let same = |name: &str, shape| {
                names.candidates(name).iter().any(|n| tuned.module(n).is_some_and(|m| m.shape() == shape))
            };
            base.modules().filter(|module| same(module.name(), module.shape())).count()
        };
        let partners: BTreeSet<String> = modules.values().cloned().collect();
        let plain = Renaming { modules, partners, ..Renaming::default() };
        let mut best = (matches(&plain), plain.clone());
        for base_prefix in prefixes(base) {
            for tuned_prefix in prefixes(tuned).into_iter().filter(|p| *p != base_prefix) {
                let names = Renaming { base: base_prefix.clone(), tuned: tuned_prefix, ..plain.clone() };
                let count = matches(&names);
                if count > best.0 {
                    best = (count, names);
                }
            }
        }
        best.1
    }
}

/// Names in the base that the tuned checkpoint does not have, with the name there of what is the same in the model.
fn by_modules(base: &Checkpoint, tuned: &Checkpoint) -> BTreeMap<String, String> {
    let lone: BTreeSet<&str> = stored_names(base).filter(|name| !tuned.stores(name)).collect();
    if lone.is_empty() {
        return BTreeMap::new();
    }
    let [our_tree, their_tree] = [base, tuned].map(|checkpoint| ModuleTree::of(checkpoint.config()));
    let theirs: BTreeSet<&str> = stored_names(tuned).collect();
    let by_module: BTreeMap<String, &str> =
        theirs.into_iter().map(|name| (their_tree.module_of(name), name)).collect();
    let partner =
        |name: &str| Some((name.to_owned(), (*by_module.get(&our_tree.module_of(name))?).to_owned()));
    lone.into_iter().filter_map(partner).collect()
}

/// The names of its modules and tensors.
fn stored_names(checkpoint: &Checkpoint) -> impl Iterator<Item = &str> {
    checkpoint.modules().map(Module::name).chain(checkpoint.tensors().map(Tensor::name))
}

fn prefixes(checkpoint: &Checkpoint) -> BTreeSet<String> {
    let before_layers = |name: &str| {
        let at = if name.starts_with("layers.") { Some(0) } else { name.find(".layers.").map(|at| at + 1) };
        at.map(|at| name[..at].to_owned())
    };
    checkpoint.modules().filter_map(|module| before_layers(module.name())).collect()
}
