//! Files below an output folder, reached without following a link, and the one judge of names that were read from a
//! file.
//!
//! The output folder itself is the user's choice, and may be a link. What lies in it need not be Trephine's doing:
//! a journal may name `../../x`, `.trephine` may be a link to somebody's folder. So a name counts only if it leads
//! to a place inside, and every part of a path below the folder is opened relative to the one before it, with
//! `O_NOFOLLOW`.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, statat, unlinkat};

use crate::storage::regular_file;
use crate::{Error, Result};

/// The folder, inside an output folder, of all that only an unfinished run needs.
pub const STATE: &str = ".trephine";

/// Whether `name` is one part of a path: the name of something in a folder, that leads nowhere else.
pub fn is_component(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0'])
}

/// Whether `name`, of one or more parts with `/` between them, leads to a place inside the folder that it is
/// relative to.
pub fn is_inside(name: &str) -> bool {
    name.split('/').all(is_component)
}

/// An output folder, and a path below it: all from the folder of state on, otherwise the last part.
fn split(path: &Path) -> (PathBuf, PathBuf) {
    let parts: Vec<Component<'_>> = path.components().collect();
    let state = parts.iter().rposition(|part| part.as_os_str() == STATE);
    let at = state.unwrap_or(parts.len().saturating_sub(1));
    let root: PathBuf = parts[..at].iter().collect();
    let root = if root.as_os_str().is_empty() { PathBuf::from(".") } else { root };
    (root, parts[at..].iter().collect())
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Opens the folder `below` the folder `root`. Links lead to `root`, none is followed from there on.
///
/// # Errors
/// A part that is missing, no folder, or a link.
fn open_folder<'a>(root: &Path, below: impl IntoIterator<Item = &'a OsStr>) -> io::Result<OwnedFd> {
    let mut folder = openat(CWD, root, FOLDER, Mode::empty())?;
    for part in below {
        folder = openat(&folder, part, FOLDER | OFlags::NOFOLLOW, Mode::empty())
            .map_err(|e| refused(&folder, part, e.into()))?;
    }
    Ok(folder)
}

/// The error of an open, which says so where a link is the cause.
fn refused(folder: impl AsFd, name: &OsStr, error: io::Error) -> io::Error {
    if is_link(folder, name) {
        let what = "it is a link, and links inside an output folder are not followed";
        return io::Error::new(io::ErrorKind::InvalidInput, what);
    }
    error
}

fn is_link(folder: impl AsFd, name: &OsStr) -> bool {
    kind(folder, name).is_ok_and(|kind| kind == FileType::Symlink)
}

fn kind(folder: impl AsFd, name: &OsStr) -> io::Result<FileType> {
    Ok(FileType::from_raw_mode(statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode))
}

/// The open folder of a file in an output folder, and the file's name.
///
/// # Errors
/// As [`open`].
pub(crate) fn folder_of(path: &Path) -> io::Result<(OwnedFd, OsString)> {
    let (root, below) = split(path);
    let parts: Vec<&OsStr> = below.iter().collect();
    let (name, folders) = parts.split_last().ok_or(io::ErrorKind::InvalidInput)?;
    Ok((open_folder(&root, folders.iter().copied())?, (*name).to_owned()))
}

/// Opens, or creates, a regular file in an output folder, following no link.
///
/// # Errors
/// A link; something else than a regular file; what the file system refuses.
pub(crate) fn open(path: &Path, flags: OFlags) -> io::Result<File> {
    let (folder, name) = folder_of(path)?;
    open_at(&folder, &name, flags)
}

/// The same in an open folder.
///
/// # Errors
/// As [`open`].
pub(crate) fn open_at(folder: impl AsFd, name: &OsStr, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = openat(&folder, name, flags, Mode::from_raw_mode(0o666));
    let file = File::from(opened.map_err(|e| refused(&folder, name, e.into()))?);
    regular_file::check(&file)?;
    Ok(file)
}

/// Removes what is `below` the folder `root`: a file, a link itself, or a folder with all that is in it. Nothing is
/// as good.
///
/// # Errors
/// A part of the way that is a link; what the file system refuses.
pub(crate) fn remove(root: &Path, below: &Path) -> io::Result<()> {
    let parts: Vec<&OsStr> = below.iter().collect();
    let Some((name, folders)) = parts.split_last() else { return Ok(()) };
    if parts.iter().any(|part| *part == ".." || part.as_encoded_bytes().contains(&b'/')) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "this is no name inside the folder"));
    }
    let absent = |e: &io::Error| matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
    match open_folder(root, folders.iter().copied()).and_then(|folder| remove_at(&folder, name)) {
        Err(e) if absent(&e) => Ok(()),
        removed => removed,
    }
}

/// Removes the folder `below` the folder `root` if nothing is in it; one that is not there is as good.
///
/// # Errors
/// A part of the way that is a link; what the file system refuses.
pub(crate) fn remove_empty(root: &Path, below: &Path) -> io::Result<()> {
    use rustix::io::Errno;
    let parts: Vec<&OsStr> = below.iter().collect();
    let Some((name, folders)) = parts.split_last() else { return Ok(()) };
    let folder = match open_folder(root, folders.iter().copied()) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        folder => folder?,
    };
    match unlinkat(&folder, *name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOENT | Errno::NOTDIR) => Ok(()),
        removed => Ok(removed?),
    }
}

fn remove_at(folder: &OwnedFd, name: &OsStr) -> io::Result<()> {
    if kind(folder, name)? != FileType::Directory {
        return Ok(unlinkat(folder, name, AtFlags::empty())?);
    }
    let inner = openat(folder, name, FOLDER | OFlags::NOFOLLOW, Mode::empty())?;
    for entry in Dir::read_from(&inner)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            let name = std::os::unix::ffi::OsStrExt::from_bytes(name.to_bytes());
            match remove_at(&inner, name) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
    }
    Ok(unlinkat(folder, name, AtFlags::REMOVEDIR)?)
}

/// Refuses an output folder in whose state anything is a link: no run puts one there.
///
/// # Errors
/// [`Kind::Decide`](crate::Kind::Decide) with the link; a folder that cannot be read.
pub(crate) fn refuse_links(out: &Path) -> Result<()> {
    let mut open = vec![out.join(STATE)];
    while let Some(path) = open.pop() {
        let failed = |e: io::Error| match e.kind() {
            io::ErrorKind::PermissionDenied => {
                Error::decide("the output folder cannot be read").path(out).because(e)
            }
            _ => Error::unexpected("cannot look for links").path(&path).because(e),
        };
        let kind = match std::fs::symlink_metadata(&path) {
            Ok(data) => data.file_type(),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => continue,
            Err(e) => return Err(failed(e)),
        };
        if kind.is_symlink() {
            return Err(Error::decide("the output folder holds a link where a run keeps its state")
                .path(&path)
                .hint(
                    "links there are not followed: remove it, or give another --out; nothing was touched",
                ));
        }
        if kind.is_dir() {
            let entries = std::fs::read_dir(&path).map_err(failed)?;
            open.extend(entries.flatten().map(|entry| entry.path()));
        }
    }
    Ok(())
}

/// Creates the folders of `name`, a file below `out` in folders of its own, and follows no link on the way.
///
/// # Errors
/// A name that leads outside; a link; what the file system refuses.
pub(crate) fn create_folders(out: &Path, name: &str) -> Result<()> {
    let failed =
        |e: io::Error| Error::unexpected("cannot create the folder of").path(out.join(name)).because(e);
    if !is_inside(name) {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "this is no name inside the folder")));
    }
    let parts: Vec<&OsStr> = Path::new(name).iter().collect();
    for at in 1..parts.len() {
        let folder = open_folder(out, parts[..at - 1].iter().copied()).map_err(failed)?;
        match rustix::fs::mkdirat(&folder, parts[at - 1], Mode::from_raw_mode(0o777)) {
            Ok(()) => rustix::fs::fsync(&folder).map_err(|e| failed(e.into()))?,
            Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(failed(e.into())),
        }
    }
    open_folder(out, parts[..parts.len() - 1].iter().copied()).map(drop).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn names_lead_inside_or_are_refused() {
        for name in ["a", "a b", "..a", "a..", "sub/a"] {
            assert!(is_inside(name), "{name}");
        }
        for name in ["", ".", "..", "/a", "a/", "a//b", "a/../b", "../a", "a\0b"] {
            assert!(!is_inside(name), "{name:?}");
        }
        assert!(is_component("a") && !is_component("sub/a"));
    }

    #[test]
    fn no_link_below_the_folder_is_followed() {
        let home = tempfile::tempdir().unwrap();
        let [out, victim] = ["out", "victim"].map(|name| home.path().join(name));
        fs::create_dir_all(victim.join("deep")).unwrap();
        fs::create_dir(&out).unwrap();
        fs::write(victim.join("file"), "mine").unwrap();
        symlink(&victim, out.join(STATE)).unwrap();
        symlink(&victim, out.join("sub")).unwrap();
        symlink(victim.join("file"), out.join("log")).unwrap();
        let write = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
        for path in [out.join(STATE).join("file"), out.join("log")] {
            let error = open(&path, write).unwrap_err();
            assert!(error.to_string().contains("links inside an output folder"), "{error}");
        }
        let error = refuse_links(&out).unwrap_err();
        assert!(error.to_string().contains("holds a link"), "{error}");
        for below in ["sub/file", ".trephine/file", ".trephine/deep"] {
            assert!(remove(&out, Path::new(below)).is_err() || victim.join("file").exists(), "{below}");
        }
        assert!(remove(&out, Path::new("../victim/file")).is_err());
        assert!(create_folders(&out, "sub/new/file").is_err());
        remove(&out, Path::new("log")).unwrap();
        remove(&out, Path::new(STATE)).unwrap();
        assert!(victim.join("file").exists() && victim.join("deep").exists() && !victim.join("new").exists());
        assert!(!out.join("log").is_symlink() && !out.join(STATE).is_symlink());
        // A folder of its own goes with all that is in it, links as links.
        fs::create_dir_all(out.join("own/deep")).unwrap();
        symlink(&victim, out.join("own/deep/link")).unwrap();
        remove(&out, Path::new("own")).unwrap();
        assert!(!out.join("own").exists() && victim.join("file").exists());
        create_folders(&out, "a/b/file").unwrap();
        assert!(out.join("a/b").is_dir());
    }
}
