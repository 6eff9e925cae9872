//! Names that differ by a prefix, for example `model.layers.0` and `model.language_model.layers.0`.

use std::collections::BTreeSet;

use crate::checkpoint::Checkpoint;

/// The mapping from names in the base to names in the tuned checkpoint.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Renaming {
    /// The prefix of names in the base.
    pub base: String,
    /// The prefix in the tuned checkpoint instead.
    pub tuned: String,
}

impl Renaming {
    /// The names under which the tuned checkpoint may have `name`, best first.
    pub fn candidates(&self, name: &str) -> Vec<String> {
        let mut names = Vec::with_capacity(3);
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
        names
    }

    /// The two prefixes before `layers.` that pair the most modules; `None` if the names pair best unchanged.
    pub fn detect(base: &Checkpoint, tuned: &Checkpoint) -> Option<Renaming> {
        let matches = |names: &Renaming| {
            let same = |name: &str, shape| {
                names.candidates(name).iter().any(|n| tuned.module(n).is_some_and(|m| m.shape() == shape))
            };
            base.modules().filter(|module| same(module.name(), module.shape())).count()
        };
        let plain = matches(&Renaming::default());
        let mut best = (plain, None);
        for base_prefix in prefixes(base) {
            for tuned_prefix in prefixes(tuned).into_iter().filter(|p| *p != base_prefix) {
                let names = Renaming { base: base_prefix.clone(), tuned: tuned_prefix };
                let count = matches(&names);
                if count > best.0 {
                    best = (count, Some(names));
                }
            }
        }
        best.1
    }
}

fn prefixes(checkpoint: &Checkpoint) -> BTreeSet<String> {
    let before_layers = |name: &str| {
        let at = if name.starts_with("layers.") { Some(0) } else { name.find(".layers.").map(|at| at + 1) };
        at.map(|at| name[..at].to_owned())
    };
    checkpoint.modules().filter_map(|module| before_layers(module.name())).collect()
}
