//! Digests of ranges, taken from their blocks as these arrive, in whatever order. BLAKE3 hashes a tree: a block that
//! begins at a multiple of its length within the range is a subtree by itself, and the subtrees are put together when
//! the last one is there. So the digest costs no second reading, and no order of fetching.

use std::collections::BTreeMap;
use std::ops::Range;

use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root,
};

use crate::storage::remote::link::fetcher::BLOCK;

/// The most passes over one object that a block is looked for in: a tensor, and what is a part of it.
const NESTED: usize = 4;

/// The ranges of all objects that are hashed, by object, start and end.
#[derive(Debug, Default)]
pub(crate) struct Digests(BTreeMap<(u64, u64, u64), Vec<Option<ChainingValue>>>);

/// The subtree of a range that a block is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Subtree {
    key: (u64, u64, u64),
    number: usize,
}

impl Subtree {
    /// Its hash: of a range that is a single block, the digest itself.
    pub(crate) fn hash(&self, bytes: &[u8]) -> ChainingValue {
        let (_, start, end) = self.key;
        if end - start <= BLOCK {
            return blake3::hash(bytes).into();
        }
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(self.number as u64 * BLOCK).update(bytes).finalize_non_root()
    }
}

impl Digests {
    /// Hashes `range` of an object from now on. What is known of it stays known.
    pub(crate) fn begin(&mut self, object: u64, range: &Range<u64>) {
        let count = (range.end - range.start).div_ceil(BLOCK) as usize;
        self.0.entry((object, range.start, range.end)).or_insert_with(|| vec![None; count]);
    }

    /// The subtrees that the block `range` is.
    pub(crate) fn subtrees(&self, object: u64, range: &Range<u64>) -> Vec<Subtree> {
        let before = (object, 0, 0)..=(object, range.start, u64::MAX);
        let passes = self.0.range(before).rev().map(|(key, _)| *key).take(NESTED);
        let of = |key: (u64, u64, u64)| {
            let (_, start, end) = key;
            let is_subtree = (range.start - start).is_multiple_of(BLOCK)
                && range.end == end.min(range.start + BLOCK)
                && range.end > range.start;
            is_subtree.then(|| Subtree { key, number: ((range.start - start) / BLOCK) as usize })
        };
        passes.filter_map(of).collect()
    }

    /// Takes down a subtree's hash; whether it is what an earlier fetch of the same bytes has given.
    pub(crate) fn put(&mut self, subtree: &Subtree, hash: ChainingValue) -> bool {
        let Some(known) = self.0.get_mut(&subtree.key).and_then(|known| known.get_mut(subtree.number)) else {
            return true;
        };
        *known.get_or_insert(hash) == hash
    }

    /// The blocks of `range` whose hashes are known, or not.
    pub(crate) fn blocks(&self, object: u64, range: &Range<u64>, known: bool) -> Vec<Range<u64>> {
        let hashes = self.0.get(&(object, range.start, range.end)).into_iter().flatten();
        let starts = (range.start..range.end).step_by(BLOCK as usize);
        let wanted = hashes.zip(starts).filter(|(hash, _)| hash.is_some() == known);
        wanted.map(|(_, start)| start..(start + BLOCK).min(range.end)).collect()
    }

    /// The digest of `range`, if all of it has been hashed.
    pub(crate) fn digest(&self, object: u64, range: &Range<u64>) -> Option<blake3::Hash> {
        let hashes = self.0.get(&(object, range.start, range.end))?;
        let hashes: Vec<ChainingValue> = hashes.iter().copied().collect::<Option<_>>()?;
        Some(match hashes.as_slice() {
            [] => blake3::hash(&[]),
            [one] => blake3::Hash::from_bytes(*one),
            _ => {
                let length = range.end - range.start;
                let (left, right) = split(&hashes, length);
                merge_subtrees_root(&merged(left.0, left.1), &merged(right.0, right.1), Mode::Hash)
            }
        })
    }

    /// Forgets an object.
    pub(crate) fn forget(&mut self, object: u64) {
        self.0.retain(|key, _| key.0 != object);
    }
}

/// Consecutive subtrees, and the bytes under them.
type Part<'h> = (&'h [ChainingValue], u64);

/// The two halves of a tree over `length` bytes.
fn split(hashes: &[ChainingValue], length: u64) -> (Part<'_>, Part<'_>) {
    let left = left_subtree_len(length);
    let (first, second) = hashes.split_at((left / BLOCK) as usize);
    ((first, left), (second, length - left))
}

fn merged(hashes: &[ChainingValue], length: u64) -> ChainingValue {
    if let [one] = hashes {
        return *one;
    }
    let (left, right) = split(hashes, length);
    merge_subtrees_non_root(&merged(left.0, left.1), &merged(right.0, right.1), Mode::Hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_in_any_order_give_the_digest_of_the_whole() {
        let content: Vec<u8> = (0..6 * BLOCK as usize + 77).map(|i| (i * 31 % 251) as u8).collect();
        let sizes =
            [0, 1, 1024, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK + 1025, 5 * BLOCK, 6 * BLOCK];
        for (start, size) in [3u64, 64].into_iter().flat_map(|start| sizes.map(|size| (start, size))) {
            let range = start..start + size;
            let part = |block: &Range<u64>| &content[block.start as usize..block.end as usize];
            let mut digests = Digests::default();
            digests.begin(1, &range);
            let mut blocks = digests.blocks(1, &range, false);
            blocks.reverse();
            let middle = (size % 3) as usize % blocks.len().max(1);
            blocks.rotate_left(middle);
            for block in &blocks {
                assert_eq!(digests.digest(1, &range), None);
                let subtrees = digests.subtrees(1, block);
                assert_eq!(subtrees.len(), 1);
                assert!(digests.put(&subtrees[0], subtrees[0].hash(part(block))));
            }
            assert_eq!(digests.digest(1, &range), Some(blake3::hash(part(&range))), "{range:?}");
            assert!(digests.blocks(1, &range, false).is_empty());
            // The same bytes again are the same, others are not.
            if let Some(block) = blocks.first() {
                let subtree = &digests.subtrees(1, block)[0];
                assert!(digests.put(subtree, subtree.hash(part(block))));
                assert!(!digests.put(subtree, [7; 32]));
            }
        }
    }

    #[test]
    fn a_block_may_belong_to_a_tensor_and_to_a_part_of_it() {
        let mut digests = Digests::default();
        digests.begin(1, &(10..10 + 4 * BLOCK));
        digests.begin(1, &(10..10 + BLOCK));
        digests.begin(2, &(0..BLOCK));
        assert_eq!(digests.subtrees(1, &(10..10 + BLOCK)).len(), 2);
        assert_eq!(digests.subtrees(1, &(10 + BLOCK..10 + 2 * BLOCK)).len(), 1);
        // Not a whole block, or not at its place.
        assert!(digests.subtrees(1, &(10..9 + BLOCK)).is_empty());
        assert!(digests.subtrees(1, &(11..11 + BLOCK)).is_empty());
        digests.forget(1);
        assert!(digests.subtrees(1, &(10..10 + BLOCK)).is_empty());
    }
}
