//! Where the files of a checkpoint or adapter lie together: a folder on disk, or a prefix at a server.

use std::fmt::Debug;
use std::io::{BufRead, BufReader, Cursor};
use std::path::{Path, PathBuf};

use crate::storage::mmap::nanoseconds;
use crate::storage::regular_file;
use crate::storage::regular_file::SMALL_FILE;
use crate::storage::{MappedFile, Storage, Version};
use crate::{Error, Result};

/// A place with named files.
pub trait Folder: Debug + Send + Sync {
    /// The place itself, for messages: a path or an address.
    fn location(&self) -> &Path;

    /// Where a file of this name lies, for messages.
    fn path(&self, name: &str) -> PathBuf {
        self.location().join(name)
    }

    /// Whether there is a file of this name. A place that cannot tell without asking for each file says that there is
    /// one: opening it tells.
    ///
    /// # Errors
    /// The place cannot be reached.
    fn has(&self, name: &str) -> Result<bool>;

    /// The names of its files, sorted. A place that lists nothing gives those that a checkpoint or an adapter may
    /// consist of.
    ///
    /// # Errors
    /// The place cannot be listed.
    fn names(&self) -> Result<Vec<String>>;

    /// The names of all its files; `None` where the place lists nothing.
    ///
    /// # Errors
    /// The place cannot be listed.
    fn listed(&self) -> Result<Option<Vec<String>>> {
        self.names().map(Some)
    }

    /// A file of at most `limit` bytes as a whole; `None` if it does not exist.
    ///
    /// # Errors
    /// A longer file, or one that cannot be read.
    fn small(&self, name: &str, limit: u64) -> Result<Option<SmallFile>>;

    /// The same, to be read piece by piece.
    ///
    /// # Errors
    /// As [`small`](Self::small).
    fn read(&self, name: &str, limit: u64) -> Result<Option<Box<dyn BufRead>>> {
        let file = self.small(name, limit)?;
        Ok(file.map(|file| Box::new(Cursor::new(file.bytes)) as Box<dyn BufRead>))
    }

    /// The digest of a small file; `None` if it does not exist.
    ///
    /// # Errors
    /// As [`small`](Self::small).
    fn digest(&self, name: &str) -> Result<Option<FileDigest>> {
        let file = self.small(name, SMALL_FILE)?;
        Ok(file.map(|SmallFile { bytes, version }| FileDigest {
            size: bytes.len() as u64,
            digest: blake3::hash(&bytes),
            version,
        }))
    }

    /// Opens a file that is read in ranges.
    ///
    /// # Errors
    /// The file is missing or cannot be opened.
    fn open(&self, name: &str) -> Result<Box<dyn Storage>>;

    /// The same; `None` for a file that does not exist.
    ///
    /// # Errors
    /// The file cannot be opened.
    fn open_if_any(&self, name: &str) -> Result<Option<Box<dyn Storage>>> {
        if self.has(name)? { self.open(name).map(Some) } else { Ok(None) }
    }

    /// Opens several files, in their order. A place that pays for each request opens them side by side.
    fn open_all(&self, names: &[&str]) -> Vec<Result<Box<dyn Storage>>> {
        names.iter().map(|name| self.open(name)).collect()
    }
}

/// The content of a small file.
#[derive(Clone, Debug)]
pub struct SmallFile {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What tells it apart from another state of the same file.
    pub version: Option<Version>,
}

/// What identifies the content of a small file.
#[derive(Clone, Debug)]
pub struct FileDigest {
    /// Its length in bytes.
    pub size: u64,
    /// The blake3 of its bytes.
    pub digest: blake3::Hash,
    /// What tells it apart from another state of the same file.
    pub version: Option<Version>,
}

/// How much of a file is held at once.
const PIECE: usize = 64 << 10;

/// The endings of weight files that are read.
const WEIGHTS: [&str; 2] = [".safetensors", ".gguf"];

/// A folder on this machine.
#[derive(Debug)]
pub struct LocalFolder(PathBuf);

impl LocalFolder {
    /// The folder `path`.
    pub fn new(path: &Path) -> LocalFolder {
        LocalFolder(path.to_owned())
    }
}

impl Folder for LocalFolder {
    fn location(&self) -> &Path {
        &self.0
    }

    fn has(&self, name: &str) -> Result<bool> {
        // A link whose target is gone does not count as a file.
        Ok(self.0.join(name).exists())
    }

    fn names(&self) -> Result<Vec<String>> {
        let failed = |e| Error::unexpected("cannot list").path(&self.0).because(e);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.0).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let shown = name.to_string_lossy();
            if name.to_str().is_none() && WEIGHTS.iter().any(|end| shown.ends_with(end)) {
                let error = Error::input("the name of a weight file is not UTF-8").path(self.0.join(&name));
                return Err(error.hint("rename it"));
            }
            names.push(shown.into_owned());
        }
        names.sort();
        Ok(names)
    }

    fn small(&self, name: &str, limit: u64) -> Result<Option<SmallFile>> {
        let path = self.0.join(name);
        let bytes = match regular_file::read_within(&path, limit) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(regular_file::cannot_read(&path, e)),
        };
        Ok(Some(SmallFile { bytes, version: modified(&path) }))
    }

    fn read(&self, name: &str, limit: u64) -> Result<Option<Box<dyn BufRead>>> {
        let path = self.0.join(name);
        match regular_file::open_within(&path, limit) {
            Ok(file) => Ok(Some(Box::new(BufReader::with_capacity(PIECE, file)))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(regular_file::cannot_read(&path, e)),
        }
    }

    fn digest(&self, name: &str) -> Result<Option<FileDigest>> {
        let path = self.0.join(name);
        let found = regular_file::hash_if_any(&path)?;
        Ok(found.map(|(size, digest)| FileDigest { size, digest, version: modified(&path) }))
    }

    fn open(&self, name: &str) -> Result<Box<dyn Storage>> {
        Ok(Box::new(MappedFile::open(name, &self.0.join(name))?))
    }
}

fn modified(path: &Path) -> Option<Version> {
    let time = path.metadata().and_then(|data| data.modified()).ok()?;
    nanoseconds(time).map(Version::Modified)
}
