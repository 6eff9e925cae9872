//! Locks of the operating system, which end with the process that holds them, however it ends.
//!
//! Only the lock on the file counts, not its existence. So a killed run needs no cleanup, and two runs never write to
//! the same journal.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::durable::folder;
use crate::durable::inside;
use crate::{Error, Result};

pub use crate::durable::inside::STATE;

/// The right to write to an output folder, while this value exists.
#[derive(Debug)]
pub struct Lock {
    // It is never read again: the lock belongs to the open file and ends when that is closed.
    _file: File,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock of the output folder `out`, `OUT/.trephine/lock`, and creates the folder if necessary.
    ///
    /// # Errors
    /// [`Kind::Decide`](crate::Kind::Decide) if another run holds it, with that run's process ID where that is known; a
    /// folder that cannot be written, or whose file system has no locks.
    pub fn acquire(out: &Path) -> Result<Lock> {
        Lock::take(out, false)
    }

    /// The same as [`acquire`](Self::acquire), but continues without a lock where the file system has none: for work
    /// that two processes may safely do at once, where the lock only avoids doing it twice.
    ///
    /// # Errors
    /// The errors of [`acquire`](Self::acquire), except for a file system without locks.
    pub fn acquire_where_there_is_one(out: &Path) -> Result<Lock> {
        Lock::take(out, true)
    }

    fn take(out: &Path, without: bool) -> Result<Lock> {
        inside::refuse_links(out)?;
        let state = out.join(STATE);
        folder::create(&state)?;
        let path = state.join("lock");
        let failed = |e: io::Error| Error::unexpected("cannot lock the output folder").path(&path).because(e);
        loop {
            let mut file = inside::open(&path, OFlags::RDWR | OFlags::CREATE).map_err(failed)?;
            let held = match hold(&file, &path) {
                Err(e) if without && has_no_locks(&e) => Hold::Mine,
                held => held.map_err(failed)?,
            };
            match held {
                Hold::Mine => {
                    // The number is for people only: no decision depends on it.
                    file.set_len(0)
                        .and_then(|()| writeln!(file, "{}", std::process::id()))
                        .map_err(failed)?;
                    return Ok(Lock { _file: file, path });
                }
                Hold::Replaced => {}
                Hold::Theirs => return Err(held_by(out, &file)),
            }
        }
    }

    /// Releases the lock and removes its file, and the folder if it is empty then.
    ///
    /// # Errors
    /// A file that cannot be removed.
    pub fn remove(self) -> Result<()> {
        // Remove it while the lock is held: a process that has the file open already finds it replaced and tries again.
        match fs::remove_file(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(Error::unexpected("cannot remove the lock").path(&self.path).because(e))
            }
            _ => {
                let _ = fs::remove_dir(folder::parent(&self.path));
                Ok(())
            }
        }
    }

    /// The locked file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Whether the error means that the file system has no locks, as with Lustre unless it is mounted with them.
fn has_no_locks(e: &io::Error) -> bool {
    use rustix::io::Errno;
    // ENOSYS, EOPNOTSUPP, ENOLCK.
    let none = [Errno::NOSYS, Errno::OPNOTSUPP, Errno::NOLCK].map(|errno| errno.raw_os_error());
    e.raw_os_error().is_some_and(|code| none.contains(&code))
}

fn held_by(out: &Path, file: &File) -> Error {
    let mut text = String::new();
    // A number is expected, but the file may hold anything.
    let pid = file.take(32).read_to_string(&mut text).ok().and_then(|_| text.trim().parse::<u32>().ok());
    let who = pid.map_or(String::new(), |pid| format!(" (process {pid})"));
    Error::decide(format!("another run{who} is writing to this folder"))
        .path(out)
        .hint("wait until it has ended, stop it, or give another --out")
}

/// The holder of a file's lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// This open file holds it from now on.
    Mine,
    /// Another open file holds it.
    Theirs,
    /// The path no longer refers to this file: another process removed or replaced it between opening and locking, and
    /// a lock on it would keep nobody out.
    Replaced,
}

/// Tries to lock `file`, which was opened at `path`.
///
/// # Errors
/// An error of the operating system, `Unsupported` where the file system has no locks.
pub(crate) fn hold(file: &File, path: &Path) -> io::Result<Hold> {
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(Hold::Theirs),
        Err(TryLockError::Error(e)) => return Err(e),
    }
    let mine = file.metadata()?;
    match fs::metadata(path) {
        Ok(there) if (there.dev(), there.ino()) == (mine.dev(), mine.ino()) => Ok(Hold::Mine),
        Ok(_) => Ok(Hold::Replaced),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Hold::Replaced),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    #[test]
    fn a_held_lock_names_its_holder_and_a_file_alone_means_nothing() {
        let out = tempfile::tempdir().unwrap();
        let first = Lock::acquire(out.path()).unwrap();
        let error = Lock::acquire(out.path()).unwrap_err();
        assert_eq!(error.kind(), Kind::Decide);
        assert!(error.to_string().contains(&format!("(process {})", std::process::id())), "{error}");
        let path = first.path().to_path_buf();
        drop(first);
        assert!(path.exists());
        fs::write(&path, "no number").unwrap();
        drop(Lock::acquire(out.path()).unwrap());
    }

    #[test]
    fn a_holder_that_wrote_nothing_still_holds() {
        let out = tempfile::tempdir().unwrap();
        let first = Lock::acquire(out.path()).unwrap();
        fs::write(first.path(), b"\xff\xfe").unwrap();
        let error = Lock::acquire(out.path()).unwrap_err().to_string();
        assert!(error.contains("another run is writing"), "{error}");
    }

    #[test]
    fn file_systems_without_locks_are_distinguished_from_other_failures() {
        use rustix::io::Errno;
        let answers =
            [(Errno::NOSYS, true), (Errno::OPNOTSUPP, true), (Errno::NOLCK, true), (Errno::IO, false)];
        for (errno, none) in answers {
            assert_eq!(has_no_locks(&errno.into()), none, "{errno}");
        }
    }

    #[test]
    fn a_lock_on_a_removed_file_does_not_count() {
        let out = tempfile::tempdir().unwrap();
        let path = out.path().join("lock");
        let file = File::create(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(hold(&file, &path).unwrap(), Hold::Replaced);
        File::create(&path).unwrap();
        assert_eq!(hold(&file, &path).unwrap(), Hold::Replaced);
    }
}
