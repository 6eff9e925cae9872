//! Files that are read through memory-mapped windows.
//!
//! # The contract
//! A mapped file must not change while it is read. If another process truncates one, touching a page beyond its new
//! end kills this process with SIGBUS; if another process writes to one, the numbers may be of either state. Two
//! things narrow that: the file's size is compared with the one at opening before every window, and the window's
//! pages are read in at once where the system can (Linux 5.14 and later), which turns a file that is too short, or
//! a disk that fails, into an error. What is left is a truncation while a window is alive. Checkpoints are written
//! once, so this is taken as a condition of use; the program names the file where it happens ([`cut_file`]).
//!
//! Mapped pages count as resident memory. A window unmaps its pages when it is dropped, so what is resident is what
//! is alive.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use memmap2::{Advice, Mmap, MmapOptions};

use crate::storage::cut_file::{self, Notice};
use crate::storage::positioned::read_exact_at;
use crate::storage::regular_file;
use crate::storage::{Storage, Version, Window};
use crate::{Error, Result};

/// Whether no more files may be open.
fn is_too_many(e: &io::Error) -> bool {
    let many = [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE].map(|errno| errno.raw_os_error());
    e.raw_os_error().is_some_and(|code| many.contains(&code))
}

/// One open file of a checkpoint.
#[derive(Debug)]
pub struct MappedFile {
    name: String,
    path: PathBuf,
    file: File,
    size: u64,
    modified: Option<SystemTime>,
    notice: Notice,
}

impl MappedFile {
    /// Opens the file `path`, called `name` in messages and identities.
    ///
    /// # Errors
    /// The file is missing, is not an ordinary one, or the system refuses to open it.
    pub fn open(name: &str, path: &Path) -> Result<MappedFile> {
        let file = regular_file::open(path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::input("a file of the checkpoint is missing")
                .path(path)
                .hint("the download is incomplete: fetch the checkpoint again"),
            io::ErrorKind::InvalidInput => Error::input("this is not an ordinary file").path(path),
            _ if is_too_many(&e) => Error::unexpected("cannot open")
                .path(path)
                .because(e)
                .hint("raise the number of files that may be open: ulimit -n"),
            _ => Error::unexpected("cannot open").path(path).because(e),
        })?;
        let data = file.metadata().map_err(|e| Error::unexpected("cannot read").path(path).because(e))?;
        let (name, path) = (name.to_owned(), path.to_owned());
        let notice = Notice::new(&path);
        Ok(MappedFile { name, path, file, size: data.len(), modified: data.modified().ok(), notice })
    }

    /// The mapping itself, whatever the file's size.
    fn map(&self, range: Range<u64>) -> Result<Window> {
        let length = usize::try_from(range.end - range.start).map_err(|e| {
            Error::unexpected("a window larger than the address space").path(&self.path).because(e)
        })?;
        if length == 0 {
            return Ok(Window::mapped(None));
        }
        // SAFETY: the mapping is private to the returned window and read-only; that nobody changes the file
        // meanwhile is the contract above, which is a condition of use and is checked as far as it can be.
        let map = unsafe { MmapOptions::new().offset(range.start).len(length).map(&self.file) };
        let map = map.map_err(|e| self.failed(e))?;
        let noted = cut_file::note(&map, &self.notice);
        self.populate(&map)?;
        Ok(Window::mapped(Some((noted, map))))
    }

    /// Reads all pages in now, or asks for them early where the system knows no better.
    fn populate(&self, map: &Mmap) -> Result<()> {
        #[cfg(target_os = "linux")]
        match map.advise(Advice::PopulateRead) {
            Ok(()) => return Ok(()),
            // Kernels before 5.14 do not know this advice.
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => {}
            Err(e) => return Err(self.failed(e)),
        }
        // Advice that is not taken costs time only.
        let _ = map.advise(Advice::WillNeed);
        Ok(())
    }

    fn changed(&self, what: String) -> Error {
        Error::input(what)
            .path(&self.path)
            .hint("something writes to the checkpoint: wait until it is whole, then run the command again")
    }

    fn failed(&self, e: io::Error) -> Error {
        Error::unexpected("cannot read")
            .path(&self.path)
            .because(e)
            .hint("the file was changed meanwhile, or its disk fails")
    }
}

impl Storage for MappedFile {
    fn name(&self) -> &str {
        &self.name
    }

    fn location(&self) -> &Path {
        &self.path
    }

    fn length(&self) -> u64 {
        self.size
    }

    fn version(&self) -> Option<Version> {
        self.modified.and_then(nanoseconds).map(Version::Modified)
    }

    fn check_unchanged(&self) -> Result<()> {
        let data = self.file.metadata().map_err(|e| self.failed(e))?;
        if data.len() != self.size {
            return Err(self.changed(format!(
                "the file had {} bytes when it was opened and now has {}",
                self.size,
                data.len()
            )));
        }
        if data.modified().ok() != self.modified {
            return Err(self.changed("the file was written to after it had been opened".to_owned()));
        }
        Ok(())
    }

    fn read_range(&self, range: Range<u64>) -> Result<Window> {
        self.check_unchanged()?;
        if range.end > self.size {
            let what = format!("bytes {range:?} of a file of {} bytes", self.size);
            return Err(Error::unexpected(what).path(&self.path));
        }
        self.map(range)
    }

    fn read_into(&self, start: u64, out: &mut [u8]) -> Result<()> {
        // The ordinary way: a header is copied anyway, and is read before anything is known to be whole.
        read_exact_at(&self.file, out, start).map_err(|e| self.failed(e))
    }

    fn prefetch(&self, range: Range<u64>) {
        let length = range.end - range.start;
        #[cfg(target_vendor = "apple")]
        let _ = rustix::fs::fcntl_rdadvise(&self.file, range.start, length);
        #[cfg(not(target_vendor = "apple"))]
        if let Some(length) = std::num::NonZeroU64::new(length) {
            let _ = rustix::fs::fadvise(&self.file, range.start, Some(length), rustix::fs::Advice::WillNeed);
        }
    }
}

/// A file's time as nanoseconds since 1970; `None` before that.
pub(crate) fn nanoseconds(time: SystemTime) -> Option<u64> {
    u64::try_from(time.duration_since(UNIX_EPOCH).ok()?.as_nanos()).ok()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::MappedFile;
    use crate::storage::Storage;

    #[test]
    fn a_file_cut_between_check_and_mapping_is_an_error_not_a_signal() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        std::fs::write(&path, vec![1; 3 << 20]).unwrap();
        let file = MappedFile::open("m.safetensors", &path).unwrap();
        std::fs::File::options().write(true).open(&path).unwrap().set_len(1 << 20).unwrap();
        let error = file.map(0..3 << 20).unwrap_err();
        assert!(error.to_string().starts_with("cannot read"), "{error}");
        assert!(file.read_range(0..10).unwrap_err().to_string().contains("now has 1048576"));
    }
}
