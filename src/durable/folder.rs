//! Folders: creating them durably, refusing foreign content, and the free space in them.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use crate::{Error, Result};

/// Creates `path` and its missing parents durably: a synced file can vanish together with its folder if that was never
/// synced into its own parent.
///
/// # Errors
/// A folder that cannot be created or synced, for example because a file of that name exists.
pub fn create(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = parent(path);
    create(parent)?;
    match fs::create_dir(path) {
        // Another process created it first, which is fine.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        Err(e) => return Err(not_created(path, e)),
        Ok(()) => {}
    }
    sync(parent)
}

/// The error for a folder that was not created. If a file is in the way, the user must decide; other failures come from
/// the file system.
fn not_created(path: &Path, e: io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => {
            Error::decide("cannot create the folder: a file is in its place")
                .path(path)
                .because(e)
                .hint("give another folder, or move the file away")
        }
        _ => Error::unexpected("cannot create the folder")
            .path(path)
            .because(e)
            .hint("give a folder in a location where you have write permission"),
    }
}

/// Syncs a folder's entries (files created, renamed or removed in it) to the disk.
///
/// # Errors
/// A folder that cannot be opened or synced.
pub fn sync(folder: &Path) -> Result<()> {
    File::open(folder)
        .and_then(|f| f.sync_all())
        .map_err(|e| Error::unexpected("cannot sync the folder").path(folder).because(e))
}

/// The folder that contains `path`: `.` for a bare name.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        Some(_) => Path::new("."),
        None => path,
    }
}

/// Refuses an output folder that holds anything other than hidden files, the files `always`, and, if one of `marks`
/// shows that an earlier run has written there, the files `files`.
///
/// # Errors
/// The errors of [`refuse_others`].
pub fn refuse_foreign(out: &Path, marks: &[&str], files: &[&str], always: &[&str]) -> Result<()> {
    let begun = marks.iter().any(|mark| out.join(mark).symlink_metadata().is_ok());
    refuse_others(out, |name| always.contains(&name) || (begun && files.contains(&name)))
}

/// Refuses an output folder that holds anything other than hidden files and files whose name is `ours`.
///
/// # Errors
/// [`Kind::Decide`](crate::Kind::Decide) with the name of the foreign file; a folder that cannot be read.
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

/// Refuses an output folder that is or contains an input: writing or `--overwrite` would destroy it.
///
/// # Errors
/// [`Kind::Decide`](crate::Kind::Decide).
pub fn refuse_input(out: &Path, input: &Path) -> Result<()> {
    match (out.canonicalize(), input.canonicalize()) {
        (Ok(out), Ok(input)) if input.starts_with(&out) => {
            let what = format!("the output folder contains the input {}", input.display());
            Err(Error::decide(what).path(out).hint("give another --out; nothing in it was touched"))
        }
        _ => Ok(()),
    }
}

/// Free space in bytes for this user at `path`, or at its nearest existing parent.
///
/// # Errors
/// A file system that does not report it.
pub fn free_space(path: &Path) -> Result<u64> {
    let mut existing = path;
    while !existing.exists() && parent(existing) != existing {
        existing = parent(existing);
    }
    let stat = rustix::fs::statvfs(existing)
        .map_err(|e| Error::unexpected("cannot determine the free space").path(existing).because(e))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Whether nothing can be written to a folder that exists.
pub(crate) fn is_read_only(folder: &Path) -> bool {
    rustix::fs::access(folder, rustix::fs::Access::EXISTS).is_ok()
        && rustix::fs::access(folder, rustix::fs::Access::WRITE_OK).is_err()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    #[test]
    fn folders_are_created_with_their_missing_parents() {
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
