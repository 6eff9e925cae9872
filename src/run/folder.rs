//! The output folder of a run: what it may hold, what an earlier run left, and what is removed at the end.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::UNIX_EPOCH;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::checkpoint::FileIdentity;
use crate::delta::record::Side;
use crate::durable::checksums::Checksums;
use crate::durable::finding::{B3SUMS, Level};
use crate::durable::folder;
use crate::durable::inside;
use crate::durable::lock::Lock;
use crate::run::attempts::attempt;
use crate::run::attempts::attempt::Attempt;
use crate::run::attempts::completed::Completed;
use crate::run::attempts::gather::check_touched;
use crate::run::identity::changed;
use crate::run::job::{Job, RunOutput};
use crate::run::layout::{
    ATTEMPT, HEARTBEAT, HEARTBEAT_DRAFT, JOURNAL, LONGEST_RECORD, Layout, PARTS, SHARDS, STATE,
};
use crate::run::log::Log;
use crate::run::unit::AnyRecord;
use crate::storage::Version;
use crate::storage::regular_file;
use crate::{Error, Result};

/// The message for a folder in which no run has left anything.
pub(crate) const STATE_HAS_NOTHING: &str = "the folder holds no run, finished or not";

/// The files in `out` of this run or an earlier one, without the checksums.
fn known_files(out: &Path, layout: &Layout) -> Result<BTreeSet<String>> {
    let mut files = layout.outputs.clone();
    for attempt in attempt::all::<AnyRecord>(out)? {
        // Anybody may have written this: only names inside the folder are a run's.
        let named = attempt.info.into_iter().flat_map(|info| info.outputs);
        files.extend(named.filter(|name| inside::is_inside(name)));
    }
    if is_record(&out.join(layout.record))
        && let Ok(checksums) = Checksums::read(out)
    {
        files.extend(checksums.entries().iter().map(|entry| entry.name.clone()));
    }
    Ok(files)
}

/// Whether the file is the record of a run: an unrelated JSON file by that name does not make the folder ours.
fn is_record(path: &Path) -> bool {
    /// All else in it is read past.
    #[derive(Deserialize)]
    struct Head {
        #[allow(dead_code)]
        trephine: IgnoredAny,
    }
    let bytes = regular_file::read_within(path, LONGEST_RECORD);
    bytes.is_ok_and(|bytes| serde_json::from_slice::<Head>(&bytes).is_ok())
}

/// Refuses a folder that holds anything other than the files of runs of this command. A file with the name of an output
/// alone does not make the folder ours.
///
/// # Errors
/// [`Kind::Decide`](crate::Kind::Decide) with the name of the foreign file; a folder or file that cannot be read.
pub(crate) fn refuse_foreign(out: &Path, layout: &Layout) -> Result<()> {
    inside::refuse_links(out)?;
    let begun = out.join(STATE).is_dir() || out.join(layout.record).is_file();
    let known = if begun { known_files(out, layout)? } else { BTreeSet::new() };
    folder::refuse_others(out, |name| {
        let inside = format!("{name}/");
        layout.log == Some(name)
            || (begun
                && (name == B3SUMS || known.contains(name) || known.iter().any(|k| k.starts_with(&inside))))
    })
}

/// Removes what an earlier run left, checksums first: without them the folder no longer counts as complete. The record
/// goes last, so that a killed removal can be continued.
///
/// # Errors
/// A file that cannot be removed.
pub(crate) fn clear(out: &Path, layout: &Layout) -> Result<()> {
    clear_files(out, layout)?;
    [SHARDS, PARTS, ATTEMPT, HEARTBEAT, JOURNAL].iter().try_for_each(|name| removed_state(out, name))?;
    removed(out, layout.record)?;
    folder::sync(out)
}

/// Removes the output files of an earlier run, but not its record.
///
/// # Errors
/// A file that cannot be removed.
pub(crate) fn clear_files(out: &Path, layout: &Layout) -> Result<()> {
    let known = known_files(out, layout)?;
    removed(out, B3SUMS)?;
    let files = known.iter().map(String::as_str).filter(|name| *name != layout.record).chain(layout.log);
    files.into_iter().try_for_each(|file| removed(out, file))?;
    // Deeper ones first.
    let folders: BTreeSet<&Path> =
        known.iter().flat_map(|name| Path::new(name).ancestors().skip(1)).collect();
    let folders = folders.into_iter().rev().filter(|folder| !folder.as_os_str().is_empty());
    folders.into_iter().try_for_each(|folder| {
        inside::remove_empty(out, folder).map_err(|e| {
            Error::unexpected("cannot remove an earlier run's folder").path(out.join(folder)).because(e)
        })
    })
}

/// Removes a finished run's files and its record.
///
/// # Errors
/// A file that cannot be removed.
pub(crate) fn clear_finished(out: &Path, layout: &Layout) -> Result<()> {
    clear_files(out, layout)?;
    removed(out, layout.record)
}

/// Removes what is `below` the output folder: a file, or a folder with all that is in it; none is as good. No link
/// is followed.
///
/// # Errors
/// What cannot be removed.
pub(crate) fn removed(out: &Path, below: impl AsRef<Path>) -> Result<()> {
    let below = below.as_ref();
    inside::remove(out, below).map_err(|e| {
        Error::unexpected("cannot remove what an earlier run left").path(out.join(below)).because(e)
    })
}

/// The same below the folder of state.
///
/// # Errors
/// What cannot be removed.
pub(crate) fn removed_state(out: &Path, name: &str) -> Result<()> {
    removed(out, Path::new(STATE).join(name))
}

/// Whether the folder has checksums. They are written last, so it was complete once.
pub(crate) fn is_finished(out: &Path) -> bool {
    out.join(B3SUMS).exists()
}

/// The output of a folder with checksums, after a check that its record is this run's and that its files still agree
/// with the checksums.
///
/// # Errors
/// A different run; a file that was removed or damaged since; a checkpoint that has changed since.
pub(crate) fn existing<J: Job + ?Sized>(job: &J, out: &Path, other_simd: bool) -> Result<J::Output> {
    let layout = job.layout();
    let output: J::Output = read_record(out, layout.record)?;
    if let Some(text) = job.identity().difference(&output.identity(), other_simd) {
        return Err(changed(out, &text));
    }
    check_whole(out, layout.outputs.iter().map(String::as_str), layout.log)?;
    let touched = written_since(job, &out.join(layout.record));
    check_touched(job, &touched, output.tensors(), out)?;
    Ok(output)
}

/// The record in a finished folder.
///
/// # Errors
/// A record that is missing or cannot be read.
pub(crate) fn read_record<O: RunOutput>(out: &Path, record: &str) -> Result<O> {
    let path = out.join(record);
    let text = regular_file::read_within(&path, LONGEST_RECORD).map_err(|e| {
        Error::decide("the folder holds checksums, but no run's")
            .path(&path)
            .because(e)
            .hint("give the folder that --out named")
    })?;
    serde_json::from_slice(&text).map_err(|e| {
        Error::input("the record of the finished run cannot be read")
            .path(&path)
            .because(e)
            .hint("--overwrite starts anew")
    })
}

/// Checks that no file of a finished run has been removed or damaged since.
pub(crate) fn check_whole<'a>(
    out: &Path,
    mut files: impl Iterator<Item = &'a str>,
    log: Option<&str>,
) -> Result<()> {
    let damaged = |what: String| {
        Error::decide(format!("the folder holds a finished run that is damaged: {what}"))
            .path(out)
            .hint("give another --out, or --overwrite to start anew")
    };
    let checksums = Checksums::read(out)?;
    let listed: BTreeSet<&str> = checksums.entries().iter().map(|entry| entry.name.as_str()).collect();
    if let Some(file) = files.find(|file| !listed.contains(file)) {
        return Err(damaged(format!("its checksums do not list {file}")));
    }
    let unlisted: Vec<&str> = log.into_iter().collect();
    let found = checksums.verify(&unlisted, &|_| ()).findings.into_iter().find(|f| f.level == Level::Error);
    found.map_or(Ok(()), |finding| Err(damaged(finding.to_string())))
}

/// Input files that were modified after the run had written its record, its last step.
fn written_since<J: Job + ?Sized>(job: &J, record: &Path) -> Vec<(Side, String)> {
    let ended = fs::metadata(record).and_then(|data| data.modified()).ok();
    let ended = ended.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map(|since| since.as_nanos());
    let inputs = job.identity().inputs.iter();
    let files = inputs.flat_map(|(side, now)| now.files.iter().map(|file| (*side, file)));
    let written = |file: &FileIdentity| match file.modified {
        Some(Version::Modified(time)) => Some(u128::from(time)),
        _ => None,
    };
    let later = files.filter(|(_, file)| written(file).is_some() && written(file) >= ended);
    later.map(|(side, file)| (side, file.name.clone())).collect()
}

/// Moves the results of parts into the folder of the unsplit run's results, to keep them.
///
/// # Errors
/// A result that cannot be renamed.
pub(crate) fn keep_results<D>(out: &Path, done: &Completed<D>) -> Result<()> {
    let shards = out.join(STATE).join(SHARDS);
    folder::create(&shards)?;
    for (_, unit) in done.units().filter(|(_, unit)| unit.written.is_some()) {
        let kept = shards.join(unit.path.file_name().unwrap_or_default());
        fs::rename(&unit.path, &kept)
            .map_err(|e| Error::unexpected("cannot keep the shard").path(&unit.path).because(e))?;
    }
    folder::sync(&shards)
}

/// Removes what only an unfinished run needs. The journals go first: the checksums exist, so they are no longer needed.
/// The lock goes last, and nothing is removed without it: another run may have begun here.
///
/// # Errors
/// A file that cannot be removed.
pub(crate) fn tidy(lock: Lock, out: &Path, log: Option<&str>, keep_results: bool) -> Result<()> {
    let state = out.join(STATE);
    for name in [JOURNAL, ATTEMPT, HEARTBEAT, HEARTBEAT_DRAFT] {
        removed_state(out, name)?;
    }
    if !keep_results {
        removed_state(out, SHARDS)?;
    }
    let parts = attempt::folders(out)?;
    if let Some(log) = log.filter(|_| !parts.is_empty()) {
        Log::open(&out.join(log))?.take_over(&parts);
    }
    parts.iter().for_each(|part| remove_part(out, part));
    // A part that is still running, on units that another has finished meanwhile, may have written there just now. What
    // it leaves is not used by anyone and is harmless.
    let _ = fs::remove_dir(state.join(PARTS));
    lock.remove()?;
    folder::sync(out)
}

/// Removes the folder of an attempt.
///
/// # Errors
/// What cannot be removed.
pub(crate) fn removed_folder(out: &Path, attempt: &Path) -> Result<()> {
    attempt.strip_prefix(out).map_or(Ok(()), |below| removed(out, below))
}

/// Removes the folder of a part, its journal first, as far as it can be removed.
fn remove_part(out: &Path, part: &Path) {
    let Ok(below) = part.strip_prefix(out) else { return };
    let _ = removed(out, below.join(JOURNAL)).and_then(|()| removed(out, below));
}

/// Whether an attempt belongs to this same run.
pub(crate) fn is_same_run<R, J: Job + ?Sized>(job: &J, attempt: &Attempt<R>, other_simd: bool) -> bool {
    attempt.identity.as_ref().is_some_and(|then| job.identity().difference(then, other_simd).is_none())
}
