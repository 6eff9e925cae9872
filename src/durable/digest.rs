//! The digest of a file, read in pieces: never mapped, so its pages do not count as this process's memory.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::storage::regular_file;
use crate::{Error, Result};

/// How much of a file is read at once.
pub(crate) const PIECE: usize = 1 << 20;

/// What was written or read: its length and its digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Length in bytes.
    pub bytes: u64,
    /// BLAKE3 of these bytes.
    pub blake3: blake3::Hash,
}

/// Length and digest of one file, read in fixed memory.
///
/// # Errors
/// A file that cannot be read.
pub fn hash_file(path: &Path) -> Result<Written> {
    regular_file::open(path)
        .and_then(|file| digest(&file, &|_| ()))
        .map_err(|e| Error::unexpected("cannot hash the file").path(path).because(e))
}

/// The digest of `file` from where it stands; `progress` is told the bytes of each piece.
///
/// # Errors
/// What the file system answers.
pub(crate) fn digest(mut file: &File, progress: &dyn Fn(u64)) -> io::Result<Written> {
    let (mut hasher, mut bytes, mut piece) = (blake3::Hasher::new(), 0, vec![0; PIECE]);
    loop {
        let taken = match file.read(&mut piece) {
            Ok(0) => return Ok(Written { bytes, blake3: hasher.finalize() }),
            Ok(taken) => taken,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        hasher.update(&piece[..taken]);
        bytes += taken as u64;
        progress(taken as u64);
    }
}
