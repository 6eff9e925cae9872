//! Attempts at a run, each in a folder of its own: the unsplit run in `.trephine`, a part in `.trephine/parts/NAME`.
//!
//! Only the attempt's own process ever writes there, so parts on several machines need no lock, on any file system: a
//! part claims a name by creating the folder, and the others only read it. Work that two attempts did is there twice,
//! with equal bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::delta::record::Side;
use crate::durable::atomic_file;
use crate::durable::{folder, journal};
use crate::run::identity::RunIdentity;
use crate::run::layout::{ATTEMPT, JOURNAL, PARTS, STATE};
use crate::run::parts::part_id::Part;
use crate::run::unit::{JournalEntry, Unit, UnitId, Work};
use crate::storage::regular_file;
use crate::{Error, Result};

/// How, where and on which inputs an attempt runs. None of it determines a byte of the output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttemptInfo {
    /// Which part; `None` for everything that is missing.
    pub part: Option<Part>,
    /// The machine's name in its cluster.
    pub host: String,
    /// The process ID there.
    pub process: u32,
    /// Start time in seconds since 1970 by that machine's clock.
    pub started: u64,
    /// Number of compute threads.
    pub threads: usize,
    /// Memory budget (peak resident memory) in bytes.
    pub memory: u64,
    /// The locations of the inputs, for the assembly: absolute paths, or names in the Hugging Face cache.
    pub places: BTreeMap<Side, Vec<String>>,
    /// The files that the run writes to its output folder.
    #[serde(default)]
    pub outputs: BTreeSet<String>,
    /// The whole run.
    pub run: Work,
    /// This attempt's share of it.
    pub share: Work,
    /// The part of its share that was not done when it began.
    pub ahead: Work,
}

impl AttemptInfo {
    /// Writes it to the folder of the attempt.
    ///
    /// # Errors
    /// A full disk, or another error of the file system.
    pub fn write(&self, attempt: &Path) -> Result<()> {
        let path = attempt.join(ATTEMPT);
        let json = serde_json::to_vec_pretty(self).map_err(|e| {
            Error::unexpected("cannot write the information about the attempt as JSON").path(&path).because(e)
        })?;
        atomic_file::write(&path, |file| file.write_all(&json)).map(drop)
    }
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The name of this machine. Slurm's name comes first, because its nodes may have other names than their systems.
pub fn host() -> String {
    host_by(|name| std::env::var(name).ok())
}

fn host_by(variable: impl Fn(&str) -> Option<String>) -> String {
    variable("SLURMD_NODENAME")
        .or_else(sysinfo::System::host_name)
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "unknown".into())
}

/// The absolute path of an existing file or folder; other names unchanged.
pub fn place(spec: &str) -> String {
    let path = Path::new(spec);
    let absolute = path.exists().then(|| std::path::absolute(path).ok()).flatten();
    absolute.map_or(spec.to_owned(), |path| path.to_string_lossy().into_owned())
}

/// An attempt as read from its folder, possibly while it is still running. `R` is its command's record of a unit.
#[derive(Debug)]
pub struct Attempt<R> {
    /// Its folder.
    pub folder: PathBuf,
    /// The run's identity; `None` where that cannot be read.
    pub identity: Option<RunIdentity>,
    /// How and where it runs, where that can be read.
    pub info: Option<AttemptInfo>,
    /// The finished units by its journal, up to the end or to the first damage.
    pub units: Vec<Unit<R>>,
    /// The first damage in the journal.
    pub damage: Option<Error>,
}

impl<R: DeserializeOwned> Attempt<R> {
    /// Reads the attempt in `folder`; `None` where the journal is missing or empty: not yet begun, or removed.
    ///
    /// # Errors
    /// A journal that cannot be read.
    pub fn read(folder: &Path) -> Result<Option<Attempt<R>>> {
        let path = folder.join(JOURNAL);
        match fs::symlink_metadata(&path) {
            Ok(data) if data.len() > 0 => {}
            _ => return Ok(None),
        }
        let journal::Prefix { records, damage, .. } = match journal::replay_prefix(&path) {
            Ok(read) => read,
            // Removed since.
            Err(_) if !path.exists() => return Ok(None),
            Err(e) => return Err(e),
        };
        Ok(Some(Attempt::new(folder, records, damage)))
    }

    /// The attempt in `folder` whose journal holds `records`.
    pub fn new(folder: &Path, records: Vec<JournalEntry<R>>, damage: Option<Error>) -> Attempt<R> {
        let mut records = records.into_iter();
        let identity = records.next().and_then(|first| match first {
            JournalEntry::Begin(identity) => Some(*identity),
            _ => None,
        });
        let info = regular_file::read(&folder.join(ATTEMPT))
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let units = records.filter_map(JournalEntry::into_unit).collect();
        Attempt { folder: folder.to_owned(), identity, info, units, damage }
    }
}

impl<R> Attempt<R> {
    /// Its name for people: which part, on which machine.
    pub fn name(&self) -> String {
        match &self.info {
            Some(AttemptInfo { part: Some(part), host, process, .. }) => {
                format!("part {part} on {host} (process {process})")
            }
            Some(AttemptInfo { host, process, .. }) if self.is_of_part() => {
                format!("the completion on {host} (process {process})")
            }
            _ if self.is_of_part() => {
                format!("the part in {}", self.folder.file_name().unwrap_or_default().to_string_lossy())
            }
            _ => "the unsplit run".into(),
        }
    }

    /// Whether its folder is among those of the parts.
    pub fn is_of_part(&self) -> bool {
        self.folder.parent().and_then(Path::file_name).is_some_and(|parent| parent == PARTS)
    }
}

/// The attempts of parts in the output folder `out`, in the order of their folders' names.
///
/// # Errors
/// A folder or journal that cannot be read.
pub fn of_parts<R: DeserializeOwned>(out: &Path) -> Result<Vec<Attempt<R>>> {
    let mut attempts = Vec::new();
    for folder in folders(out)? {
        attempts.extend(Attempt::read(&folder)?);
    }
    Ok(attempts)
}

/// All attempts in the output folder `out`, the unsplit run first.
///
/// # Errors
/// A folder or journal that cannot be read.
pub fn all<R: DeserializeOwned>(out: &Path) -> Result<Vec<Attempt<R>>> {
    let unsplit = Attempt::read(&out.join(STATE))?;
    Ok(unsplit.into_iter().chain(of_parts(out)?).collect())
}

/// The folders of parts in name order, with or without a journal.
///
/// # Errors
/// A folder that cannot be read.
pub fn folders(out: &Path) -> Result<Vec<PathBuf>> {
    let parts = out.join(STATE).join(PARTS);
    let failed = |e| Error::unexpected("cannot look for the parts of the run").path(&parts).because(e);
    let entries = match fs::read_dir(&parts) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        // No part is a link, nor hidden: what is there under such a name is somebody else's.
        let is_ours = !entry.file_name().as_encoded_bytes().starts_with(b".");
        if is_ours && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

/// Creates a folder with an unused name for `part`, or for everything that is missing.
///
/// # Errors
/// A folder that cannot be created.
pub fn take_folder(out: &Path, part: Option<Part>) -> Result<PathBuf> {
    let parts = out.join(STATE).join(PARTS);
    folder::create(&parts)?;
    let host: String = host()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' })
        .take(60)
        .collect();
    let which = part.map_or("rest".into(), |part| format!("{}-of-{}", part.index(), part.of()));
    let nanoseconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    for count in 0..1000u64 {
        let name = format!("{which}-{:x}-{host}-{}", nanoseconds.wrapping_add(count), std::process::id());
        let path = parts.join(name);
        match fs::create_dir(&path) {
            Ok(()) => {
                folder::sync(&parts)?;
                return Ok(path);
            }
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(Error::unexpected("cannot create a part's folder").path(&path).because(e)),
        }
    }
    Err(Error::unexpected("cannot create a part's folder: 1000 names are taken").path(&parts))
}

/// Bytes of the results of all finished units, each counted once, according to the journals.
pub fn result_bytes<R>(attempts: &[Attempt<R>]) -> u64 {
    let units = attempts.iter().flat_map(|attempt| &attempt.units);
    let sizes: BTreeMap<&UnitId, u64> =
        units.filter_map(|unit| Some((&unit.id, unit.written?.bytes))).collect();
    sizes.values().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_its_clusters_name() {
        assert_eq!(host_by(|name| (name == "SLURMD_NODENAME").then(|| "node7".into())), "node7");
        assert!(!host_by(|_| None).is_empty());
    }

    #[test]
    fn places_are_from_the_root_and_names_stay() {
        assert_eq!(place("Qwen/Qwen3-32B"), "Qwen/Qwen3-32B");
        assert!(place("src").ends_with("/src") && place("src").starts_with('/'));
    }
}
