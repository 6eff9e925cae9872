//! The digest of a file. The file is read in pieces and never mapped, so its pages do not count as memory of
//! the process.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::storage::regular_file;
use crate::{Error, Result};

/// Bytes of a file that are read at once.
pub(crate) const PIECE: usize = 1 << 20;

/// The length and digest of a file that was written or read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Length in bytes.
    pub bytes: u64,
    /// BLAKE3 of the bytes.
    pub blake3: blake3::Hash,
}

/// A BLAKE3 that is written in hex. A checkpoint's record holds one for each of its tensors.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HexDigest([u8; 32]);

impl From<blake3::Hash> for HexDigest {
    fn from(hash: blake3::Hash) -> HexDigest {
        HexDigest(hash.into())
    }
}

impl fmt::Display for HexDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for HexDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for HexDigest {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl<'de> Deserialize<'de> for HexDigest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<HexDigest, D::Error> {
        let hex = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        // A malformed digest becomes one that matches nothing.
        Ok(HexDigest(blake3::Hash::from_hex(hex.as_bytes()).map_or([0; 32], Into::into)))
    }
}

/// Computes length and digest of a file, in constant memory.
///
/// # Errors
/// A file that cannot be read.
pub fn hash_file(path: &Path) -> Result<Written> {
    regular_file::open(path)
        .and_then(|file| digest(&file, &|_| ()))
        .map_err(|e| Error::unexpected("cannot hash the file").path(path).because(e))
}

/// Computes the digest of `file` from its current position; `progress` receives the number of bytes of each piece.
///
/// # Errors
/// An error of the file system.
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
