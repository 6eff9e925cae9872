//! Opening and reading whole files that are expected to be small: regular files of a bounded size, nothing else.
//!
//! A pipe in place of a config would wait for ever, `/dev/zero` would fill the memory. So a file is opened without
//! waiting, is looked at before it is read, and is read no further than it may be long.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::{Error, Result};

/// The longest config, index, record or other small file that is read whole, in bytes.
pub(crate) const SMALL_FILE: u64 = 64 << 20;

/// Opens a regular file for reading, through links. Anything else is an error, and is never waited for.
///
/// # Errors
/// What the system answers; `InvalidInput` for what is no regular file.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    check(&file)?;
    Ok(file)
}

/// Whether an open file is a regular one.
///
/// # Errors
/// It is none.
pub(crate) fn check(file: &File) -> io::Result<()> {
    if file.metadata()?.is_file() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "this is not a regular file"))
}

/// Opens a regular file of at most `limit` bytes, to be read as it streams by. What it grows by meanwhile is not read.
///
/// # Errors
/// As [`open`]; `InvalidData` for a longer file.
pub(crate) fn open_within(path: &Path, limit: u64) -> io::Result<io::Take<File>> {
    let file = open(path)?;
    let length = file.metadata()?.len();
    if length > limit {
        let what = format!("the file has {length} bytes, and at most {limit} are read of one of its kind");
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    Ok(file.take(limit))
}

/// The bytes of a regular file of at most `limit` bytes.
///
/// # Errors
/// As [`open_within`].
pub(crate) fn read_within(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut file = open_within(path, limit)?;
    let length = file.get_ref().metadata()?.len();
    let mut bytes = Vec::with_capacity(usize::try_from(length.min(limit)).unwrap_or(0));
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The bytes of a regular file of at most [`SMALL_FILE`] bytes.
///
/// # Errors
/// As [`read_within`].
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    read_within(path, SMALL_FILE)
}

/// The text of a regular file of at most [`SMALL_FILE`] bytes.
///
/// # Errors
/// As [`read_within`]; `InvalidData` for bytes that are not UTF-8.
pub(crate) fn read_text(path: &Path) -> io::Result<String> {
    String::from_utf8(read(path)?)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the text is not UTF-8"))
}

/// The error for an input file that could not be read: bad input where it is not what was expected there, otherwise
/// unexpected.
pub(crate) fn cannot_read(path: &Path, source: io::Error) -> Error {
    use io::ErrorKind::{InvalidData, InvalidInput, IsADirectory};
    let bad = matches!(source.kind(), InvalidData | InvalidInput | IsADirectory);
    let error = if bad { Error::input("cannot read") } else { Error::unexpected("cannot read") };
    error.path(path).because(source)
}

/// [`read`], with this crate's error, and `None` for a file that does not exist.
///
/// # Errors
/// As [`read`].
pub(crate) fn read_if_any(path: &Path) -> Result<Option<Vec<u8>>> {
    match read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(cannot_read(path, e)),
    }
}

/// The length and the blake3 of a regular file of at most [`SMALL_FILE`] bytes; `None` if it does not exist.
///
/// # Errors
/// As [`open_within`], with this crate's error.
pub(crate) fn hash_if_any(path: &Path) -> Result<Option<(u64, blake3::Hash)>> {
    let hashed = open_within(path, SMALL_FILE).and_then(|mut file| {
        let mut hasher = blake3::Hasher::new();
        io::copy(&mut file, &mut hasher)?;
        Ok((hasher.count(), hasher.finalize()))
    });
    match hashed {
        Ok(hashed) => Ok(Some(hashed)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(cannot_read(path, e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_of_a_bounded_size_are_read() {
        let home = tempfile::tempdir().unwrap();
        let [file, pipe, zero] = ["file", "pipe", "zero"].map(|name| home.path().join(name));
        std::fs::write(&file, "12345").unwrap();
        assert_eq!(read_within(&file, 5).unwrap(), b"12345");
        assert!(read_within(&file, 4).unwrap_err().to_string().contains("has 5 bytes, and at most 4"));
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &zero).unwrap();
        for path in [&pipe, &zero, &home.path().to_owned()] {
            assert_eq!(
                read(path).unwrap_err().to_string(),
                "this is not a regular file",
                "{}",
                path.display()
            );
        }
    }
}
