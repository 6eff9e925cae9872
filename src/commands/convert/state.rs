//! What an earlier run left in the output folder, and whether this one may go on with it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use crate::checkpoint::identity::Change;
use crate::commands::convert::record::{CONVERSION, Conversion};
use crate::durable::checksums::Checksums;
use crate::durable::digest::Written;
use crate::durable::finding::B3SUMS;
use crate::durable::finding::Level;
use crate::durable::journal::Journal;
use crate::durable::lock::Lock;
use crate::durable::lock::STATE;
use crate::durable::{atomic_file, digest, folder, journal};
use crate::run::identity::changed;
use crate::{Error, Result};

/// One record of the journal.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Entry {
    /// What the run is of, and every file that it will write. Always the first.
    Begin { conversion: Box<Conversion>, files: BTreeSet<String> },
    /// A file of weights is on disk.
    File { name: String, bytes: u64, blake3: String, non_finite: BTreeMap<String, u64> },
}

/// Finished files of weights by name, each with the values in it that are not finite, by module.
pub(crate) type Done = HashMap<String, (Written, BTreeMap<String, u64>)>;

/// What a run has done so far.
pub(crate) struct State {
    /// Appended to after each file.
    pub journal: Journal<Entry>,
    /// What is done.
    pub done: Done,
    /// Remarks for the user.
    pub notes: Vec<String>,
    /// Keeps others out.
    pub lock: Lock,
}

/// What is in the output folder.
pub(crate) enum Found {
    /// A finished run of the same inputs and options.
    Done(Box<Conversion>, Lock),
    /// Nothing, or a run to go on with.
    Open(Box<State>),
}

/// A run as far as its folder is concerned.
pub(crate) struct Run<'a> {
    pub out: &'a Path,
    pub conversion: &'a Conversion,
    /// Every file that it writes, but for the checksums.
    pub files: &'a BTreeSet<String>,
    /// For each file of weights, which files of which input it is made from.
    pub sources: &'a BTreeMap<String, BTreeSet<(String, String)>>,
}

/// Opens the output folder: takes its lock, and replays what an earlier run has done.
///
/// # Errors
/// A folder that holds something else, that another run writes to, or that holds a run of other inputs or options.
pub(crate) fn open(run: &Run<'_>, overwrite: bool) -> Result<Found> {
    let out = run.out;
    let mut ours = earlier(out);
    ours.extend(run.files.iter().cloned());
    refuse_foreign(out, &ours)?;
    folder::create(out)?;
    let lock = Lock::acquire(out)?;
    if overwrite {
        clear(out, &ours)?;
    } else if out.join(B3SUMS).exists() {
        return match finished(run) {
            Ok(conversion) => Ok(Found::Done(Box::new(conversion), lock)),
            // The folder is to be as it was.
            Err(error) => lock.remove().and(Err(error)),
        };
    }
    atomic_file::remove_leftovers(out)?;
    let (mut journal, entries) = Journal::open(&out.join(STATE).join("journal"))?;
    let (mut done, mut notes) = (HashMap::new(), Vec::new());
    match entries.first() {
        None => journal.append(&Entry::Begin {
            conversion: Box::new(run.conversion.clone()),
            files: run.files.clone(),
        })?,
        Some(Entry::Begin { conversion, .. }) => {
            if let Some(text) = run.conversion.difference(conversion) {
                return Err(changed(out, &text));
            }
            let touched = touched(run.conversion, conversion);
            done = replay(run, &entries, &touched, &mut notes)?;
        }
        Some(Entry::File { .. }) => {
            let hint = "--overwrite starts anew";
            return Err(Error::input("the journal does not begin as a run's does").path(out).hint(hint));
        }
    }
    Ok(Found::Open(Box::new(State { journal, done, notes, lock })))
}

/// Takes what the journal says is done, as far as it is there and its inputs are as they were.
fn replay(
    run: &Run<'_>,
    entries: &[Entry],
    touched: &BTreeSet<(String, String)>,
    notes: &mut Vec<String>,
) -> Result<Done> {
    let mut last = BTreeMap::new();
    for entry in entries {
        if let Entry::File { name, bytes, blake3, non_finite } = entry {
            last.insert(name.as_str(), (*bytes, blake3.as_str(), non_finite));
        }
    }
    let mut done = HashMap::new();
    for (name, (bytes, blake3, non_finite)) in last {
        let made_from = run.sources.get(name);
        let stale = made_from.and_then(|files| files.iter().find(|file| touched.contains(*file)));
        if let Some((_, file)) = stale {
            notes.push(format!("{name} is made again: {file} was written again since"));
            continue;
        }
        let expected = blake3::Hash::from_hex(blake3).ok().map(|blake3| Written { bytes, blake3 });
        let path = run.out.join(name);
        let length = fs::metadata(&path).map(|data| data.len()).ok();
        match expected.filter(|expected| length == Some(expected.bytes)) {
            Some(expected) if digest::hash_file(&path)? == expected => {
                done.insert(name.to_owned(), (expected, non_finite.clone()));
            }
            _ => notes.push(format!("{name} is made again: it is not what was written")),
        }
    }
    Ok(done)
}

/// Files of the inputs whose modification time is another one than when the run began.
fn touched(now: &Conversion, before: &Conversion) -> BTreeSet<(String, String)> {
    let sides =
        now.inputs.iter().filter_map(|(side, now)| Some((side, before.inputs.get(side)?.changes(now))));
    let files = sides.flat_map(|(side, changes)| changes.into_iter().map(move |change| (side, change)));
    let file = |(side, change): (&String, Change)| match change {
        Change::Touched(file) => Some((side.clone(), file)),
        _ => None,
    };
    files.filter_map(file).collect()
}

/// The files that an earlier conversion has written here, or meant to.
fn earlier(out: &Path) -> BTreeSet<String> {
    let journal = out.join(STATE).join("journal");
    let entries =
        if journal.is_file() { journal::replay::<Entry>(&journal).unwrap_or_default() } else { Vec::new() };
    let mut files = match entries.into_iter().next() {
        Some(Entry::Begin { files, .. }) => files,
        _ => BTreeSet::new(),
    };
    if read_record(out).is_ok()
        && let Ok(checksums) = Checksums::read(out)
    {
        files.extend(checksums.entries().iter().map(|entry| entry.name.clone()));
    }
    files
}

/// A folder with anything that no conversion writes is left alone.
fn refuse_foreign(out: &Path, ours: &BTreeSet<String>) -> Result<()> {
    let begun = out.join(STATE).join("journal").is_file() || out.join(CONVERSION).is_file();
    folder::refuse_others(out, |name| {
        let inside = format!("{name}/");
        begun && (name == B3SUMS || ours.contains(name) || ours.iter().any(|file| file.starts_with(&inside)))
    })
}

/// Removes what an earlier run left, checksums first: from then on the folder does not pass for whole.
fn clear(out: &Path, ours: &BTreeSet<String>) -> Result<()> {
    let state = [out.join(STATE).join("journal")];
    let files = ours.iter().filter(|name| *name != CONVERSION).map(|name| out.join(name));
    let paths = [out.join(B3SUMS)].into_iter().chain(files).chain(state).chain([out.join(CONVERSION)]);
    for path in paths {
        match fs::remove_file(&path) {
            Err(e) if !matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Err(Error::unexpected("cannot remove an earlier run").path(path).because(e));
            }
            _ => {}
        }
    }
    folder::sync(out)
}

fn read_record(out: &Path) -> Result<Conversion> {
    let path = out.join(CONVERSION);
    let text = fs::read_to_string(&path).map_err(|e| {
        Error::decide("the folder holds checksums, but no conversion's").path(&path).because(e)
    })?;
    serde_json::from_str(&text).map_err(|e| {
        let hint = "--overwrite starts anew";
        Error::input("the record of the finished conversion cannot be read").path(&path).because(e).hint(hint)
    })
}

/// A folder with checksums was whole; it is this run's if its record says so, and still whole if its files agree.
fn finished(run: &Run<'_>) -> Result<Conversion> {
    let out = run.out;
    let before = read_record(out)?;
    if let Some(text) = run.conversion.difference(&before) {
        return Err(changed(out, &text));
    }
    let ended = fs::metadata(out.join(CONVERSION)).and_then(|data| data.modified()).ok();
    let ended = ended.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map(|since| since.as_nanos());
    let files =
        run.conversion.inputs.iter().flat_map(|(side, now)| now.files.iter().map(move |file| (side, file)));
    for (side, file) in files {
        if file.modified.is_some() && file.modified.map(u128::from) >= ended {
            return Err(changed(out, &format!("{} of the {side} was written again since", file.name)));
        }
    }
    let damaged = |what: String| {
        Error::decide(format!("the folder holds a finished conversion that is no longer whole: {what}"))
            .path(out)
            .hint("give another --out, or --overwrite to start anew")
    };
    let checksums = Checksums::read(out)?;
    let listed: BTreeSet<&str> = checksums.entries().iter().map(|entry| entry.name.as_str()).collect();
    if let Some(file) = run.files.iter().find(|file| !listed.contains(file.as_str())) {
        return Err(damaged(format!("its checksums do not list {file}")));
    }
    let found = checksums.verify(&[], &|_| ()).findings.into_iter().find(|f| f.level == Level::Error);
    found.map_or(Ok(before), |finding| Err(damaged(finding.to_string())))
}

/// Removes what only an unfinished run needs; the lock goes last.
pub(crate) fn tidy(lock: Lock, out: &Path) -> Result<()> {
    let journal: PathBuf = out.join(STATE).join("journal");
    match fs::remove_file(&journal) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(Error::unexpected("cannot remove what the run no longer needs")
                .path(journal)
                .because(e));
        }
        _ => {}
    }
    lock.remove()?;
    folder::sync(out)
}
