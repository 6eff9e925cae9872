//! What an earlier run left in the output folder, and whether this one may go on with it.

use crate::commands::extract::attempts::entry::Entry;
use crate::commands::extract::output::files::{FILES, MANIFEST};
use crate::run::layout::{LOG, STATE};
use std::fs;
use std::path::{Path, PathBuf};

use crate::commands::extract::attempts::attempt;
use crate::commands::extract::attempts::attempt::Attempt;
use crate::commands::extract::attempts::completed;
use crate::commands::extract::attempts::completed::{Finished, check_same};
use crate::commands::extract::options::Extraction;
use crate::commands::extract::output::existing::finished;
use crate::commands::extract::output::manifest::Manifest;
use crate::commands::extract::plan::Inputs;
use crate::commands::extract::run_identity::Begin;
use crate::durable::journal::Journal;
use crate::durable::lock::Lock;
use crate::durable::{atomic_file, folder};
use crate::run::layout::HEARTBEAT;
use crate::run::layout::{HOW, JOURNAL, PARTS, SHARDS};
use crate::{Error, Result};

/// What is in the output folder.
pub enum Found {
    /// A finished run of the same inputs and options, and the lock under which to tidy up behind it.
    Done(Box<Manifest>, Lock),
    /// Nothing, or a run to go on with, and the lock that keeps others out.
    Open(Box<Ledger>, Lock),
}

/// Where an attempt writes to, and what it and others have done so far.
pub struct Ledger {
    /// Where shards lie.
    pub shards: PathBuf,
    /// Appended to after each unit of work.
    pub journal: Journal<Entry>,
    /// What is finished.
    pub done: Finished,
    /// Remarks for the user.
    pub notes: Vec<String>,
}

/// Opens the output folder for the unsplit run `begin`: takes its lock, and takes over what earlier runs and parts have
/// done.
///
/// # Errors
/// A folder that holds something else, that another run writes to, or that holds a run of other inputs or options.
pub fn open(job: &Extraction, begin: &Begin, inputs: &Inputs) -> Result<Found> {
    let (out, other_simd) = (&job.out, job.running.other_simd);
    refuse_foreign(out)?;
    folder::create(out)?;
    let lock = Lock::acquire(out)?;
    if job.running.overwrite {
        clear(out)?;
    } else if out.join(FILES[5]).exists() {
        return match finished(out, begin, inputs, other_simd) {
            Ok(manifest) => Ok(Found::Done(Box::new(manifest), lock)),
            // The folder is to be as it was.
            Err(error) => lock.remove().and(Err(error)),
        };
    }
    let parts = attempt::of_parts(out)?;
    check_same(&parts, begin, other_simd, out)?;
    let state = out.join(STATE);
    let shards = state.join(SHARDS);
    folder::create(&shards)?;
    for folder in [out, &state, &shards] {
        atomic_file::remove_leftovers(folder)?;
    }
    let (mut journal, records) = Journal::open(&state.join(JOURNAL))?;
    if records.is_empty() {
        journal.append(&Entry::Begin(Box::new(begin.clone())))?;
    }
    let begun_once = |(at, entry): (usize, &Entry)| matches!(entry, Entry::Begin(_)) == (at == 0);
    if !records.iter().enumerate().all(begun_once) {
        return Err(twice_begun(out));
    }
    let mut attempts = vec![Attempt::of(&state, records, None)];
    check_same(&attempts, begin, other_simd, out)?;
    attempts.extend(parts);
    let mut notes: Vec<String> = completed::damages(&attempts).chain(completed::at_work(&attempts)).collect();
    let done = Finished::gather(&attempts, &|_| true, &mut notes)?;
    done.check_inputs(&attempts, begin, inputs, out)?;
    Ok(Found::Open(Box::new(Ledger { shards, journal, done, notes }), lock))
}

fn twice_begun(out: &Path) -> Error {
    Error::input("the journal does not begin as a run's does").path(out).hint("--overwrite starts anew")
}

/// A folder with anything that no run writes is left alone. `README.md` alone does not make a folder ours.
pub fn refuse_foreign(out: &Path) -> Result<()> {
    folder::refuse_foreign(out, &[STATE, MANIFEST], &FILES, &[LOG])
}

/// Removes what an earlier run left, checksums first: from then on the folder does not pass for whole.
fn clear(out: &Path) -> Result<()> {
    clear_files(out)?;
    let state = out.join(STATE);
    [JOURNAL, SHARDS, PARTS, HOW, HEARTBEAT].iter().try_for_each(|name| removed(&state.join(name)))?;
    folder::sync(out)
}

/// Removes the files of a finished run.
///
/// # Errors
/// What cannot be removed.
pub fn clear_files(out: &Path) -> Result<()> {
    FILES.iter().rev().chain([&LOG]).try_for_each(|file| removed(&out.join(file)))
}

/// Removes a file, or a folder with all that is in it; none is as good.
///
/// # Errors
/// What cannot be removed.
pub fn removed(path: &Path) -> Result<()> {
    let gone = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match gone {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::unexpected("cannot remove what an earlier run left").path(path).because(e))
        }
        _ => Ok(()),
    }
}
