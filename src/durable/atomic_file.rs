//! Files that are complete or absent: written under a temporary name, synced and renamed, and then their folder
//! is synced.
//!
//! A rename within a folder is atomic, but does not reach the disk by itself: without the first sync, a power failure
//! can leave the name without the bytes; without the second, the bytes without the name.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, OFlags, fsync, renameat, unlinkat};

use crate::durable::digest::Written;
use crate::durable::direct_io::Direct;
use crate::durable::folder;
use crate::durable::inside;
use crate::durable::lock::{Hold, hold};
use crate::{Error, Result};

/// The prefix of the name of every unfinished file.
pub const TEMPORARY: &str = ".tmp-";

const BUFFER: usize = 256 << 10;

/// After this many bytes the system is asked to start writing them, so that the disk works while the rest is computed
/// and the final sync does not wait for everything.
const WRITEBACK: u64 = 8 << 20;

/// A file that is being written. [`finish`](Draft::finish) gives it its name; if it is dropped before that, it
/// leaves nothing.
#[derive(Debug)]
pub struct Draft {
    path: PathBuf,
    /// The folder, open: what takes its name meanwhile is not written to.
    folder: OwnedFd,
    name: OsString,
    temporary: String,
    // None only once it is finished.
    out: Option<Out>,
    given: u64,
    expected: u64,
    broken: bool,
}

/// The path of the bytes to the file.
#[derive(Debug)]
enum Out {
    Cached(BufWriter<Hashed>),
    Direct(Direct),
}

impl Out {
    fn cached(file: File) -> Out {
        let hashed = Hashed { file, hasher: blake3::Hasher::new(), bytes: 0, begun: 0 };
        Out::Cached(BufWriter::with_capacity(BUFFER, hashed))
    }

    fn as_write(&mut self) -> &mut dyn Write {
        match self {
            Out::Cached(out) => out,
            Out::Direct(out) => out,
        }
    }

    /// Flushes everything. Returns the file, its length and its checksum.
    fn finish(self) -> io::Result<(File, u64, blake3::Hash)> {
        match self {
            Out::Cached(out) => {
                let Hashed { file, hasher, bytes, .. } = out.into_inner()?;
                Ok((file, bytes, hasher.finalize()))
            }
            Out::Direct(out) => out.finish(),
        }
    }
}

/// Hashes the written bytes. It sits behind the buffer, so the pieces are large enough for SIMD.
#[derive(Debug)]
struct Hashed {
    file: File,
    hasher: blake3::Hasher,
    bytes: u64,
    /// The number of bytes for which writeback has been started.
    begun: u64,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.file.write(bytes)?;
        self.hasher.update(&bytes[..taken]);
        self.bytes += taken as u64;
        if self.bytes - self.begun >= WRITEBACK {
            begin_writeback(&self.file, self.begun, self.bytes - self.begun);
            self.begun = self.bytes;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Draft {
    /// Begins a new file for `path`. The folder must exist; an existing file of that name stays until the end.
    ///
    /// # Errors
    /// A folder that is missing or cannot be written.
    pub fn create(path: &Path) -> Result<Draft> {
        Draft::begin(path, |file| Ok(Out::cached(file)))
    }

    /// Begins a large file that will not be read soon, and bypasses the page cache where possible. A failed write may
    /// be reported a few writes late, at the latest by [`finish`](Self::finish). It takes [`DIRECT_BYTES`] of memory
    /// and a thread.
    ///
    /// # Errors
    /// The errors of [`create`](Self::create); a thread that cannot be started.
    ///
    /// [`DIRECT_BYTES`]: super::DIRECT_BYTES
    pub fn create_direct(path: &Path) -> Result<Draft> {
        Draft::begin(path, |file| Direct::over(file).map(Out::Direct))
    }

    fn begin(path: &Path, out: impl FnOnce(File) -> io::Result<Out>) -> Result<Draft> {
        let failed = |e| write_failed("cannot begin the file", path, 0, e);
        let (folder, name) = inside::folder_of(path).map_err(failed)?;
        let (temporary, file) = create_temporary(&folder, folder::parent(path)).map_err(failed)?;
        let out = out(file).inspect_err(|_| {
            let _ = unlinkat(&folder, &temporary, AtFlags::empty());
        });
        let (out, path) = (Some(out.map_err(failed)?), path.to_path_buf());
        Ok(Draft { path, folder, name, temporary, out, given: 0, expected: 0, broken: false })
    }

    /// States the expected length of the file, for the message about a full disk. It is not checked.
    #[must_use]
    pub fn expecting(mut self, bytes: u64) -> Draft {
        self.expected = bytes;
        self
    }

    /// The final path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends `bytes`: [`Write::write_all`] with this crate's error.
    ///
    /// # Errors
    /// A full disk, with the number of bytes needed; another error of the file system.
    pub fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.write_all(bytes).map_err(|e| self.failed(e))
    }

    /// Flushes, syncs and renames the file, and syncs the folder. Then the file is complete and on the disk under
    /// its name.
    ///
    /// # Errors
    /// The errors of [`put`](Self::put). An existing file of that name stays, unless only the last step failed: then
    /// the new file is complete, but may not survive a power failure.
    pub fn finish(mut self) -> Result<Written> {
        match self.settle() {
            Ok(written) => Ok(written),
            Err(e) => Err(self.failed(e)),
        }
    }

    fn settle(&mut self) -> io::Result<Written> {
        if self.broken {
            return Err(io::Error::other("a write to it failed before"));
        }
        let finished = self.out.take().ok_or_else(closed)?.finish();
        let renamed = finished.and_then(|(file, bytes, blake3)| {
            file.sync_all()?;
            // The file stays open, and so locked, until it has its name.
            renameat(&self.folder, &self.temporary, &self.folder, &self.name)?;
            Ok(Written { bytes, blake3 })
        });
        if renamed.is_err() {
            self.remove();
        }
        let written = renamed?;
        fsync(&self.folder)?;
        Ok(written)
    }

    fn remove(&self) {
        let _ = unlinkat(&self.folder, &self.temporary, AtFlags::empty());
    }

    fn failed(&self, source: io::Error) -> Error {
        write_failed("cannot write the file", &self.path, self.expected.max(self.given), source)
    }
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.out.as_mut().ok_or_else(closed)?.as_write().write(bytes) {
            Ok(taken) => {
                self.given += taken as u64;
                Ok(taken)
            }
            Err(e) => {
                // An interrupted write is repeated. After any other error the file has a gap, even if the caller
                // ignores the error. The message about a full disk includes these bytes.
                if e.kind() != io::ErrorKind::Interrupted {
                    self.broken = true;
                    self.given += bytes.len() as u64;
                }
                Err(e)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.as_mut().ok_or_else(closed)?.as_write().flush()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        let Some(out) = self.out.take() else { return };
        // Remove the file while its lock is still held, and take the writer apart so that the buffer is not flushed. A
        // failure leaves what a kill would leave, and the next run cleans that up.
        self.remove();
        if let Out::Cached(out) = out {
            let _ = out.into_parts();
        }
    }
}

/// Asks the system to write a range to the disk, without waiting. This is best effort: only the final sync counts.
#[cfg(target_os = "linux")]
fn begin_writeback(file: &File, start: u64, length: u64) {
    // DontNeed drops clean pages from the cache; for dirty pages it starts writeback instead and keeps them.
    let length = std::num::NonZeroU64::new(length);
    let _ = rustix::fs::fadvise(file, start, length, rustix::fs::Advice::DontNeed);
}

#[cfg(not(target_os = "linux"))]
fn begin_writeback(_: &File, _: u64, _: u64) {}

fn closed() -> io::Error {
    io::Error::other("the file is finished")
}

/// Creates a file under a temporary name and locks it. The lock distinguishes a file that is being written from one
/// left by a kill; several processes may share a folder.
fn create_temporary(folder: &OwnedFd, path: &Path) -> io::Result<(String, File)> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    loop {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{TEMPORARY}{}-{count}", std::process::id());
        match inside::open_at(folder, OsStr::new(&name), OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL) {
            Ok(file) => match hold(&file, &path.join(&name)) {
                // Another process cleaned it up first: try another name.
                Ok(Hold::Theirs | Hold::Replaced) => {}
                // If there are no locks here, the lock of the output folder has failed before.
                Ok(Hold::Mine) | Err(_) => return Ok((name, file)),
            },
            // A leftover of a process with the same ID, an earlier one or one on another machine.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
}

/// Writes the whole file `path` with `fill`, durably.
///
/// # Errors
/// The errors of [`Draft::put`]; an error of `fill`.
pub fn write(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<Written> {
    let mut draft = Draft::create(path)?;
    fill(&mut draft).map_err(|e| draft.failed(e))?;
    draft.finish()
}

/// Removes the unfinished files that kills left in `folder` (not in its subfolders), and returns their number. Files
/// that are still being written stay. A missing folder counts as empty.
///
/// # Errors
/// A folder that cannot be read, a leftover that cannot be removed.
pub fn remove_leftovers(folder: &Path) -> Result<usize> {
    let failed = |e: io::Error| Error::unexpected("cannot look for unfinished files").path(folder).because(e);
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(failed(e)),
    };
    let mut removed = 0;
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let ours = entry.file_name().as_encoded_bytes().starts_with(TEMPORARY.as_bytes());
        if ours && entry.file_type().map_err(failed)?.is_file() {
            removed += usize::from(remove_leftover(&entry.path())?);
        }
    }
    Ok(removed)
}

fn remove_leftover(path: &Path) -> Result<bool> {
    let failed = |e: io::Error| Error::unexpected("cannot remove an unfinished file").path(path).because(e);
    let gone = |e: &io::Error| e.kind() == io::ErrorKind::NotFound;
    let file = match inside::open(path, OFlags::RDONLY) {
        Ok(file) => file,
        Err(e) if gone(&e) => return Ok(false),
        Err(e) => return Err(failed(e)),
    };
    if matches!(hold(&file, path), Ok(Hold::Theirs | Hold::Replaced)) {
        return Ok(false);
    }
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if gone(&e) => Ok(false),
        Err(e) => Err(failed(e)),
    }
}

/// The error for a failed write. For a full disk it says so, with the number of bytes needed.
pub(crate) fn write_failed(what: &str, path: &Path, wanted: u64, source: io::Error) -> Error {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    // The kinds of ENOSPC, EDQUOT and EFBIG.
    if !matches!(source.kind(), StorageFull | QuotaExceeded | FileTooLarge) {
        return Error::unexpected(what).path(path).because(source);
    }
    if source.kind() == FileTooLarge {
        return Error::unexpected(format!("{what}, it may not grow so large: {wanted} bytes are needed"))
            .path(path)
            .because(source)
            .hint("raise the limit (ulimit -f) and run the same command again: it goes on where it stopped");
    }
    Error::unexpected(format!("{what}, the disk is full: {wanted} bytes are needed"))
        .path(path)
        .because(source)
        .hint("make room and run the same command again: it continues where it stopped")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_complete_or_absent() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("file");
        let bytes: Vec<u8> = (0..3 * BUFFER + 17).map(|i| (i % 251) as u8).collect();
        let written = write(&path, |out| bytes.chunks(1000).try_for_each(|c| out.write_all(c))).unwrap();
        assert_eq!(written, Written { bytes: bytes.len() as u64, blake3: blake3::hash(&bytes) });
        assert_eq!(fs::read(&path).unwrap(), bytes);

        let mut draft = Draft::create(&path).unwrap();
        draft.put(b"half").unwrap();
        assert_eq!(names(home.path()).len(), 2);
        drop(draft);
        assert!(write(&path, |_| Err(io::Error::other("the filler failed"))).is_err());
        assert_eq!(names(home.path()), ["file"]);
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }

    #[test]
    fn only_what_a_kill_left_is_removed() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join(".tmp-1-1"), "left").unwrap();
        fs::write(home.path().join("kept"), "").unwrap();
        fs::create_dir(home.path().join(".tmp-folder")).unwrap();
        let mut draft = Draft::create(&home.path().join("being written")).unwrap();
        draft.put(b"whole").unwrap();
        assert_eq!(remove_leftovers(home.path()).unwrap(), 1);
        draft.finish().unwrap();
        assert_eq!(names(home.path()), [".tmp-folder", "being written", "kept"]);
        assert_eq!(remove_leftovers(&home.path().join("absent")).unwrap(), 0);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_says_so() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("file");
        let mut draft = Draft::create(&path).unwrap().expecting(3_000_000);
        let Some(Out::Cached(out)) = &mut draft.out else { panic!("not cached") };
        out.get_mut().file = File::options().write(true).open("/dev/full").unwrap();
        let error = draft.put(&vec![0; 2 * BUFFER]).unwrap_err();
        assert_eq!(error.kind(), Kind::Unexpected);
        assert!(error.to_string().contains("the disk is full: 3000000 bytes are needed"), "{error}");
        assert!(error.cure().unwrap().contains("run the same command again"));
        assert!(draft.finish().unwrap_err().to_string().contains("failed before"));
        assert!(names(home.path()).is_empty());
    }

    #[test]
    fn quotas_and_limits_are_full_disks_too() {
        use rustix::io::Errno;
        for (errno, full) in
            [(Errno::NOSPC, true), (Errno::DQUOT, true), (Errno::FBIG, false), (Errno::IO, false)]
        {
            let error = write_failed("cannot write", Path::new("x"), 7, errno.into());
            assert_eq!(error.to_string().contains("the disk is full: 7 bytes"), full, "{error}");
        }
    }
}
