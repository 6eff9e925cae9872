//! A file for blocks that are read more than once and do not fit in memory. It has no name from the start, so nothing
//! of it is left however the process ends.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::storage::positioned::{read_exact_at, write_all_at};
use crate::{Error, Result};

/// An open file without a name.
#[derive(Debug)]
pub(crate) struct Spill {
    file: File,
    folder: PathBuf,
    end: AtomicU64,
}

impl Spill {
    /// A new file in `folder`.
    ///
    /// # Errors
    /// The folder cannot be written to.
    pub(crate) fn new(folder: &Path) -> Result<Spill> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!(".trephine-{}-{number}", std::process::id()));
        let failed =
            |e: io::Error| Error::unexpected("cannot write to the scratch folder").path(folder).because(e);
        std::fs::create_dir_all(folder).map_err(failed)?;
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).map_err(failed)?;
        std::fs::remove_file(&path).map_err(failed)?;
        Ok(Spill { file, folder: folder.to_owned(), end: AtomicU64::new(0) })
    }

    /// Writes a block, and returns where.
    pub(crate) fn write(&self, bytes: &[u8]) -> Result<u64> {
        let offset = self.end.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        write_all_at(&self.file, bytes, offset).map_err(|e| {
            Error::unexpected("cannot write to the scratch folder")
                .path(&self.folder)
                .because(e)
                .hint("make room there, or give more --memory")
        })?;
        Ok(offset)
    }

    /// Reads a part of it again.
    pub(crate) fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let failed =
            |e| Error::unexpected("cannot read from the scratch folder").path(&self.folder).because(e);
        read_exact_at(&self.file, out, offset).map_err(failed)
    }
}
