//! Sources of bytes: files that are memory-mapped, and objects at a server that are read by ranges (`remote`). Another
//! source implements [`Storage`], and [`Folder`] where its objects lie together.

pub(crate) mod cut_file;
pub(crate) mod folder;
pub use self::folder::{FileDigest, Folder, LocalFolder, SmallFile};
pub(crate) mod mmap;
pub use self::cut_file::tell_of_cut_files;
pub(crate) mod positioned;
pub(crate) mod regular_file;
#[cfg(feature = "remote")]
pub mod remote;
pub use self::mmap::MappedFile;

use std::fmt::Debug;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::storage::cut_file::Noted;

/// One object of a checkpoint, a file for example, that is read in ranges. Any number of threads may read at once.
///
/// An implementation passes the conformance suite in `tests/formats/seams/source.rs`.
pub trait Storage: Debug + Send + Sync {
    /// The object's name within its checkpoint, as the index and the recorded identities have it.
    fn name(&self) -> &str;

    /// Where it lies, for messages: a path or an address.
    fn location(&self) -> &Path;

    /// Its length in bytes when it was opened.
    fn length(&self) -> u64;

    /// What differs when the object was written again with the same length; `None` where the source cannot tell.
    fn version(&self) -> Option<Version>;

    /// Checks that the object is as it was when it was opened, by its length and version. What was read before is
    /// of one state only if this succeeds afterwards. A source that is told of a change with every read has nothing
    /// to do here.
    ///
    /// # Errors
    /// [`Kind::Input`](crate::Kind::Input) for an object that was written to since.
    fn check_unchanged(&self) -> Result<()> {
        Ok(())
    }

    /// The bytes of `range`.
    ///
    /// # Errors
    /// The object has changed since it was opened, ends before the range does, or cannot be read.
    fn read_range(&self, range: Range<u64>) -> Result<Window>;

    /// The bytes of several ranges, in their order. A source that pays for each request overrides it to fetch them
    /// side by side.
    ///
    /// # Errors
    /// As [`read_range`](Self::read_range).
    fn read_ranges(&self, ranges: &[Range<u64>]) -> Result<Vec<Window>> {
        ranges.iter().map(|range| self.read_range(range.clone())).collect()
    }

    /// Copies the bytes from `start` on into `out`: for headers, which are parsed once.
    ///
    /// # Errors
    /// As [`read_range`](Self::read_range).
    fn read_into(&self, start: u64, out: &mut [u8]) -> Result<()> {
        out.copy_from_slice(&self.read_range(start..start + out.len() as u64)?);
        Ok(())
    }

    /// Announces that `range` will be read soon. Best effort: a source that cannot read ahead does nothing.
    fn prefetch(&self, range: Range<u64>) {
        let _ = range;
    }

    /// Announces what will be read after that, if there is room for it by then.
    fn prefetch_later(&self, range: Range<u64>) {
        let _ = range;
    }

    /// Announces a pass: `range` will be read once, in any pieces and roughly from its start on, and then
    /// [`end_pass`](Self::end_pass) will ask for its digest. A source that pays for each byte hashes what it fetches
    /// for the pass.
    fn begin_pass(&self, range: Range<u64>) {
        let _ = range;
    }

    /// The blake3 of `range` after a pass over it, whose bytes are no longer wanted; `None` from a source that hashes
    /// nothing by itself: its bytes have to be read again.
    ///
    /// # Errors
    /// As [`read_range`](Self::read_range).
    fn end_pass(&self, range: Range<u64>) -> Result<Option<blake3::Hash>> {
        let _ = range;
        Ok(None)
    }

    /// Whether every byte that is read has to be fetched, so that reading twice costs twice.
    fn is_remote(&self) -> bool {
        false
    }

    /// Keeps `ranges` here once they are fetched, until the result is dropped: in memory, of which the caller
    /// accounts for all their bytes, or in the scratch folder of the settings. A source whose bytes lie here anyway
    /// does nothing.
    ///
    /// # Errors
    /// There is no scratch folder, or it cannot be written to.
    fn keep(&self, ranges: &[Range<u64>], kept: Kept) -> Result<Option<Box<dyn Keeper>>> {
        let _ = (ranges, kept);
        Ok(None)
    }
}

/// The least bytes of memory that the link to servers takes; zero in a process that reads from none.
pub(crate) fn link_least() -> u64 {
    #[cfg(feature = "remote")]
    return remote::least();
    #[cfg(not(feature = "remote"))]
    0
}

/// Gives the link a share of `spare` bytes of memory, so that it reads further ahead; returns how many.
pub(crate) fn link_grow(spare: u64) -> u64 {
    #[cfg(feature = "remote")]
    return remote::grow(spare);
    #[cfg(not(feature = "remote"))]
    {
        let _ = spare;
        0
    }
}

/// Bytes that were announced to the link and are not here yet.
pub(crate) fn link_backlog() -> u64 {
    #[cfg(feature = "remote")]
    return remote::backlog();
    #[cfg(not(feature = "remote"))]
    0
}

/// Whether there is a scratch folder for what is fetched and read more than once.
pub(crate) fn has_scratch() -> bool {
    #[cfg(feature = "remote")]
    return remote::has_scratch();
    #[cfg(not(feature = "remote"))]
    false
}

/// Where bytes are kept that are read more than once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// In memory.
    Memory,
    /// In a file of the scratch folder.
    Scratch,
}

/// What keeps bytes as long as it lives.
pub trait Keeper: Debug + Send + Sync {}

/// What tells apart two states of an object of the same length.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum Version {
    /// When it was last written, in nanoseconds since 1970.
    Modified(u64),
    /// The tag that a server gives to this content.
    Tag(String),
}

/// Some bytes of an object. They need not be aligned. Dropping the window releases them.
#[derive(Debug)]
pub struct Window(Bytes);

#[derive(Debug)]
enum Bytes {
    /// An empty range cannot be mapped.
    None,
    /// The range is noted until it is unmapped: the fields are dropped in this order.
    Mapped {
        _noted: Noted,
        map: Mmap,
    },
    Owned(Vec<u8>),
    /// A part of what other windows show as well.
    Shared(Arc<Vec<u8>>, Range<usize>),
}

impl Window {
    /// Mapped bytes; `None` for an empty range.
    pub(crate) fn mapped(map: Option<(Noted, Mmap)>) -> Window {
        Window(map.map_or(Bytes::None, |(noted, map)| Bytes::Mapped { _noted: noted, map }))
    }

    /// The bytes `within` a buffer that others use as well.
    ///
    /// # Panics
    /// If `within` is not within the buffer.
    pub fn shared(bytes: Arc<Vec<u8>>, within: Range<usize>) -> Window {
        assert!(within.start <= within.end && within.end <= bytes.len(), "a window beyond its buffer");
        Window(Bytes::Shared(bytes, within))
    }
}

impl From<Vec<u8>> for Window {
    fn from(bytes: Vec<u8>) -> Window {
        Window(Bytes::Owned(bytes))
    }
}

impl Deref for Window {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Bytes::None => &[],
            Bytes::Mapped { map, .. } => map,
            Bytes::Owned(bytes) => bytes,
            Bytes::Shared(bytes, within) => &bytes[within.clone()],
        }
    }
}
