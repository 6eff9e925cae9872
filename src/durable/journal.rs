//! An append-only journal: one record on each line. Every line is on the disk before the run continues, and the lines
//! are replayed on resume.
//!
//! A line is 16 hex digits, a space, the record as JSON, and a newline. The digits are a BLAKE3 of the previous line's
//! digits and this line's JSON, so a line that was changed, removed, duplicated or moved breaks the chain. A kill can
//! leave one torn line at the end: it is dropped, and its work is done again. A kill cannot cause damage anywhere else,
//! and nothing after such damage is trusted.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::durable::atomic_file::write_failed;
use crate::durable::folder;
use crate::durable::inside;
use crate::durable::lock::{Hold, hold};
use crate::{Error, Result};

/// The digits that the first line is chained to; a new line format needs a new seed.
pub(crate) const SEED: [u8; 16] = *b"trephine.journal";

/// The length of a line's digits and of the space after them.
const PREFIX: usize = 17;

/// The longest line in bytes: a damaged or foreign file must not fill the memory.
const LONGEST: usize = 64 << 20;

/// A journal that is open for writing, by its only writer. `T` is the type of the records.
#[derive(Debug)]
pub struct Journal<T> {
    file: File,
    path: PathBuf,
    end: End,
    torn: u64,
    broken: bool,
    // It holds no `T`, so the journal is Send and Sync for every `T`.
    record: PhantomData<fn(T)>,
}

/// The end of the last complete record, and the digits that the next line is chained to.
#[derive(Clone, Copy, Debug)]
struct End {
    bytes: u64,
    lines: u64,
    chain: [u8; 16],
}

const BEGINNING: End = End { bytes: 0, lines: 0, chain: SEED };

impl<T: Serialize + DeserializeOwned> Journal<T> {
    /// Opens the journal at `path`, or creates an empty one, and replays its records. A torn last line is truncated.
    ///
    /// # Errors
    /// [`Kind::Input`](crate::Kind::Input) for damage before the last line and for a record of a different version;
    /// [`Kind::Decide`](crate::Kind::Decide) if another writer has it open; an error of the file system.
    pub fn open(path: &Path) -> Result<(Journal<T>, Vec<T>)> {
        let failed = |e: io::Error| Error::unexpected("cannot open the journal").path(path).because(e);
        let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CREATE;
        let file = inside::open(path, flags).map_err(failed)?;
        if hold(&file, path).map_err(failed)? != Hold::Mine {
            return Err(Error::decide("another run is writing to this journal")
                .path(path)
                .hint("wait until it has ended"));
        }
        folder::sync(folder::parent(path))?;
        let (records, end) = read(&file, path)?.whole()?;
        let torn = file.metadata().map_err(failed)?.len().saturating_sub(end.bytes);
        if torn > 0 {
            file.set_len(end.bytes).and_then(|()| file.sync_all()).map_err(failed)?;
        }
        Ok((
            Journal { file, path: path.to_path_buf(), end, torn, broken: false, record: PhantomData },
            records,
        ))
    }

    /// Begins a journal at `path`, which must not exist. It takes no lock: only this writer uses the name, which also
    /// works on file systems that have no locks or that several machines share.
    ///
    /// # Errors
    /// An existing file of that name; an error of the file system.
    pub fn create(path: &Path) -> Result<Journal<T>> {
        let failed = |e: io::Error| Error::unexpected("cannot begin the journal").path(path).because(e);
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::EXCL;
        let file = inside::open(path, flags).map_err(failed)?;
        folder::sync(folder::parent(path))?;
        Ok(Journal {
            file,
            path: path.to_path_buf(),
            end: BEGINNING,
            torn: 0,
            broken: false,
            record: PhantomData,
        })
    }

    /// Appends `record`. When it returns, the record is on the disk.
    ///
    /// # Errors
    /// A full disk or another error of the file system; a record that could not be read back (NaN has no JSON), of
    /// which nothing is written. After a failed write all later ones fail too, because the content of the disk is
    /// unknown until the journal is opened again.
    pub fn append(&mut self, record: &T) -> Result<()> {
        let what = "cannot append to the journal";
        if self.broken {
            return Err(Error::unexpected("a write to the journal failed before").path(&self.path));
        }
        let mut line = encode(record).map_err(|e| Error::unexpected(what).path(&self.path).because(e))?;
        let chain = chained(&self.end.chain, &line[PREFIX..]);
        line[..chain.len()].copy_from_slice(&chain);
        line.push(b'\n');
        // One write, so that a kill tears at most this line.
        if let Err(e) = self.file.write_all(&line).and_then(|()| self.file.sync_data()) {
            self.broken = true;
            // This is best effort: the next run drops a torn line as well.
            let _ = self.file.set_len(self.end.bytes);
            return Err(write_failed(what, &self.path, line.len() as u64, e));
        }
        self.end = End { bytes: self.end.bytes + line.len() as u64, lines: self.end.lines + 1, chain };
        Ok(())
    }

    /// Number of records.
    pub fn len(&self) -> u64 {
        self.end.lines
    }

    /// Whether there are no records.
    pub fn is_empty(&self) -> bool {
        self.end.lines == 0
    }

    /// Bytes of the torn last line that was truncated when the journal was opened; 0 if there was none.
    pub fn torn(&self) -> u64 {
        self.torn
    }

    /// The journal's file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Reads the records of the journal at `path`, which a writer may have open, without changing it. A torn last line
/// is ignored.
///
/// # Errors
/// The errors of [`Journal::open`], and a missing journal.
pub fn replay<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    Ok(replay_prefix(path)?.whole()?.0)
}

/// Reads the records like [`replay`], but returns damage together with the records before it, which the chain of
/// checksums still covers.
///
/// # Errors
/// A journal that is missing or cannot be read.
pub fn replay_prefix<T: DeserializeOwned>(path: &Path) -> Result<Prefix<T>> {
    let file = inside::open(path, OFlags::RDONLY);
    read(&file.map_err(|e| Error::unexpected("cannot open the journal").path(path).because(e))?, path)
}

/// The content of a journal up to its end or to the first damage.
#[derive(Debug)]
pub struct Prefix<T> {
    /// The records.
    pub records: Vec<T>,
    /// The damage after them, if there is any.
    pub damage: Option<Error>,
    end: End,
}

impl<T> Prefix<T> {
    fn whole(self) -> Result<(Vec<T>, End)> {
        self.damage.map_or(Ok((self.records, self.end)), Err)
    }
}

/// Reads records up to the end or to the first damage. `path` is for messages.
///
/// # Errors
/// A read that fails.
pub(crate) fn read<T: DeserializeOwned>(file: impl Read, path: &Path) -> Result<Prefix<T>> {
    let failed = |e: io::Error| Error::unexpected("cannot read the journal").path(path).because(e);
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    let mut read = Prefix { records: Vec::new(), damage: None, end: BEGINNING };
    loop {
        line.clear();
        reader.by_ref().take(LONGEST as u64).read_until(b'\n', &mut line).map_err(failed)?;
        let number = read.end.lines + 1;
        let Some(json) = checked(&line, &read.end.chain) else {
            // No line, or a torn one with nothing after it, is the end of the journal.
            if !reader.fill_buf().map_err(failed)?.is_empty() {
                read.damage = Some(damaged(path, number, "does not match its checksum"));
            }
            return Ok(read);
        };
        match serde_json::from_slice(json) {
            Ok(record) => read.records.push(record),
            Err(e) => {
                let how = "was written by a different version of trephine";
                read.damage = Some(damaged(path, number, how).because(e));
                return Ok(read);
            }
        }
        read.end = End {
            bytes: read.end.bytes + line.len() as u64,
            lines: number,
            chain: chained(&read.end.chain, json),
        };
    }
}

/// The JSON of a line that is complete and follows the line with the digits `before`.
fn checked<'a>(line: &'a [u8], before: &[u8; 16]) -> Option<&'a [u8]> {
    let (digits, rest) = line.split_first_chunk::<16>()?;
    let json = rest.strip_prefix(b" ")?.strip_suffix(b"\n")?;
    (chained(before, json) == *digits).then_some(json)
}

/// The digits of a line with this JSON, behind the line with the digits `before`.
pub(crate) fn chained(before: &[u8; 16], json: &[u8]) -> [u8; 16] {
    let hash = blake3::Hasher::new().update(before).update(json).finalize();
    let mut digits = [0; 16];
    digits.copy_from_slice(&hash.to_hex().as_bytes()[..16]);
    digits
}

/// The record as JSON, behind room for the digits and the space. It is parsed again at once, so a record that cannot be
/// replayed is refused now, not on resume.
fn encode<T: Serialize + DeserializeOwned>(record: &T) -> std::result::Result<Vec<u8>, serde_json::Error> {
    let mut line = vec![b' '; PREFIX];
    serde_json::to_writer(&mut line, record)?;
    serde_json::from_slice::<T>(&line[PREFIX..])?;
    if line.len() > LONGEST - 32 {
        return Err(serde::ser::Error::custom(format!("a record of {} bytes is too long", line.len())));
    }
    Ok(line)
}

fn damaged(path: &Path, line: u64, how: &str) -> Error {
    Error::input(format!("the journal is damaged: line {line} {how}"))
        .path(path)
        .hint("the finished work cannot be trusted: start anew with --overwrite")
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_ends_the_writing_and_loses_no_record() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("journal");
        let (mut journal, _) = Journal::<u32>::open(&path).unwrap();
        journal.append(&1).unwrap();
        let real =
            std::mem::replace(&mut journal.file, File::options().write(true).open("/dev/full").unwrap());
        let error = journal.append(&2).unwrap_err();
        assert!(error.to_string().contains("the disk is full: 19 bytes are needed"), "{error}");
        journal.file = real;
        // There is room again, but this writer does not know what the disk holds.
        assert!(journal.append(&3).unwrap_err().to_string().contains("failed before"));
        drop(journal);
        assert_eq!(Journal::<u32>::open(&path).unwrap().1, [1]);
    }
}
