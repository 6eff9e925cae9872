//! The link: a few connections that fetch blocks, the blocks that are here, and the readers that wait for them.
//!
//! A block is a part of an object of at most [`BLOCK`] bytes. Blocks are announced in the order in which they will be
//! read, and are fetched side by side as far as the memory for them allows. A block that was read to its end goes when
//! its memory is wanted; one that was not read, or only in part, does not go for what is read later, so that each is
//! fetched once. A reader whose block was never announced, or was dropped, gets it fetched before all others, whatever
//! the memory: announcing is never needed for a right result, only for a fast one, and no reader waits for another.
//!
//! Whoever reads a range begins a pass over it: its blocks are hashed as they come, so that its digest needs no second
//! reader at another pace. At the end of the pass its blocks go.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use crate::storage::Window;
use crate::storage::remote::http::answer::changed;
use crate::storage::remote::http::object::Object;
use crate::storage::remote::link::blocks::{Blocks, Held, Key, Stage};
use crate::storage::remote::link::cache;
use crate::storage::remote::link::digests::Digests;
use crate::storage::remote::link::spill::Spill;
use crate::storage::remote::settings::settings;
use crate::{Error, Result};

/// The most bytes of a block: long enough to fill a link of some 100 ms with [`connections`](super::Settings) of them.
pub(crate) const BLOCK: u64 = 4 << 20;

/// Windows at least as long that were put together from several blocks are found again while they live.
const LENT: usize = 1 << 20;

/// All blocks of this process, and what fetches them.
pub(crate) struct Link {
    state: Mutex<State>,
    /// Something to fetch, or memory to fetch it into.
    work: Condvar,
    /// A block has come.
    came: Condvar,
    /// Bytes that blocks may take.
    capacity: AtomicU64,
}

#[derive(Default)]
struct State {
    objects: HashMap<u64, Arc<Object>>,
    blocks: Blocks,
    digests: Digests,
    /// Blocks that a reader waits for; those of work that has begun; those of work that comes later.
    queues: [VecDeque<Key>; 3],
    /// Long windows that live, by object and start.
    lent: BTreeMap<Key, (u64, Weak<Vec<u8>>)>,
    connections: usize,
    idle: usize,
}

/// How soon a block is wanted: the place of its queue.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    Now = 0,
    Soon = 1,
    Later = 2,
}

/// The link of this process.
pub(crate) fn link() -> &'static Link {
    static LINK: OnceLock<Link> = OnceLock::new();
    LINK.get_or_init(|| Link {
        state: Mutex::default(),
        work: Condvar::new(),
        came: Condvar::new(),
        capacity: AtomicU64::new(LEAST),
    })
}

/// The least memory for blocks that are read ahead.
pub(crate) const LEAST: u64 = 8 * BLOCK;

/// The memory for blocks beyond that, which readers wait for while all of it holds what is read later.
pub(crate) const BEYOND: u64 = 8 * BLOCK;

impl Link {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets how many bytes blocks may take.
    pub(crate) fn set_capacity(&self, bytes: u64) {
        self.capacity.store(bytes.max(LEAST), Ordering::Relaxed);
        self.work.notify_all();
    }

    /// Takes an object into the link.
    pub(crate) fn add(&self, object: Arc<Object>) {
        self.lock().objects.insert(object.id, object);
    }

    /// Forgets an object and its blocks.
    pub(crate) fn remove(&self, id: u64) {
        let mut state = self.lock();
        state.objects.remove(&id);
        state.blocks.forget(id);
        state.digests.forget(id);
        state.lent.retain(|key, _| key.0 != id);
    }

    /// Announces that `ranges` of an object will be read, in this order.
    pub(crate) fn announce(&'static self, id: u64, ranges: &[Range<u64>], wanted: Wanted) {
        let mut state = self.lock();
        for range in ranges {
            state.blocks.cover(id, range.clone(), BLOCK);
            // What was announced for later is wanted sooner now.
            for key in state.blocks.within(id, range) {
                if state.blocks.is_queued(key) {
                    state.queues[wanted as usize].push_back(key);
                }
            }
        }
        self.start(&mut state);
    }

    /// Begins a pass over `range` of an object: it is cut into blocks from its start on, which are hashed as they come.
    pub(crate) fn begin_pass(&self, id: u64, range: &Range<u64>) {
        let mut state = self.lock();
        state.blocks.cover(id, range.clone(), BLOCK);
        state.digests.begin(id, range);
    }

    /// The digest of `range`, over which a pass was made; its blocks go. What has not been hashed, because it was
    /// fetched before the pass or was not read in it, is read for that.
    pub(crate) fn end_pass(&'static self, object: &Object, range: &Range<u64>) -> Result<blake3::Hash> {
        let mut state = self.lock();
        state.digests.begin(object.id, range);
        for known in state.digests.blocks(object.id, range, true) {
            state.blocks.release(object.id, &known);
        }
        let missing = state.digests.blocks(object.id, range, false);
        drop(state);
        self.announce(object.id, &missing, Wanted::Soon);
        for block in missing {
            let bytes = self.read(object, block.clone())?;
            let mut state = self.lock();
            for subtree in state.digests.subtrees(object.id, &block) {
                state.digests.put(&subtree, subtree.hash(&bytes));
            }
        }
        let mut state = self.lock();
        state.blocks.release(object.id, range);
        self.work.notify_all();
        let unknown = || Error::unexpected("a digest of bytes that were not read").path(&object.location);
        state.digests.digest(object.id, range).ok_or_else(unknown)
    }

    /// Bytes of blocks that are announced and have not been fetched.
    pub(crate) fn backlog(&self) -> u64 {
        self.lock().blocks.queued()
    }

    /// Keeps the blocks of `ranges` until the result is dropped, in memory or in `spill`.
    pub(crate) fn hold(&'static self, id: u64, ranges: &[Range<u64>], spill: Option<&Arc<Spill>>) -> Hold {
        let mut state = self.lock();
        let mut keys = Vec::new();
        for range in ranges {
            for key in state.blocks.cover(id, range.clone(), BLOCK) {
                state.queues[Wanted::Soon as usize].push_back(key);
            }
            keys.extend(state.blocks.within(id, range));
        }
        for key in &keys {
            state.blocks.pin(*key, spill);
        }
        self.start(&mut state);
        Hold { keys }
    }

    /// The bytes of `range`, fetched if they are not here.
    pub(crate) fn read(&'static self, object: &Object, range: Range<u64>) -> Result<Window> {
        let mut state = self.lock();
        if let Some(window) = state.lent(object.id, &range) {
            return Ok(window);
        }
        for key in state.blocks.cover(object.id, range.clone(), BLOCK) {
            state.queues[Wanted::Soon as usize].push_front(key);
        }
        let mut whole = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let Some((key, end)) = state.blocks.at(object.id, at) else {
                // It was dropped while we read another one.
                for key in state.blocks.cover(object.id, at..range.end, BLOCK) {
                    state.queues[Wanted::Soon as usize].push_front(key);
                }
                continue;
            };
            let until = end.min(range.end);
            let within = (at - key.1) as usize..(until - key.1) as usize;
            let stage = state.blocks.take(key, within.len() as u64);
            if state.blocks.is_read(key) {
                // There is room for another one.
                self.work.notify_one();
            }
            match stage {
                Stage::Here(Held::Memory(bytes)) => {
                    if at == range.start && until == range.end {
                        return Ok(Window::shared(bytes, within));
                    }
                    drop(state);
                    whole.reserve_exact((range.end - range.start) as usize - whole.len());
                    whole.extend_from_slice(&bytes[within]);
                    state = self.lock();
                    at = until;
                }
                Stage::Here(Held::Spilled(spill, offset)) => {
                    drop(state);
                    let start = whole.len();
                    whole.resize(start + within.len(), 0);
                    spill.read(offset + within.start as u64, &mut whole[start..])?;
                    state = self.lock();
                    at = until;
                }
                Stage::Failed(error) => return Err(error.error(&object.location)),
                Stage::Coming => state = self.wait(state, None),
                Stage::Queued => {
                    state.queues[Wanted::Now as usize].push_back(key);
                    state = self.wait(state, Some(key));
                }
            }
        }
        let whole = Arc::new(whole);
        if whole.len() >= LENT {
            state.lent.retain(|_, (_, window)| window.strong_count() > 0);
            state.lent.insert((object.id, range.start), (range.end, Arc::downgrade(&whole)));
        }
        let length = whole.len();
        Ok(Window::shared(whole, 0..length))
    }

    /// Waits until a block has come, and until `key` is not merely queued.
    fn wait<'g>(&'static self, mut state: MutexGuard<'g, State>, key: Option<Key>) -> MutexGuard<'g, State> {
        self.start(&mut state);
        loop {
            state = self.came.wait(state).unwrap_or_else(PoisonError::into_inner);
            if key.is_none_or(|key| !state.blocks.is_queued(key)) {
                return state;
            }
        }
    }

    /// Wakes connections, and opens further ones where all are at work.
    fn start(&'static self, state: &mut State) {
        let wanted: usize = state.queues.iter().map(VecDeque::len).sum();
        let most = settings().connections.max(1);
        while state.connections < most && wanted > state.idle && state.connections < wanted {
            let run = move || self.run();
            // A thread that the system refuses is done without, unless it is the first.
            let begun = std::thread::Builder::new().name("link".to_owned()).stack_size(512 << 10).spawn(run);
            if begun.is_err() && state.connections > 0 {
                break;
            }
            if begun.is_err() {
                let failed = Error::unexpected("cannot start a thread for the link");
                state.fail_all(&failed);
                self.came.notify_all();
                return;
            }
            state.connections += 1;
            state.idle += 1;
        }
        self.work.notify_all();
    }

    /// One connection: fetches block after block.
    fn run(&self) {
        let mut state = self.lock();
        loop {
            let Some((key, object, range)) = state.next(self.capacity.load(Ordering::Relaxed)) else {
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.idle -= 1;
            let spill = state.blocks.spill(key);
            let subtrees = state.digests.subtrees(object.id, &range);
            drop(state);
            let fetched = fetch(&object, &range).and_then(|bytes| {
                let hashes: Vec<_> = subtrees.iter().map(|subtree| (subtree, subtree.hash(&bytes))).collect();
                let held = match spill {
                    None => Held::Memory(Arc::new(bytes)),
                    Some(spill) => spill.write(&bytes).map(|at| Held::Spilled(Arc::clone(&spill), at))?,
                };
                Ok((held, hashes))
            });
            state = self.lock();
            state.idle += 1;
            let fetched = fetched.and_then(|(held, hashes)| {
                let same = hashes.into_iter().all(|(subtree, hash)| state.digests.put(subtree, hash));
                let other = || changed("bytes that were fetched twice differ").path(&object.location);
                if same { Ok(held) } else { Err(other()) }
            });
            state.blocks.arrive(key, fetched);
            self.came.notify_all();
            self.work.notify_all();
        }
    }
}

/// The bytes of a block, from the cache if they are there.
fn fetch(object: &Object, range: &Range<u64>) -> Result<Vec<u8>> {
    if let Some(bytes) = cache::get(object, range) {
        return Ok(bytes);
    }
    let bytes = object.fetch(range)?;
    cache::put(object, range, &bytes);
    Ok(bytes)
}

impl State {
    /// The next block to fetch, if there is memory for it. A block that is waited for is fetched in any case; one that
    /// comes later leaves half for those of work that has begun.
    fn next(&mut self, capacity: u64) -> Option<(Key, Arc<Object>, Range<u64>)> {
        for (at, room) in [(0, capacity + BEYOND), (1, capacity), (2, capacity / 2)] {
            while let Some(key) = self.queues[at].front().copied() {
                let Some(size) = self.blocks.queued_size(key) else {
                    // Fetched by another queue's turn, or not wanted any more.
                    self.queues[at].pop_front();
                    continue;
                };
                if at == Wanted::Now as usize {
                    self.blocks.force_room(key, size, room);
                } else if !self.blocks.make_room(key, size, room) {
                    break;
                }
                self.queues[at].pop_front();
                let Some(object) = self.objects.get(&key.0) else { continue };
                self.blocks.begin(key);
                return Some((key, Arc::clone(object), key.1..key.1 + size));
            }
        }
        None
    }

    /// A part of a long window that lives.
    fn lent(&self, id: u64, range: &Range<u64>) -> Option<Window> {
        let (key, (end, window)) = self.lent.range((id, 0)..=(id, range.start)).next_back()?;
        if *end < range.end {
            return None;
        }
        let within = (range.start - key.1) as usize..(range.end - key.1) as usize;
        window.upgrade().map(|bytes| Window::shared(bytes, within))
    }

    fn fail_all(&mut self, error: &Error) {
        for queue in &mut self.queues {
            for key in queue.drain(..) {
                self.blocks.fail(key, error);
            }
        }
    }
}

/// Blocks that stay until this is dropped.
pub(crate) struct Hold {
    keys: Vec<Key>,
}

impl std::fmt::Debug for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hold").field("blocks", &self.keys.len()).finish()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = link().lock();
        for key in &self.keys {
            state.blocks.unpin(*key);
        }
        drop(state);
        link().work.notify_all();
        link().came.notify_all();
    }
}
