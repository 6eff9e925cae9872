//! What an earlier run left in the output folder, and whether this one may go on with it.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::begin::Begin;
use super::digests::tensor_record;
use super::finished::finished;
use super::options::Extraction;
use super::plan::Inputs;
use super::worker::ShardRecord;
use crate::checkpoint::Change;
use crate::ledger::{
    Journal, LeftOut, Lock, Manifest, Shard, Side, TensorRecord, Written, durable, folder, shard,
};
use crate::{Error, Result};

/// The folder inside the output folder that holds what a run needs to go on.
pub const STATE: &str = ".trephine";

/// The files of a finished run, in the order in which they are written; the checksums come last, and only then is the
/// folder whole.
pub const FILES: [&str; 6] = [
    crate::adapter::WEIGHTS,
    crate::adapter::CONFIG,
    SPECTRA,
    MANIFEST,
    CARD,
    crate::ledger::checksums::B3SUMS,
];

/// The singular values of every module.
pub const SPECTRA: &str = "spectra.jsonl.zst";

/// The manifest.
pub const MANIFEST: &str = "extraction.json";

/// The model card.
pub const CARD: &str = "README.md";

/// Times, threads and memory: outside the checksums.
pub const LOG: &str = "extraction.log";

/// One record of the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Entry {
    /// What the run is of. Always the first.
    Begin(Box<Begin>),
    /// A module's shard is on disk.
    Module {
        /// The module.
        name: String,
        /// Length of its shard.
        bytes: u64,
        /// Digest of its shard.
        blake3: String,
    },
    /// A tensor that the adapter does not hold has been compared.
    Compared {
        /// What came out.
        left_out: LeftOut,
        /// What was read for it.
        tensors: Vec<TensorRecord>,
    },
}

/// What is in the output folder.
pub enum Found {
    /// A finished run of the same inputs and options, and the lock under which to tidy up behind it.
    Done(Box<Manifest>, Lock),
    /// Nothing, or a run to go on with.
    Open(Box<Ledger>),
}

/// The journal of a run and what it has done so far.
pub struct Ledger {
    /// The output folder.
    pub out: PathBuf,
    /// Where shards lie.
    pub shards: PathBuf,
    /// Appended to after each unit of work.
    pub journal: Journal<Entry>,
    /// Finished modules.
    pub modules: HashMap<String, (Written, ShardRecord)>,
    /// Finished comparisons.
    pub compared: HashMap<String, (LeftOut, Vec<TensorRecord>)>,
    /// Remarks for the user.
    pub notes: Vec<String>,
    /// Keeps others out.
    pub lock: Lock,
}

/// Opens the output folder for the run `begin`: takes its lock, and replays what an earlier run has done.
///
/// # Errors
/// A folder that holds something else, that another run writes to, or that holds a run of other inputs or options.
pub fn open(job: &Extraction, begin: &Begin, inputs: &Inputs) -> Result<Found> {
    let out = &job.out;
    refuse_foreign(out)?;
    folder::create(out)?;
    let lock = Lock::acquire(out)?;
    if job.running.overwrite {
        clear(out)?;
    } else if out.join(FILES[5]).exists() {
        return match finished(out, begin, inputs, job.running.other_simd) {
            Ok(manifest) => Ok(Found::Done(Box::new(manifest), lock)),
            // The folder is to be as it was.
            Err(error) => lock.remove().and(Err(error)),
        };
    }
    let shards = out.join(STATE).join("shards");
    folder::create(&shards)?;
    for folder in [out, &out.join(STATE), &shards] {
        durable::remove_leftovers(folder)?;
    }
    let (mut journal, entries) = Journal::open(&out.join(STATE).join("journal"))?;
    let mut notes = Vec::new();
    let done = match entries.first() {
        None => {
            journal.append(&Entry::Begin(Box::new(begin.clone())))?;
            Finished::default()
        }
        Some(Entry::Begin(before)) => {
            if let Some(text) = begin.difference(before, job.running.other_simd) {
                return Err(changed(out, &text));
            }
            let touched = touched(begin, before);
            let done = replay(out, &shards, entries, &mut notes)?;
            let modules = done.modules.values().flat_map(|(_, record)| &record.tensors);
            let compared = done.compared.values().flat_map(|(_, tensors)| tensors);
            check_touched(inputs, &touched, modules.chain(compared), out)?;
            done
        }
        Some(_) => return Err(twice_begun(out)),
    };
    let (out, Finished { modules, compared }) = (out.clone(), done);
    Ok(Found::Open(Box::new(Ledger { out, shards, journal, modules, compared, notes, lock })))
}

/// What an earlier run has finished.
#[derive(Default)]
struct Finished {
    modules: HashMap<String, (Written, ShardRecord)>,
    compared: HashMap<String, (LeftOut, Vec<TensorRecord>)>,
}

/// Takes what the journal says is done, as far as it is there: of a module that was done twice the last word counts.
fn replay(out: &Path, shards: &Path, entries: Vec<Entry>, notes: &mut Vec<String>) -> Result<Finished> {
    let (mut done, mut last) = (Finished::default(), BTreeMap::new());
    for entry in entries.into_iter().skip(1) {
        match entry {
            Entry::Begin(_) => return Err(twice_begun(out)),
            Entry::Module { name, bytes, blake3 } => drop(last.insert(name, (bytes, blake3))),
            Entry::Compared { left_out, tensors } => {
                done.compared.insert(left_out.key(), (left_out, tensors));
            }
        }
    }
    for (name, (bytes, blake3)) in last {
        match trusted(shards, &name, bytes, &blake3) {
            Ok((written, record)) => drop(done.modules.insert(name, (written, record))),
            Err(why) => notes.push(format!("{name} is done again: {why}")),
        }
    }
    Ok(done)
}

/// A shard is trusted when its digest is the journal's.
fn trusted(shards: &Path, name: &str, bytes: u64, blake3: &str) -> Result<(Written, ShardRecord)> {
    let path = shards.join(shard::file_name(name));
    let unreadable = || Error::input("its record cannot be read").path(&path);
    let written = Written { bytes, blake3: blake3::Hash::from_hex(blake3).map_err(|_| unreadable())? };
    let shard = Shard::open(&path, written)?;
    let record = shard.metadata().get("record").and_then(|text| serde_json::from_str(text).ok());
    record.map(|record| (written, record)).ok_or_else(unreadable)
}

/// Files whose modification time is another one than when the run began.
fn touched(now: &Begin, before: &Begin) -> Vec<(Side, String)> {
    let sides = now.inputs.iter().filter_map(|(side, now)| Some((side, now, before.inputs.get(side)?)));
    let file = |change| match change {
        Change::Touched(file) => Some(file),
        _ => None,
    };
    sides
        .flat_map(|(side, now, then)| then.changes(now).into_iter().filter_map(file).map(|f| (*side, f)))
        .collect()
}

/// The same sizes and headers at another time may still be other weights: those of `records`, what has been read so
/// far, that lie in such files are hashed again.
pub fn check_touched<'a>(
    inputs: &Inputs,
    touched: &[(Side, String)],
    records: impl Iterator<Item = &'a TensorRecord>,
    out: &Path,
) -> Result<()> {
    for then in
        records.filter(|t| touched.iter().any(|(side, file)| *side == t.checkpoint && *file == t.file))
    {
        let checkpoint = match then.checkpoint {
            Side::Base => Some(&inputs.base),
            Side::Tuned => Some(&inputs.tuned),
            Side::Served => inputs.served.as_ref(),
        };
        let Some((checkpoint, tensor)) = checkpoint.and_then(|c| Some((c, c.tensor(&then.name)?))) else {
            continue;
        };
        if tensor_record(then.checkpoint, checkpoint, tensor, checkpoint.hash(tensor)?) != *then {
            let text =
                format!("the tensor {} of the {} checkpoint has changed since", then.name, then.checkpoint);
            return Err(changed(out, &text));
        }
    }
    Ok(())
}

/// The error for a run that this one cannot go on with.
pub fn changed(out: &Path, text: &str) -> Error {
    Error::decide(format!("the folder holds a run that this one cannot go on with: {text}"))
        .path(out)
        .hint("give the same inputs and options, another --out, or --overwrite to start anew")
}

fn twice_begun(out: &Path) -> Error {
    Error::input("the journal does not begin as a run's does").path(out).hint("--overwrite starts anew")
}

/// A folder with anything that no run writes is left alone.
fn refuse_foreign(out: &Path) -> Result<()> {
    let entries = match fs::read_dir(out) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::decide("the output folder cannot be read").path(out).because(e)),
    };
    let mut names: Vec<String> =
        entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    // `README.md` alone does not make a folder ours.
    let begun = names.iter().any(|name| name == STATE || name == MANIFEST);
    let ours =
        |name: &String| name.starts_with('.') || name == LOG || (begun && FILES.contains(&name.as_str()));
    match names.iter().find(|name| !ours(name)) {
        None => Ok(()),
        Some(name) => Err(Error::decide(format!("the output folder holds something else ('{name}')"))
            .path(out)
            .hint("give another --out; nothing in it was touched")),
    }
}

/// Removes what an earlier run left, checksums first: from then on the folder does not pass for whole.
fn clear(out: &Path) -> Result<()> {
    let failed = |path: &Path, e| Error::unexpected("cannot remove an earlier run").path(path).because(e);
    for file in FILES.iter().rev().chain([&LOG]) {
        let path = out.join(file);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(&path, e)),
            _ => {}
        }
    }
    let state = out.join(STATE);
    for (path, folder) in [(state.join("journal"), false), (state.join("shards"), true)] {
        let removed = if folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match removed {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(&path, e)),
            _ => {}
        }
    }
    folder::sync(out)
}
