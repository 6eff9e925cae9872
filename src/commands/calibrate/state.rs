//! A calibration's folder, and which of its layers are done.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::identity::{Begin, Record};
use super::options::Calibration;
use crate::calibration::layout::{INDEX, IndexInput};
use crate::durable::checksums::Checksums;
use crate::durable::digest::hash_file;
use crate::durable::finding::B3SUMS;
use crate::durable::inside::is_component;
use crate::durable::lock::STATE;
use crate::durable::{Journal, Level, Lock, Written, atomic_file, folder};
use crate::storage::regular_file;
use crate::{Error, Result};

/// A line of the journal.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum StateEntry {
    Begin(Box<Begin>),
    Layer { file: String, bytes: u64, blake3: String, inputs: BTreeMap<String, IndexInput>, hidden: String },
}

impl StateEntry {
    pub fn layer(
        file: String,
        written: Written,
        inputs: BTreeMap<String, IndexInput>,
        hidden: Written,
    ) -> StateEntry {
        let (bytes, blake3) = (written.bytes, written.blake3.to_hex().to_string());
        StateEntry::Layer { file, bytes, blake3, inputs, hidden: hidden.blake3.to_hex().to_string() }
    }
}

/// A finished file of the calibration.
#[derive(Clone, Debug)]
pub(super) struct Done {
    file: String,
    blake3: blake3::Hash,
    inputs: BTreeMap<String, IndexInput>,
}

/// A run in progress.
pub(super) struct State {
    out: PathBuf,
    journal: Journal<StateEntry>,
    /// The finished layers, from the first one on.
    pub layers: Vec<Done>,
    /// The file of the inputs outside the layers.
    pub last: Option<(String, Written, BTreeMap<String, IndexInput>)>,
    pub notes: Vec<String>,
    pub lock: Lock,
}

/// What the folder contains.
pub(super) enum EarlierState {
    /// Nothing, or part of this run.
    Open(Box<State>),
    /// The finished calibration.
    Done(Box<Record>, Lock),
}

impl State {
    /// The file of the hidden states after a layer.
    pub fn hidden_path(&self, layer: usize) -> PathBuf {
        self.out.join(STATE).join(format!("hidden-{layer:05}"))
    }

    /// The hidden states to resume with.
    pub fn hidden(&self) -> Option<PathBuf> {
        self.layers.len().checked_sub(1).map(|layer| self.hidden_path(layer))
    }

    /// Records a finished layer, and removes the hidden states that are no longer needed.
    pub fn append(&mut self, entry: StateEntry) -> Result<()> {
        self.journal.append(&entry)?;
        if let StateEntry::Layer { file, blake3, inputs, .. } = entry {
            let blake3 = parse(&blake3)?;
            self.layers.push(Done { file, blake3, inputs });
        }
        if let Some(before) = self.layers.len().checked_sub(2) {
            remove(&self.hidden_path(before))?;
        }
        Ok(())
    }

    pub fn inputs(&self) -> impl Iterator<Item = (String, IndexInput)> {
        let last = self.last.iter().map(|(_, _, inputs)| inputs);
        let inputs = self.layers.iter().map(|done| &done.inputs).chain(last);
        inputs.flat_map(|inputs| inputs.iter().map(|(name, input)| (name.clone(), input.clone())))
    }

    pub fn files(&self) -> impl Iterator<Item = (String, blake3::Hash)> {
        let last = self.last.iter().map(|(file, written, _)| (file.clone(), written.blake3));
        self.layers.iter().map(|done| (done.file.clone(), done.blake3)).chain(last)
    }
}

/// Opens the folder, and takes over what is done.
pub(super) fn open(job: &Calibration, begin: &Begin) -> Result<EarlierState> {
    let out = &job.out;
    refuse_foreign(out)?;
    folder::create(out)?;
    let lock = Lock::acquire(out)?;
    for place in [out.clone(), out.join(STATE)] {
        atomic_file::remove_leftovers(&place)?;
    }
    if job.overwrite {
        clear(out)?;
    }
    if out.join(B3SUMS).is_file() {
        return Ok(EarlierState::Done(Box::new(finished(out, begin)?), lock));
    }
    let (journal, entries) = Journal::open(&out.join(STATE).join("journal"))?;
    let mut state =
        State { out: out.clone(), journal, layers: Vec::new(), last: None, notes: Vec::new(), lock };
    let mut entries = entries.into_iter();
    match entries.next() {
        None => state.journal.append(&StateEntry::Begin(Box::new(begin.clone())))?,
        Some(StateEntry::Begin(before)) => match begin.difference(&before) {
            None => replay(&mut state, entries)?,
            Some(what) => return Err(other_run(out, &what)),
        },
        Some(StateEntry::Layer { .. }) => return Err(other_run(out, "its journal has no beginning")),
    }
    Ok(EarlierState::Open(Box::new(state)))
}

/// Takes over the layers in the journal, up to the last one for which all files and its hidden states are intact.
fn replay(state: &mut State, entries: impl Iterator<Item = StateEntry>) -> Result<()> {
    let mut hidden = Vec::new();
    for entry in entries {
        let StateEntry::Layer { file, bytes, blake3, inputs, hidden: digest } = entry else { continue };
        let expected = Written { bytes, blake3: parse(&blake3)? };
        let path = state.out.join(&file);
        if !is_ours(&file) || !path.is_file() || hash_file(&path)? != expected {
            state.notes.push(format!("{file} is not what was written; it is computed again"));
            break;
        }
        // A layer that was computed again has a second entry.
        if let Some(again) = state.layers.iter().position(|done| done.file == file) {
            state.layers.truncate(again);
            hidden.truncate(again);
        }
        state.layers.push(Done { file, blake3: expected.blake3, inputs });
        hidden.push(parse(&digest)?);
    }
    // The hidden states of one layer are kept, or of two if a kill came in between.
    while let Some(expected) = hidden.pop() {
        let path = state.hidden_path(hidden.len());
        if path.is_file() && hash_file(&path)?.blake3 == expected {
            return Ok(());
        }
        state.layers.pop();
    }
    Ok(())
}

fn parse(hex: &str) -> Result<blake3::Hash> {
    blake3::Hash::from_hex(hex).map_err(|e| Error::input("a digest in the journal is damaged").because(e))
}

fn other_run(out: &Path, what: &str) -> Error {
    Error::decide(format!("cannot resume: the folder belongs to a different run ({what})"))
        .path(out)
        .hint("give another --out, or --overwrite to start over")
}

/// Reads a finished calibration: a folder with checksums is complete, and belongs to this run if its index says so and
/// its files are intact.
fn finished(out: &Path, begin: &Begin) -> Result<Record> {
    let path = out.join(INDEX);
    let text =
        regular_file::read(&path).map_err(|e| other_run(out, "it has no calibration.json").because(e))?;
    let record: Record = serde_json::from_slice(&text)
        .map_err(|e| other_run(out, "its calibration.json cannot be read").because(e))?;
    if record.run != begin.digest()? {
        return Err(other_run(out, "it is a finished calibration with a different model, text or --k"));
    }
    let found = Checksums::read(out)?.verify(&[], &|_| ()).findings;
    match found.into_iter().find(|finding| finding.level == Level::Error) {
        None => Ok(record),
        Some(finding) => {
            let what = format!("the folder has a finished calibration that is damaged: {finding}");
            Err(Error::decide(what).path(out).hint("give another --out, or --overwrite to start over"))
        }
    }
}

fn is_ours(name: &str) -> bool {
    let file = name.starts_with("calibration-") && name.ends_with(".safetensors") && is_component(name);
    file || name == INDEX || name == B3SUMS
}

/// Refuses a folder with files that no calibration writes.
fn refuse_foreign(out: &Path) -> Result<()> {
    let begun = out.join(STATE).join("journal").is_file() || out.join(INDEX).is_file();
    folder::refuse_others(out, |name| begun && is_ours(name))
}

/// Removes the files of an earlier run, checksums first, so that the folder no longer counts as complete.
fn clear(out: &Path) -> Result<()> {
    remove(&out.join(B3SUMS))?;
    for place in [out.to_owned(), out.join(STATE)] {
        let failed = |e| Error::unexpected("cannot list").path(&place).because(e);
        for entry in fs::read_dir(&place).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
            if is_ours(&name) || name == "journal" || name.starts_with("hidden-") {
                remove(&place.join(name))?;
            }
        }
    }
    folder::sync(out)
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(Error::unexpected("cannot remove a file that the run no longer needs").path(path).because(e))
        }
        _ => Ok(()),
    }
}

/// Removes what only an unfinished run needs; the lock goes last.
pub(super) fn tidy(lock: Lock, out: &Path) -> Result<()> {
    let state = out.join(STATE);
    if let Ok(entries) = fs::read_dir(&state) {
        for name in entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()) {
            if name == "journal" || name.starts_with("hidden-") {
                remove(&state.join(name))?;
            }
        }
    }
    lock.remove()?;
    folder::sync(out)
}
