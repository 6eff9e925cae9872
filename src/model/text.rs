//! Token sequences, and the groups in which they pass through the layers.

use std::ops::Range;

/// The approximate number of tokens in short sequences that go through a weight together. It determines how products
/// are cut, and so their last bits.
const GROUP: usize = 512;

/// Token sequences. Each is a text of its own: no token sees another sequence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sequences(Vec<Vec<u32>>);

impl Sequences {
    /// Keeps the sequences with something to predict: two tokens or more.
    pub fn new(sequences: impl IntoIterator<Item = Vec<u32>>) -> Sequences {
        Sequences(sequences.into_iter().filter(|ids| ids.len() > 1).collect())
    }

    /// The sequences.
    pub fn all(&self) -> &[Vec<u32>] {
        &self.0
    }

    /// The number of tokens in all sequences.
    pub fn tokens(&self) -> usize {
        self.0.iter().map(Vec::len).sum()
    }

    /// The length of the longest sequence.
    pub fn longest(&self) -> usize {
        self.0.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// The largest token id.
    pub fn largest_id(&self) -> Option<u32> {
        self.0.iter().flatten().max().copied()
    }

    /// The blake3 of all ids as little-endian u32, with `u32::MAX` after each sequence.
    pub fn digest(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for ids in &self.0 {
            ids.iter().chain([&u32::MAX]).for_each(|id| {
                hasher.update(&id.to_le_bytes());
            });
        }
        hasher.finalize()
    }

    /// The sequences in groups, in order, once for each of `variants`.
    pub fn groups(&self, variants: usize) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        for (index, ids) in self.0.iter().enumerate() {
            let fits = |group: &Group| group.ids.len() + ids.len() <= GROUP;
            if !groups.last().is_some_and(fits) {
                groups.push(Group::default());
            }
            if let Some(group) = groups.last_mut() {
                let start = group.ids.len();
                group.ids.extend(ids);
                group.sequences.push((index, start..start + ids.len()));
            }
        }
        let variant = |variant| groups.iter().map(move |group| Group { variant, ..group.clone() });
        (0..variants).flat_map(variant).collect()
    }
}

/// Whole sequences that go through a weight together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// The variant of the model that they go through, that is, with which updates of its weights.
    pub variant: usize,
    /// Their tokens, one sequence after another.
    pub ids: Vec<u32>,
    /// For each sequence, its number and its range in `ids`.
    pub sequences: Vec<(usize, Range<usize>)>,
}

impl Group {
    /// The number of tokens.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_sequences_share_a_group_and_long_ones_have_their_own() {
        let sequences = Sequences::new([300, 200, 100, 1, 2000].map(|n| (0..n).collect()));
        assert_eq!((sequences.all().len(), sequences.tokens(), sequences.longest()), (4, 2600, 2000));
        let groups = sequences.groups(2);
        let shape = |group: &Group| (group.variant, group.tokens(), group.sequences.len());
        assert_eq!(
            groups.iter().map(shape).collect::<Vec<_>>(),
            [(0, 500, 2), (0, 100, 1), (0, 2000, 1), (1, 500, 2), (1, 100, 1), (1, 2000, 1)]
        );
        assert_eq!(groups[0].sequences, [(0, 0..300), (1, 300..500)]);
    }

    #[test]
    fn the_digest_tells_where_sequences_end() {
        let digest = |sequences: &[&[u32]]| Sequences::new(sequences.iter().map(|ids| ids.to_vec())).digest();
        assert_ne!(digest(&[&[1, 2], &[3, 4]]), digest(&[&[1, 2, 3, 4]]));
        assert_ne!(digest(&[&[1, 2], &[3, 4]]), digest(&[&[3, 4], &[1, 2]]));
    }
}
