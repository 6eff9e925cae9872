//! Verification of a folder against its `B3SUMS`. It reports every error, not only the first.

use crate::durable::finding::{Finding, Level, Problem};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use rayon::prelude::*;
use serde::Serialize;

use crate::durable::checksums::{Checksums, tidy};

use crate::durable::digest::digest;
use crate::durable::finding::{B3SUMS, FileEntry};
use crate::storage::regular_file;

/// The result of a verification.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verification {
    /// Number of files that have the listed digest.
    pub matched: usize,
    /// All findings: first the errors in `B3SUMS` by line, then the files in the listed order, then notes.
    pub findings: Vec<Finding>,
}

impl Verification {
    /// Whether there are no findings other than notes.
    pub fn passed(&self) -> bool {
        self.findings.iter().all(|f| f.level == Level::Note)
    }
}

impl Checksums {
    /// Reads every listed file and compares its digest. Files are read in parallel, each in pieces of 1 MiB. Unlisted
    /// files are noted, except `B3SUMS` itself, those in `ignored`, and everything in folders whose name begins with a
    /// dot. `progress` receives the number of bytes of each piece, from any thread.
    ///
    /// Links to files are followed, because the Hugging Face cache consists of them.
    pub fn verify(&self, ignored: &[&str], progress: &(dyn Fn(u64) + Sync)) -> Verification {
        let mut walk = Walk::default();
        walk.folder(&self.folder, "");
        let checks: Vec<_> = self.entries.par_iter().map(|e| self.check(e, &walk, progress)).collect();
        let matched = checks.iter().filter(|c| c.is_none()).count();
        let listed: BTreeSet<&str> = self.entries.iter().map(|e| tidy(&e.name)).collect();
        let unlisted = |name: &&String| {
            let name = name.as_str();
            !listed.contains(name) && name != B3SUMS && !ignored.contains(&name)
        };
        let notes = walk.files.iter().filter(unlisted).map(|name| Finding::unlisted(name));
        let mut findings = self.findings.clone();
        findings.extend(checks.into_iter().flatten());
        findings.extend(walk.unreadable.iter().cloned());
        findings.extend(notes);
        Verification { matched, findings }
    }

    fn check(&self, entry: &FileEntry, walk: &Walk, progress: &(dyn Fn(u64) + Sync)) -> Option<Finding> {
        let path = self.folder.join(&entry.name);
        let unreadable =
            |e: io::Error| Finding::of(Problem::Unreadable, entry, format!("cannot be read: {e}"));
        match fs::metadata(&path) {
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Some(Finding::of(Problem::Missing, entry, "is missing"));
            }
            Err(e) => return Some(unreadable(e)),
            // Do not open it: a pipe would block forever.
            Ok(m) if !m.is_file() => {
                return Some(Finding::of(Problem::Unreadable, entry, "is not a regular file"));
            }
            // A case-insensitive file system finds a file by a name that it does not have.
            Ok(_) if !walk.bears(tidy(&entry.name)) => {
                return Some(Finding::of(Problem::Missing, entry, "is missing under exactly this name"));
            }
            Ok(_) => {}
        }
        match regular_file::open(&path).and_then(|file| digest(&file, &|n| progress(n))) {
            Err(e) => Some(unreadable(e)),
            Ok(found) if found.blake3 == entry.blake3 => None,
            Ok(found) => {
                let (found, listed) = (found.blake3.to_hex(), entry.blake3.to_hex());
                Some(Finding::of(
                    Problem::Mismatch,
                    entry,
                    format!("has the BLAKE3 {found}, but {listed} is listed"),
                ))
            }
        }
    }
}

/// The names of a folder's files, as the folder itself lists them.
#[derive(Default)]
struct Walk {
    files: BTreeSet<String>,
    // Folders that were not entered, each with a slash at its end: links (which may lead anywhere, even in a cycle) and
    // those whose name begins with a dot.
    skipped: Vec<String>,
    unreadable: Vec<Finding>,
}

impl Walk {
    fn folder(&mut self, folder: &Path, prefix: &str) {
        let entries = match fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>) {
            Ok(entries) => entries,
            Err(e) => {
                let name = if prefix.is_empty() { "." } else { prefix };
                let why = format!("cannot be listed: {e}");
                self.unreadable.push(Finding::new(Problem::Unreadable, Some(name), None, why));
                self.skipped.push(prefix.to_owned());
                return;
            }
        };
        for entry in entries {
            let path = entry.path();
            // A name that is not UTF-8 cannot be listed, but it can be noted.
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            let linked = entry.file_type().is_ok_and(|t| t.is_symlink());
            if !path.is_dir() {
                self.files.insert(name);
            } else if linked || entry.file_name().as_encoded_bytes().starts_with(b".") {
                self.skipped.push(format!("{name}/"));
            } else {
                self.folder(&path, &format!("{name}/"));
            }
        }
    }

    /// Whether `name` is the exact name of a file; true in folders that were not entered.
    fn bears(&self, name: &str) -> bool {
        self.files.contains(name) || self.skipped.iter().any(|folder| name.starts_with(folder))
    }
}
