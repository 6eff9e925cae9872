//! Folders and files at a server, as the rest of the program sees them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use crate::storage::remote::USED;
use crate::storage::remote::address::{self, Place};
use crate::storage::remote::http::guard;
use crate::storage::remote::http::object::{self, Object, Origin};
use crate::storage::remote::link::fetcher::{Hold, Wanted, link};
use crate::storage::remote::link::spill::Spill;
use crate::storage::remote::places::bucket::BucketFolder;
use crate::storage::remote::places::hub::HubModel;
use crate::storage::remote::places::web::{PROBED, WebFolder};
use crate::storage::remote::settings::settings;
use crate::storage::{Folder, Keeper, Kept, SmallFile, Storage, Version, Window};
use crate::{Error, Result};

/// A file that was opened, or why it was not.
type OpenedFile = Result<Box<dyn Storage>>;

/// The first range of a file: most headers of safetensors are not longer.
const FIRST: u64 = 32 << 10;

/// The longest piece of a header that is asked for at once.
const PIECE: u64 = 4 << 20;

/// The longest header that is fetched ahead of its parsing.
const LONGEST_HEADER: u64 = 16 << 20;

/// An address that has been looked up.
#[derive(Debug)]
pub struct Opened {
    /// The folder, prefix or repository.
    pub folder: Arc<dyn Folder>,
    /// The one file in it, if the address is that of a file.
    pub file: Option<String>,
    /// The whole address, for messages and records; a revision is pinned to its commit.
    pub root: PathBuf,
}

/// Looks up an address. A hub or a bucket is asked for the names of the files.
///
/// # Errors
/// An address that is none or is refused; a server that is out of reach; a repository that is not there.
pub fn open(spec: &str) -> Result<Opened> {
    let address = address::parse(spec)?;
    let variable = |name: &str| std::env::var_os(name);
    USED.store(true, Ordering::Relaxed);
    let (origin, names): (Arc<dyn Origin>, _) = match address.place {
        Place::Web(url) => {
            guard::check_scheme(&url).map_err(|e| e.path(spec))?;
            (Arc::new(WebFolder::new(url)), None)
        }
        Place::Hub { repository, revision, path } => {
            let (model, names) = HubModel::find(&repository, revision.as_deref(), &path, &variable)?;
            (Arc::new(model), Some(names))
        }
        Place::Bucket { bucket, path } => {
            let (folder, names) = BucketFolder::find(&bucket, &path, &variable)?;
            (Arc::new(folder), names)
        }
    };
    let root = match &address.file {
        Some(file) => origin.location().join(file),
        None => origin.location().to_owned(),
    };
    let folder = Arc::new(RemoteFolder { origin, names, read: Mutex::default() });
    Ok(Opened { folder, file: address.file, root })
}

/// A folder at a server.
#[derive(Debug)]
struct RemoteFolder {
    origin: Arc<dyn Origin>,
    /// The names of its files, where the server lists them.
    names: Option<Vec<String>>,
    /// Small files that were read once: a config is read for what it says, and then for its digest.
    read: Mutex<BTreeMap<String, Option<SmallFile>>>,
}

impl Folder for RemoteFolder {
    fn location(&self) -> &Path {
        self.origin.location()
    }

    fn has(&self, name: &str) -> Result<bool> {
        Ok(self.names.as_ref().is_none_or(|names| names.iter().any(|there| there == name)))
    }

    fn names(&self) -> Result<Vec<String>> {
        if let Some(names) = &self.names {
            return Ok(names.clone());
        }
        let mut found = Vec::new();
        for name in PROBED {
            if object::open(&self.origin, name, 1, 0)?.is_some() {
                found.push(name.to_owned());
            }
        }
        if found.is_empty() {
            return Err(Error::input("the address has neither an index nor a model.safetensors")
                .path(self.location())
                .hint("give the address of a folder with model.safetensors.index.json, or of one file"));
        }
        found.sort();
        Ok(found)
    }

    fn listed(&self) -> Result<Option<Vec<String>>> {
        Ok(self.names.clone())
    }

    fn small(&self, name: &str, limit: u64) -> Result<Option<SmallFile>> {
        if !self.has(name)? {
            return Ok(None);
        }
        let lock = || self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(again) = lock().remove(name) {
            return Ok(again);
        }
        let found = object::small(&self.origin, name, limit)?;
        let found = found.map(|(bytes, version)| SmallFile { bytes, version });
        lock().insert(name.to_owned(), found.clone());
        Ok(found)
    }

    fn open(&self, name: &str) -> Result<Box<dyn Storage>> {
        self.open_if_any(name)?.ok_or_else(|| {
            Error::input("a file of the checkpoint is missing")
                .path(self.path(name))
                .hint("the upload is incomplete, or the index belongs to another revision")
        })
    }

    fn open_if_any(&self, name: &str) -> Result<Option<Box<dyn Storage>>> {
        if !self.has(name)? {
            return Ok(None);
        }
        let Some((object, mut head)) = object::open(&self.origin, name, FIRST, 0)? else { return Ok(None) };
        // The length of a safetensors header is its first number: the rest of it is the second request.
        if let (true, Some(length)) = (name.ends_with(".safetensors"), head.first_chunk::<8>()) {
            let end = u64::from_le_bytes(*length).saturating_add(8);
            let held = head.len() as u64;
            if held < end && end <= object.length && end <= LONGEST_HEADER {
                head.extend(object.fetch(&(held..end))?);
            }
        }
        let object = Arc::new(object);
        link().add(Arc::clone(&object));
        Ok(Some(Box::new(RemoteFile { object, head: Mutex::new((0, head)) })))
    }

    fn open_all(&self, names: &[&str]) -> Vec<OpenedFile> {
        let next = Mutex::new(0);
        let opened: Mutex<Vec<Option<OpenedFile>>> = Mutex::new(names.iter().map(|_| None).collect());
        let lock = |mutex: &Mutex<usize>| {
            let mut next = mutex.lock().unwrap_or_else(PoisonError::into_inner);
            *next += 1;
            *next - 1
        };
        std::thread::scope(|scope| {
            for _ in 0..settings().connections.min(names.len()) {
                scope.spawn(|| {
                    while let Some(name) = names.get(lock(&next)) {
                        let file = self.open(name);
                        let at = names.iter().position(|there| there == name).unwrap_or(0);
                        opened.lock().unwrap_or_else(PoisonError::into_inner)[at] = Some(file);
                    }
                });
            }
        });
        let opened = opened.into_inner().unwrap_or_else(PoisonError::into_inner);
        let ended = || Err(Error::unexpected("a thread ended before its file was open"));
        opened.into_iter().map(|file| file.unwrap_or_else(ended)).collect()
    }
}

/// A file at a server.
#[derive(Debug)]
struct RemoteFile {
    object: Arc<Object>,
    /// Bytes of the header from a position on: they are let go when the first tensor is read.
    head: Mutex<(u64, Vec<u8>)>,
}

impl RemoteFile {
    fn check(&self, range: &Range<u64>) -> Result<()> {
        if range.start <= range.end && range.end <= self.object.length {
            return Ok(());
        }
        let what = format!("bytes {range:?} of a file of {} bytes", self.object.length);
        Err(Error::unexpected(what).path(&self.object.location))
    }
}

impl Drop for RemoteFile {
    fn drop(&mut self) {
        link().remove(self.object.id);
    }
}

impl Storage for RemoteFile {
    fn name(&self) -> &str {
        &self.object.name
    }

    fn location(&self) -> &Path {
        &self.object.location
    }

    fn length(&self) -> u64 {
        self.object.length
    }

    fn version(&self) -> Option<Version> {
        self.object.version.clone()
    }

    fn read_range(&self, range: Range<u64>) -> Result<Window> {
        self.check(&range)?;
        if range.is_empty() {
            return Ok(Vec::new().into());
        }
        self.head.lock().unwrap_or_else(PoisonError::into_inner).1 = Vec::new();
        link().read(&self.object, range)
    }

    fn read_ranges(&self, ranges: &[Range<u64>]) -> Result<Vec<Window>> {
        for range in ranges {
            self.check(range)?;
        }
        link().announce(self.object.id, ranges, Wanted::Soon);
        ranges.iter().map(|range| self.read_range(range.clone())).collect()
    }

    fn read_into(&self, start: u64, out: &mut [u8]) -> Result<()> {
        let range = start..start + out.len() as u64;
        self.check(&range)?;
        let mut head = self.head.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, held) = &mut *head;
        if range.start < *at || range.end > *at + held.len() as u64 {
            // A header that is read piece by piece: each one is asked for with as much as there was before.
            let more = (2 * held.len() as u64).clamp(FIRST, PIECE).max(range.end - range.start);
            let end = range.start.saturating_add(more).min(self.object.length);
            *held = self.object.fetch(&(range.start..end))?;
            *at = range.start;
        }
        let within = (range.start - *at) as usize..(range.end - *at) as usize;
        out.copy_from_slice(&held[within]);
        Ok(())
    }

    fn prefetch(&self, range: Range<u64>) {
        if self.check(&range).is_ok() {
            link().announce(self.object.id, &[range], Wanted::Soon);
        }
    }

    fn prefetch_later(&self, range: Range<u64>) {
        if self.check(&range).is_ok() {
            link().announce(self.object.id, &[range], Wanted::Later);
        }
    }

    fn begin_pass(&self, range: Range<u64>) {
        if self.check(&range).is_ok() {
            link().begin_pass(self.object.id, &range);
        }
    }

    fn end_pass(&self, range: Range<u64>) -> Result<Option<blake3::Hash>> {
        self.check(&range)?;
        link().end_pass(&self.object, &range).map(Some)
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn keep(&self, ranges: &[Range<u64>], kept: Kept) -> Result<Option<Box<dyn Keeper>>> {
        for range in ranges {
            self.check(range)?;
        }
        let spill = match (kept, &settings().scratch) {
            (Kept::Memory, _) => None,
            (Kept::Scratch, Some(folder)) => Some(Arc::new(Spill::new(folder)?)),
            (Kept::Scratch, None) => {
                return Err(Error::decide("there is no scratch folder").hint("give --scratch DIR"));
            }
        };
        Ok(Some(Box::new(link().hold(self.object.id, ranges, spill.as_ref()))))
    }
}

impl Keeper for Hold {}
