//! `target_modules` that reach what an adapter holds, and nothing else.
//!
//! PEFT takes every module whose name is an entry, or ends with a dot and the entry. What it cannot wrap, as a list of
//! layers that happens to end alike, is an error there; what it can and has no factors for is wrapped for nothing, with
//! a warning.

use std::collections::{BTreeSet, HashSet};

/// Last parts that say too little by themselves: any container may bear them, though the files show none that does.
const VAGUE: [&str; 4] = ["mlp", "head", "layers", "dense"];

/// Above this many entries a list is no longer written for the sake of linear layers that would be wrapped for nothing.
const MOST: usize = 2000;

/// The shortest endings of the names of `adapted` that no other of `paths` has; whole names where nothing shorter does.
/// `linear` tells of the other paths that PEFT could wrap: they are spared only while the list stays short.
pub(crate) fn shortest(
    adapted: &BTreeSet<String>,
    paths: &BTreeSet<String>,
    linear: impl Fn(&str) -> bool,
) -> BTreeSet<String> {
    let others = || paths.iter().filter(|path| !adapted.contains(*path));
    let strict = endings(adapted, others());
    if strict.len() <= MOST {
        return strict;
    }
    endings(adapted, others().filter(|path| !linear(path)))
}

fn endings<'a>(adapted: &BTreeSet<String>, others: impl Iterator<Item = &'a String>) -> BTreeSet<String> {
    let foreign: HashSet<&str> = others.flat_map(|path| tails(path)).collect();
    let ending = |name: &String| {
        let fits = |tail: &&str| !is_vague(tail) && !foreign.contains(tail);
        tails(name).find(fits).unwrap_or(name).to_owned()
    };
    adapted.iter().map(ending).collect()
}

/// The endings of a name at its dots, the shortest first and the name itself last.
fn tails(name: &str) -> impl Iterator<Item = &str> {
    let dots = name.rmatch_indices('.').map(|(at, _)| &name[at + 1..]);
    dots.chain(std::iter::once(name))
}

/// Whether an ending says nothing by its first part: a number, or a word that containers bear too.
fn is_vague(tail: &str) -> bool {
    let first = tail.split('.').next().unwrap_or(tail);
    let is_number = !first.is_empty() && first.bytes().all(|byte| byte.is_ascii_digit());
    is_number || VAGUE.contains(&tail)
}

/// The paths of the modules that hold these tensors, and of all modules that hold those.
pub(crate) fn paths_of<'a>(tensors: impl Iterator<Item = &'a str>) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    for name in tensors {
        for (at, _) in name.rmatch_indices('.') {
            // What holds this one is known already, and so is what holds that.
            if !paths.insert(name[..at].to_owned()) {
                break;
            }
        }
    }
    paths
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{paths_of, shortest};

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn targets(adapted: &[&str], others: &[&str]) -> Vec<String> {
        let tensors: Vec<String> =
            adapted.iter().chain(others).map(|name| format!("{name}.weight")).collect();
        let paths = paths_of(tensors.iter().map(String::as_str));
        shortest(&set(adapted), &paths, |_| false).into_iter().collect()
    }

    #[test]
    fn the_kind_does_where_nothing_else_bears_it() {
        let names = ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"];
        assert_eq!(targets(&names, &["lm_head", "model.norm"]), ["q_proj"]);
    }

    #[test]
    fn more_parts_where_others_end_alike() {
        // A module of a sequence, and one that is a list of layers elsewhere.
        assert_eq!(targets(&["visual.merger.mlp.0"], &["visual.blocks.0.norm1"]), ["mlp.0"]);
        assert_eq!(targets(&["a.mlp.2", "b.0.2"], &[]), ["b.0.2", "mlp.2"]);
        let alike = ["text.encoder.layers.3.fc", "vision.head.layers"];
        assert_eq!(targets(&["model.mamba.layers.7.head"], &alike), ["layers.7.head"]);
        assert_eq!(targets(&["vision.attn.dense"], &["text.attn.dense"]), ["vision.attn.dense"]);
        assert_eq!(targets(&["text.gate"], &["text.mlp.gate", "text.gate.proj"]), ["text.gate"]);
        assert_eq!(targets(&["gate"], &["mlp.gate"]), ["gate"], "nothing shorter is there");
    }

    #[test]
    fn a_list_beyond_all_measure_spares_only_what_cannot_be_wrapped() {
        let adapted: Vec<String> = (0..3000).map(|l| format!("model.layers.{l}.q_proj")).collect();
        let adapted: BTreeSet<String> = adapted.into_iter().collect();
        let mut paths = adapted.clone();
        paths.insert("mtp.q_proj".to_owned());
        assert_eq!(
            shortest(&adapted, &paths, |name| name.ends_with("q_proj")).into_iter().collect::<Vec<_>>(),
            ["q_proj"]
        );
        assert_eq!(shortest(&adapted, &paths, |_| false).len(), 3000);
    }
}
