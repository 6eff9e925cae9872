//! The blocks of all objects: which are wanted, on their way, or here, and which of them may go.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::storage::remote::link::spill::Spill;
use crate::{Error, Kind, Result};

/// The most bytes of a block: long enough to fill a link of some 100 ms with the usual number of connections.
pub(crate) const BLOCK: u64 = 4 << 20;

/// A block: its object and where it begins.
pub(crate) type Key = (u64, u64);

/// Where the bytes of a block lie.
#[derive(Clone, Debug)]
pub(crate) enum Held {
    Memory(Arc<Vec<u8>>),
    /// In a file, from this offset on.
    Spilled(Arc<Spill>, u64),
}

/// How far a block is, for a reader.
#[derive(Debug)]
pub(crate) enum Stage {
    Queued,
    Coming,
    Here(Held),
    Failed(Told),
}

/// An error that several readers may be told of.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    kind: Kind,
    text: String,
    hint: Option<String>,
}

impl Told {
    fn new(error: &Error) -> Told {
        Told { kind: error.kind(), text: error.to_string(), hint: error.cure().map(str::to_owned) }
    }

    /// The error again, about the object at `location`.
    pub(crate) fn error(&self, location: &Path) -> Error {
        let place = format!(": {}", location.display());
        let text = self.text.replacen(&place, "", 1);
        let error = match self.kind {
            Kind::Decide => Error::decide(text),
            Kind::Input => Error::input(text),
            Kind::Found => Error::found(text),
            Kind::Unexpected => Error::unexpected(text),
        };
        self.hint.iter().fold(error.path(location), |error, hint| error.hint(hint.clone()))
    }
}

#[derive(Debug)]
enum Fate {
    Queued,
    Coming,
    Here(Held),
    Failed(Told),
}

#[derive(Debug)]
struct Block {
    end: u64,
    fate: Fate,
    /// Bytes that readers took of it.
    taken: u64,
    /// When it was last read.
    turn: u64,
    pins: u32,
    spill: Option<Arc<Spill>>,
}

/// All blocks.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    blocks: BTreeMap<Key, Block>,
    /// Bytes of unpinned blocks that are here in memory, or coming.
    memory: u64,
    queued: u64,
    turn: u64,
}

impl Blocks {
    /// Makes blocks of at most `most` bytes for what of `range` no block covers, and returns them.
    pub(crate) fn cover(&mut self, object: u64, range: Range<u64>, most: u64) -> Vec<Key> {
        let mut made = Vec::new();
        let mut at = range.start;
        while at < range.end {
            if let Some((_, end)) = self.at(object, at) {
                at = end;
                continue;
            }
            let next = self
                .blocks
                .range((object, at)..(object, range.end))
                .next()
                .map_or(range.end, |(key, _)| key.1);
            let end = next.min(at + most);
            let block = Block { end, fate: Fate::Queued, taken: 0, turn: 0, pins: 0, spill: None };
            self.blocks.insert((object, at), block);
            self.queued += end - at;
            made.push((object, at));
            at = end;
        }
        made
    }

    /// The block that holds byte `at` of an object, and its end.
    pub(crate) fn at(&self, object: u64, at: u64) -> Option<(Key, u64)> {
        let (key, block) = self.blocks.range((object, 0)..=(object, at)).next_back()?;
        (block.end > at).then_some((*key, block.end))
    }

    /// The blocks that touch `range`.
    pub(crate) fn within(&self, object: u64, range: &Range<u64>) -> Vec<Key> {
        let first = self.at(object, range.start).map_or(range.start, |(key, _)| key.1);
        self.blocks.range((object, first)..(object, range.end.max(first))).map(|(key, _)| *key).collect()
    }

    /// Bytes that are wanted and not on their way.
    pub(crate) fn queued(&self) -> u64 {
        self.queued
    }

    /// The size of a block that is still queued.
    pub(crate) fn queued_size(&self, key: Key) -> Option<u64> {
        let block = self.blocks.get(&key)?;
        matches!(block.fate, Fate::Queued).then_some(block.end - key.1)
    }

    /// Whether a block is still queued.
    pub(crate) fn is_queued(&self, key: Key) -> bool {
        self.queued_size(key).is_some()
    }

    /// Drops blocks that were read to their end until `size` more bytes fit in `room`; whether they do.
    pub(crate) fn make_room(&mut self, key: Key, size: u64, room: u64) -> bool {
        self.drop_until(key, size, room, |blocks| {
            let spare = blocks.here().filter(|(key, block)| block.is_spare(key.1, blocks.turn));
            spare.min_by_key(|(_, block)| block.turn).map(|(key, _)| *key)
        })
    }

    /// The same for a block that a reader waits for: where nothing else is left, blocks go that nobody has read yet,
    /// those first that came last, and then those that were read in part. They will have to be fetched again.
    pub(crate) fn force_room(&mut self, key: Key, size: u64, room: u64) {
        if self.make_room(key, size, room) {
            return;
        }
        self.drop_until(key, size, room, |blocks| {
            let unread = blocks.here().filter(|(_, block)| block.taken == 0);
            let last = unread.max_by_key(|(_, block)| block.turn);
            let oldest = || blocks.here().min_by_key(|(_, block)| block.turn);
            last.or_else(oldest).map(|(key, _)| *key)
        });
    }

    fn drop_until(&mut self, key: Key, size: u64, room: u64, next: impl Fn(&Blocks) -> Option<Key>) -> bool {
        if self.blocks.get(&key).is_some_and(|block| block.pins > 0 && block.spill.is_none()) {
            return true;
        }
        while self.memory + size > room {
            let Some(key) = next(self) else { return false };
            self.remove(key);
        }
        true
    }

    /// The blocks that are here in memory and not pinned.
    fn here(&self) -> impl Iterator<Item = (&Key, &Block)> {
        let here = |block: &Block| block.pins == 0 && matches!(block.fate, Fate::Here(Held::Memory(_)));
        self.blocks.iter().filter(move |(_, block)| here(block))
    }

    /// Lets the blocks of `range` go: nobody will read them. One on its way goes when it has come.
    pub(crate) fn release(&mut self, object: u64, range: &Range<u64>) {
        for key in self.within(object, range) {
            let go = self.change(key, |block| {
                let (start, end) = (key.1.max(range.start), block.end.min(range.end));
                block.taken += end - start;
                let all = (start, end) == (key.1, block.end);
                all && block.pins == 0 && !matches!(block.fate, Fate::Coming)
            });
            if go == Some(true) {
                self.remove(key);
            }
        }
    }

    fn remove(&mut self, key: Key) {
        if let Some(block) = self.blocks.remove(&key) {
            let size = block.end - key.1;
            match block.fate {
                Fate::Queued => self.queued -= size,
                _ if block.takes_memory() => self.memory -= size,
                _ => {}
            }
        }
    }

    /// Changes a block, and counts what that does to the memory.
    fn change<T>(&mut self, key: Key, change: impl FnOnce(&mut Block) -> T) -> Option<T> {
        let block = self.blocks.get_mut(&key)?;
        let (size, before) = (block.end - key.1, block.takes_memory());
        let changed = change(block);
        match (before, block.takes_memory()) {
            (true, false) => self.memory -= size,
            (false, true) => self.memory += size,
            _ => {}
        }
        Some(changed)
    }

    /// A block is being fetched from now on.
    pub(crate) fn begin(&mut self, key: Key) {
        self.queued -= self.queued_size(key).unwrap_or(0);
        self.change(key, |block| block.fate = Fate::Coming);
    }

    /// A block has come, or has failed.
    pub(crate) fn arrive(&mut self, key: Key, fetched: Result<Held>) {
        let fate = match fetched {
            Ok(held) => Fate::Here(held),
            Err(error) => Fate::Failed(Told::new(&error)),
        };
        let turn = self.turn;
        self.change(key, |block| (block.fate, block.turn) = (fate, turn));
    }

    /// A block that cannot be fetched at all.
    pub(crate) fn fail(&mut self, key: Key, error: &Error) {
        if self.is_queued(key) {
            self.begin(key);
            self.arrive(key, Err(Told::new(error).error(Path::new(""))));
        }
    }

    /// How far a block is. Its bytes count as read, `bytes` of them; a failure is told once and may be tried again.
    pub(crate) fn take(&mut self, key: Key, bytes: u64) -> Stage {
        self.turn += 1;
        let Some(block) = self.blocks.get_mut(&key) else { return Stage::Queued };
        match &block.fate {
            Fate::Queued => Stage::Queued,
            Fate::Coming => Stage::Coming,
            Fate::Here(held) => {
                (block.taken, block.turn) = (block.taken + bytes, self.turn);
                Stage::Here(held.clone())
            }
            Fate::Failed(told) => {
                let told = told.clone();
                self.remove(key);
                Stage::Failed(told)
            }
        }
    }

    /// Whether a block was read to its end.
    pub(crate) fn is_read(&self, key: Key) -> bool {
        self.blocks.get(&key).is_some_and(|block| block.taken >= block.end - key.1)
    }

    /// Keeps a block until it is unpinned, in `spill` if there is one.
    pub(crate) fn pin(&mut self, key: Key, spill: Option<&Arc<Spill>>) {
        self.change(key, |block| {
            block.pins += 1;
            if block.spill.is_none() {
                block.spill = spill.cloned();
            }
        });
    }

    /// Lets a block go, unless it is on its way.
    pub(crate) fn unpin(&mut self, key: Key) {
        let go = self.change(key, |block| {
            block.pins = block.pins.saturating_sub(1);
            // Nobody will read one that is on its way.
            block.taken = block.taken.max(block.end - key.1);
            block.pins == 0 && !matches!(block.fate, Fate::Coming)
        });
        if go == Some(true) {
            self.remove(key);
        }
    }

    /// Where a block is to be written.
    pub(crate) fn spill(&self, key: Key) -> Option<Arc<Spill>> {
        self.blocks.get(&key)?.spill.clone()
    }

    /// Drops all blocks of an object.
    pub(crate) fn forget(&mut self, object: u64) {
        let keys: Vec<Key> =
            self.blocks.range((object, 0)..=(object, u64::MAX)).map(|(key, _)| *key).collect();
        keys.into_iter().for_each(|key| self.remove(key));
    }
}

impl Block {
    /// Whether it counts against the memory for blocks: what is pinned there is counted by who pins it.
    fn takes_memory(&self) -> bool {
        let counted_elsewhere = self.pins > 0 && self.spill.is_none();
        !counted_elsewhere && matches!(self.fate, Fate::Coming | Fate::Here(Held::Memory(_)))
    }

    /// Whether it may go for what is read later: it was read to its end, or nobody will do that, as it seems. A block
    /// of which only a part was read stays: its reader is about to come back.
    fn is_spare(&self, start: u64, turn: u64) -> bool {
        const LONG: u64 = 4096;
        self.taken >= self.end - start || turn - self.turn > LONG
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here(bytes: usize) -> Result<Held> {
        Ok(Held::Memory(Arc::new(vec![0; bytes])))
    }

    #[test]
    fn blocks_cover_a_range_once_and_are_no_longer_than_allowed() {
        let mut blocks = Blocks::default();
        assert_eq!(blocks.cover(1, 10..25, 10), [(1, 10), (1, 20)]);
        assert_eq!(blocks.cover(1, 0..40, 10), [(1, 0), (1, 25), (1, 35)]);
        assert!(blocks.cover(1, 0..40, 10).is_empty());
        assert_eq!(
            (blocks.at(1, 24), blocks.at(1, 25), blocks.at(1, 40)),
            (Some(((1, 20), 25)), Some(((1, 25), 35)), None)
        );
        assert_eq!(blocks.within(1, &(12..26)), [(1, 10), (1, 20), (1, 25)]);
        assert_eq!((blocks.queued(), blocks.at(2, 10)), (40, None));
        blocks.forget(1);
        assert_eq!(blocks.queued(), 0);
    }

    #[test]
    fn memory_is_counted_and_what_was_read_goes_first() {
        let mut blocks = Blocks::default();
        let keys = blocks.cover(1, 0..40, 10);
        for key in &keys[..3] {
            assert!(blocks.make_room(*key, 10, 30));
            blocks.begin(*key);
            blocks.arrive(*key, here(10));
        }
        assert!(!blocks.make_room(keys[3], 10, 30), "nothing was read yet");
        // The first one in part, the second one to its end.
        assert!(matches!(blocks.take(keys[0], 9), Stage::Here(_)));
        assert!(!blocks.make_room(keys[3], 10, 30), "nothing was read to its end");
        assert!(matches!(blocks.take(keys[1], 4), Stage::Here(_)));
        assert!(matches!(blocks.take(keys[1], 6), Stage::Here(_)));
        assert!(blocks.make_room(keys[3], 10, 30));
        assert!(blocks.at(1, 10).is_none(), "the second is gone");
        // What is pinned takes no room and stays.
        blocks.pin(keys[0], None);
        blocks.pin(keys[2], None);
        assert!(blocks.make_room(keys[3], 10, 10));
        blocks.begin(keys[3]);
        assert!(blocks.at(1, 0).is_some() && !blocks.make_room((2, 0), 1, 10));
        blocks.unpin(keys[0]);
        assert!(blocks.at(1, 0).is_none());
        // A failure is told once, and then the block is wanted anew.
        blocks.arrive(keys[3], Err(Error::input("no").path("place").hint("do")));
        let Stage::Failed(told) = blocks.take(keys[3], 1) else { panic!("it failed") };
        assert_eq!(
            (told.error(Path::new("place")).to_string().as_str(), told.hint.as_deref()),
            ("no: place", Some("do"))
        );
        assert_eq!(blocks.cover(1, 30..40, 10), [keys[3]]);
        assert_eq!(blocks.memory, 0);
    }

    #[test]
    fn a_reader_that_waits_gets_room_and_what_was_begun_stays_longest() {
        let mut blocks = Blocks::default();
        let keys = blocks.cover(1, 0..50, 10);
        for key in &keys[..4] {
            blocks.begin(*key);
            blocks.arrive(*key, here(10));
            blocks.take(keys[0], 1);
        }
        let left = |blocks: &Blocks| keys.iter().filter(|key| blocks.at(1, key.1).is_some()).count();
        blocks.force_room(keys[4], 10, 40);
        assert!(left(&blocks) == 4 && blocks.at(1, 30).is_none(), "the last of the unread goes first");
        blocks.force_room(keys[4], 10, 20);
        assert!(left(&blocks) == 2 && blocks.at(1, 0).is_some(), "the one that is being read stays");
        blocks.force_room(keys[4], 10, 10);
        assert_eq!(left(&blocks), 1);
    }

    #[test]
    fn what_is_released_goes_at_once_and_what_is_pinned_or_coming_later() {
        let mut blocks = Blocks::default();
        let keys = blocks.cover(1, 0..50, 10);
        for key in &keys[..3] {
            blocks.begin(*key);
        }
        blocks.arrive(keys[0], here(10));
        blocks.arrive(keys[1], here(10));
        blocks.pin(keys[1], None);
        blocks.release(1, &(0..45));
        let there: Vec<bool> = keys.iter().map(|key| blocks.at(1, key.1).is_some()).collect();
        assert_eq!(there, [false, true, true, false, true]);
        blocks.arrive(keys[2], here(10));
        assert!(blocks.make_room((2, 0), 10, 10), "it has come, and nobody wants it");
        assert!(blocks.at(1, 20).is_none());
        blocks.unpin(keys[1]);
        assert_eq!((blocks.memory, blocks.queued()), (0, 10));
    }
}
