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
        Err(e) => return Err(not_created(path, e)),
        Ok(()) => {}
    }
    sync(parent)
}

/// A file in the way is for the user to decide on; all else is the file system's.
fn not_created(path: &Path, e: io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => {
            Error::decide("cannot create the folder, for a file is in its place")
                .path(path)
                .because(e)
                .hint("give another folder, or move the file away")
        }
        _ => Error::unexpected("cannot create the folder")
            .path(path)
            .because(e)
            .hint("give a folder in a place that you may write to"),
    }
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

/// Refuses an output folder that holds anything but hidden files, `always`, and, where one of `marks` tells that an earlier run
/// has written there, `files`.
///
/// # Errors
/// As [`refuse_others`].
pub fn refuse_foreign(out: &Path, marks: &[&str], files: &[&str], always: &[&str]) -> Result<()> {
    let begun = marks.iter().any(|mark| out.join(mark).symlink_metadata().is_ok());
    refuse_others(out, |name| always.contains(&name) || (begun && files.contains(&name)))
}

/// Refuses an output folder that holds anything but hidden files and what is `ours`, by name.
///
/// # Errors
/// [`Kind::Decide`](crate::Kind::Decide) with the name of what is foreign; a folder that cannot be read.
pub fn refuse_others(out: &Path, ours: impl Fn(&str) -> bool) -> Result<()> {
    let entries = match fs::read_dir(out) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => {
            let error = Error::decide("the output folder cannot be read").path(out).because(e);
            return Err(error.hint("give another --out: a folder that is new, empty or of an earlier run"));
        }
    };
    let mut names: Vec<String> =
        entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    match names.iter().find(|name| !name.starts_with('.') && !ours(name)) {
        None => Ok(()),
        Some(name) => Err(Error::decide(format!("the output folder holds something else ('{name}')"))
            .path(out)
            .hint("give another --out; nothing in it was touched")),
    }
}

/// Refuses an output folder that is, or holds, what is to be read: writing or `--overwrite` would destroy it.
///
/// # Errors
/// [`Kind::Decide`](crate::Kind::Decide).
pub fn refuse_input(out: &Path, input: &Path) -> Result<()> {
    match (out.canonicalize(), input.canonicalize()) {
        (Ok(out), Ok(input)) if input.starts_with(&out) => {
            let what = format!("the output folder holds what is to be read, {}", input.display());
            Err(Error::decide(what).path(out).hint("give another --out; nothing in it was touched"))
        }
        _ => Ok(()),
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
    use crate::Kind;

    #[test]
    fn folders_are_created_with_all_that_is_missing_above() {
        let home = tempfile::tempdir().unwrap();
        let deep = home.path().join("a/b/c");
        assert!(free_space(&deep).unwrap() > 0);
        create(&deep).unwrap();
        create(&deep).unwrap();
        assert!(deep.is_dir());
        fs::write(home.path().join("file"), "").unwrap();
        for place in ["file", "file/below"] {
            let error = create(&home.path().join(place)).unwrap_err();
            assert_eq!(error.kind(), Kind::Decide, "{error}");
            assert!(error.cure().is_some(), "{error}");
        }
        assert_eq!(parent(Path::new("name")), Path::new("."));
    }
}
