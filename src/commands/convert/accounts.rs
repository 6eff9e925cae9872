//! Every tensor of the input is accounted for: copied, computed from, replaced, or left out on purpose.

use std::collections::{BTreeMap, BTreeSet};

use crate::checkpoint::Checkpoint;
use crate::commands::convert::lora_update::{Addend, Addends};
use crate::commands::convert::sharding::{Content, OutTensor, Unit};
use crate::{Error, Result};

/// Proves that all bytes of all tensors of `base` go into the output, or are named in `dropped`.
///
/// # Errors
/// A tensor, or a part of one, of which nothing would become: a fault of this program, for the checkpoint has been
/// read.
pub(crate) fn check(base: &Checkpoint, units: &[Unit], dropped: &[String]) -> Result<()> {
    let mut used: BTreeMap<&str, BTreeSet<[u64; 2]>> = BTreeMap::new();
    for tensor in units.iter().flat_map(|unit| &unit.tensors) {
        match (&tensor.content, tensor.module()) {
            (_, Some(module)) => module.extents().for_each(|(stored, range)| {
                used.entry(stored.name()).or_default().insert([range.start, range.end]);
            }),
            (Content::Base(stored), None) => {
                used.entry(stored.name()).or_default().insert([0, stored.size()]);
            }
            // It takes the place of the base's tensor of its name.
            (_, None) => {
                used.entry(&tensor.stored.name).or_default().insert([0, u64::MAX]);
            }
        }
    }
    let dropped: BTreeSet<&str> = dropped.iter().map(String::as_str).collect();
    let lost = |name: &str, size| used.get(name).map_or(size, |ranges| unused(ranges, size));
    let missing = base.tensors().filter(|tensor| !dropped.contains(tensor.name()));
    let missing: Vec<(&str, u64)> = missing
        .filter(|tensor| !used.contains_key(tensor.name()) || lost(tensor.name(), tensor.size()) > 0)
        .map(|tensor| (tensor.name(), lost(tensor.name(), tensor.size())))
        .collect();
    let Some((first, bytes)) = missing.first() else { return Ok(()) };
    let what = format!(
        "{} of the checkpoint's {} tensors would be lost, {bytes} bytes of this one among them",
        missing.len(),
        base.tensors().len()
    );
    Err(Error::unexpected(what)
        .tensor(*first)
        .path(base.root())
        .hint("nothing was written: report this, with the config"))
}

/// Proves that what an adapter adds to each weight goes into the output.
///
/// # Errors
/// A module of the adapter of which nothing would be added: a fault of this program, for the base has it.
pub(crate) fn check_added(addends: &Addends, units: &[Unit]) -> Result<()> {
    let written = |tensor: &OutTensor| match &tensor.content {
        Content::Weight(of) | Content::Codes(of) => Some(of.name.to_string()),
        Content::Stack(stack) => Some(stack.name().to_owned()),
        // A weight that the adapter holds whole stands for what it adds to it.
        Content::Adapter(_) => tensor.stored.name.strip_suffix(".weight").map(str::to_owned),
        _ => None,
    };
    let written: BTreeSet<String> = units.iter().flat_map(|unit| &unit.tensors).filter_map(written).collect();
    let modules = |addends: &Vec<Addend>| {
        addends.iter().map(|addend| (addend.module.clone(), addend.expert)).collect::<Vec<_>>()
    };
    let all: BTreeSet<(String, usize)> = addends.values().flat_map(modules).collect();
    let added = addends.iter().filter(|(name, _)| written.contains(*name)).map(|(_, addends)| addends);
    let added: BTreeSet<(String, usize)> = added.flat_map(modules).collect();
    let Some((module, _)) = all.difference(&added).next() else { return Ok(()) };
    Err(Error::unexpected("what the adapter adds to this module would be lost")
        .tensor(module)
        .hint("nothing was written: report this, with both configs"))
}

/// How many of `size` bytes lie in none of the ranges, which are sorted by their start.
fn unused(ranges: &BTreeSet<[u64; 2]>, size: u64) -> u64 {
    let (mut reached, mut gaps) = (0, 0);
    for [start, end] in ranges {
        gaps += start.saturating_sub(reached);
        reached = reached.max(*end);
    }
    gaps + size.saturating_sub(reached)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::unused;

    #[test]
    fn gaps_between_before_and_behind_are_counted() {
        let ranges = |all: &[[u64; 2]]| all.iter().copied().collect::<BTreeSet<_>>();
        assert_eq!(unused(&ranges(&[[0, 4], [4, 10]]), 10), 0);
        assert_eq!(unused(&ranges(&[[0, 6], [2, 10]]), 10), 0);
        assert_eq!(unused(&ranges(&[[1, 4], [6, 9]]), 10), 1 + 2 + 1);
        assert_eq!(unused(&ranges(&[]), 10), 10);
        assert_eq!(unused(&ranges(&[[0, u64::MAX]]), 10), 0);
    }
}
