//! Folders that survive a power cut, and how much room is left in them.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use crate::{Error, Result};

/// Creates `path` and whatever is missing above it, durably: a file that is synced inside a folder that was
/// never synced into its own parent can vanish with it.
///
/// # Errors
/// A folder that cannot be created or synced, as one where a file of that name stands.
pub fn create(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = parent(path);
    create(parent)?;
    match fs::create_dir(path) {
        // Somebody else was quicker: as good.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        Err(e) => return Err(Error::unexpected("cannot create the folder").path(path).because(e)),
        Ok(()) => {}
    }
    sync(parent)
}

/// Puts a folder's entries (what was created, renamed or removed in it) on the disk.
///
/// # Errors
/// A folder that cannot be opened or synced.
pub fn sync(folder: &Path) -> Result<()> {
    File::open(folder)
        .and_then(|f| f.sync_all())
        .map_err(|e| Error::unexpected("cannot sync the folder").path(folder).because(e))
}

/// The folder that holds `path`: `.` for a bare name.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        Some(_) => Path::new("."),
        None => path,
    }
}

/// Bytes that this user may still write where `path` is or will be: of the nearest folder above it that
/// exists.
///
/// # Errors
/// A file system that does not tell.
pub fn free_space(path: &Path) -> Result<u64> {
    let mut existing = path;
    while !existing.exists() && parent(existing) != existing {
        existing = parent(existing);
    }
    let stat = rustix::fs::statvfs(existing)
        .map_err(|e| Error::unexpected("cannot tell the free space").path(existing).because(e))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_created_with_all_that_is_missing_above() {
        let home = tempfile::tempdir().unwrap();
        let deep = home.path().join("a/b/c");
        assert!(free_space(&deep).unwrap() > 0);
        create(&deep).unwrap();
        create(&deep).unwrap();
        assert!(deep.is_dir());
        fs::write(home.path().join("file"), "").unwrap();
        assert!(create(&home.path().join("file")).is_err());
        assert_eq!(parent(Path::new("name")), Path::new("."));
    }
}
