//! Groups tensors whose names differ only in numbers, such as those of all layers.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::commands::probe::described::Probed;

/// Tensors that are stored in the same way and whose names differ only in numbers.
#[derive(Clone, Debug, Serialize)]
pub struct ProbedGroup {
    /// Their name, with ranges for the numbers that differ: `model.layers.0-63.mlp.up_proj`.
    pub name: String,
    /// Number of tensors.
    pub tensors: u64,
    /// Whether some names in the ranges are missing.
    pub gaps: bool,
    /// Shape of the values of each.
    pub shape: Vec<usize>,
    /// How each is stored: the last part of the name, dtype and shape of the weight and its companions.
    pub stored: Vec<String>,
    /// Rows and columns under one scale.
    pub block: Option<[usize; 2]>,
    /// Stored bytes of all of them.
    pub bytes: u64,
}

/// Groups all tensors, ordered by the first name in each group.
pub fn groups(everything: &[Probed]) -> Vec<ProbedGroup> {
    let mut members: BTreeMap<String, Vec<&Probed>> = BTreeMap::new();
    for probed in everything {
        let kind = (split(&probed.name).0, &probed.shape, probed.block, stored(probed));
        members.entry(format!("{kind:?}")).or_default().push(probed);
    }
    let mut groups: Vec<(&str, ProbedGroup)> =
        members.values().map(|list| (list[0].name.as_str(), group(list))).collect();
    groups.sort_by_key(|(first, _)| *first);
    groups.into_iter().map(|(_, group)| group).collect()
}

/// A name with its numbers replaced by `*`, and the numbers.
fn split(name: &str) -> (String, Vec<u64>) {
    let mut numbers = Vec::new();
    let part = |part: &str| match part.parse::<u64>() {
        Ok(number) => {
            numbers.push(number);
            "*".to_owned()
        }
        Err(_) => part.to_owned(),
    };
    let parts: Vec<String> = name.split('.').map(part).collect();
    (parts.join("."), numbers)
}

/// The distinguishing name part, dtype and shape of each stored tensor.
fn stored(probed: &Probed) -> Vec<String> {
    let parts = probed.parts.iter().map(|part| {
        let last = part
            .name
            .strip_prefix(&probed.name)
            .map_or(part.name.as_str(), |rest| rest.trim_start_matches('.'));
        let sides: Vec<String> = part.shape.iter().map(ToString::to_string).collect();
        format!("{last} {} [{}]", part.dtype, sides.join(", ")).trim_start().to_owned()
    });
    parts.collect()
}

fn group(members: &[&Probed]) -> ProbedGroup {
    let first = members[0];
    let (pattern, numbers) = split(&first.name);
    let mut ranges: Vec<[u64; 2]> = numbers.iter().map(|&number| [number, number]).collect();
    for probed in members {
        for (range, number) in ranges.iter_mut().zip(split(&probed.name).1) {
            *range = [range[0].min(number), range[1].max(number)];
        }
    }
    let names: u128 = ranges.iter().map(|[from, to]| u128::from(to - from) + 1).product();
    let mut ranges = ranges.iter();
    let mut number = || match ranges.next() {
        Some([from, to]) if from != to => format!("{from}-{to}"),
        Some([from, _]) => from.to_string(),
        None => String::new(),
    };
    let part = |part: &str| if part == "*" { number() } else { part.to_owned() };
    let name: Vec<String> = pattern.split('.').map(part).collect();
    ProbedGroup {
        name: name.join("."),
        tensors: members.len() as u64,
        gaps: names != members.len() as u128,
        shape: first.shape.clone(),
        stored: stored(first),
        block: first.block,
        bytes: members.iter().map(|probed| probed.bytes).sum(),
    }
}
