//! What an earlier run left in an analysis' folder. Every finished module is a line of the journal, its numbers in it.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::checkpoint::identity::{Change, Identity};
use crate::commands::analyze::quartet::{Analyzing, Checkpoints};
use crate::commands::analyze::record::{ANALYSIS, Analysis, ModuleAnalysis};
use crate::durable::checksums::Checksums;
use crate::durable::finding::B3SUMS;
use crate::durable::finding::Level;
use crate::durable::journal::Journal;
use crate::durable::lock::Lock;
use crate::durable::lock::STATE;
use crate::durable::{atomic_file, folder};
use crate::run::identity::simd_level;
use crate::{Error, Result};

/// All that decides an analysis' bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Begin {
    /// Version of the program.
    pub trephine: String,
    /// The options that decide the result.
    pub options: Map<String, Value>,
    /// Instruction set that the products run on.
    pub simd: String,
    /// The files that are read, by checkpoint.
    pub inputs: BTreeMap<String, Identity>,
}

/// One record of the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Entry {
    /// What the run is of. Always the first.
    Begin(Box<Begin>),
    /// A module is done.
    Module(Box<ModuleAnalysis>),
}

/// What is in the output folder.
pub enum Found {
    /// A finished analysis of the same inputs and options.
    Done(Box<Analysis>),
    /// Nothing, or a run to go on with.
    Open {
        /// Appended to after each module.
        journal: Journal<Entry>,
        /// Finished modules.
        done: HashMap<String, ModuleAnalysis>,
        /// Keeps others out.
        lock: Lock,
    },
}

impl Begin {
    /// For the run at hand.
    ///
    /// # Errors
    /// Options that JSON cannot hold.
    pub fn new(job: &Analyzing, all: &Checkpoints) -> Result<Begin> {
        let options = match serde_json::to_value(&job.asking) {
            Ok(Value::Object(map)) => map,
            _ => return Err(Error::unexpected("cannot write the options as JSON")),
        };
        let trephine = env!("CARGO_PKG_VERSION").into();
        Ok(Begin { trephine, options, simd: simd_level().into(), inputs: all.identities() })
    }

    /// In words, the first thing in which `self` (this run) differs from `before`. Where `timeless`, a file that was only
    /// written again counts as the same.
    fn difference(&self, before: &Begin, timeless: bool) -> Option<String> {
        if self.trephine != before.trephine {
            return Some(format!("it was made by version {}, this is {}", before.trephine, self.trephine));
        }
        if self.simd != before.simd {
            return Some(format!(
                "it was made with {} instructions, this machine has {}",
                before.simd, self.simd
            ));
        }
        if self.options != before.options {
            let [then, now] = [before, self].map(|b| Value::Object(b.options.clone()));
            return Some(format!("its options were {then} and are {now}"));
        }
        if let Some(word) = self
            .inputs
            .keys()
            .chain(before.inputs.keys())
            .find(|word| self.inputs.contains_key(*word) != before.inputs.contains_key(*word))
        {
            return Some(format!("only one of the two has --{}", word.replace('_', "-")));
        }
        self.inputs.iter().find_map(|(word, now)| {
            let changes = before.inputs[word].changes(now);
            let change = changes.iter().find(|c| !(timeless && matches!(c, Change::Touched(_))))?;
            Some(format!("the checkpoint of --{} is another one: {change}", word.replace('_', "-")))
        })
    }
}

/// Opens the output folder for the run `begin`: takes its lock, and replays what an earlier run has done.
///
/// # Errors
/// A folder that holds something else, that another run writes to, or that holds a run of other inputs or options.
pub fn open(job: &Analyzing, begin: &Begin) -> Result<Found> {
    let out = &job.out;
    folder::refuse_foreign(out, &[], &[], &[ANALYSIS, B3SUMS])?;
    folder::create(out)?;
    let lock = Lock::acquire(out)?;
    if job.running.overwrite {
        clear(out)?;
    } else if out.join(B3SUMS).exists() {
        let found = finished(out, begin);
        lock.remove()?;
        return found.map(|analysis| Found::Done(Box::new(analysis)));
    }
    for folder in [out, &out.join(STATE)] {
        atomic_file::remove_leftovers(folder)?;
    }
    let (mut journal, entries) = Journal::open(&journal_path(out))?;
    let mut done = HashMap::new();
    match entries.first() {
        None => journal.append(&Entry::Begin(Box::new(begin.clone())))?,
        Some(Entry::Begin(before)) => {
            if let Some(text) = begin.difference(before, false) {
                return Err(changed(out, &text));
            }
            for entry in entries.into_iter().skip(1) {
                if let Entry::Module(module) = entry {
                    done.insert(module.name.clone(), *module);
                }
            }
        }
        Some(Entry::Module(_)) => {
            return Err(Error::input("the journal does not begin as an analysis' does")
                .path(out)
                .hint("--overwrite starts anew"));
        }
    }
    Ok(Found::Open { journal, done, lock })
}

/// Where the journal lies.
pub fn journal_path(out: &Path) -> std::path::PathBuf {
    out.join(STATE).join("journal")
}

/// A folder with checksums was whole; it is this run's if its record says so, and still whole if its files agree.
fn finished(out: &Path, begin: &Begin) -> Result<Analysis> {
    let path = out.join(ANALYSIS);
    let text = fs::read_to_string(&path)
        .map_err(|e| Error::decide("the folder holds checksums, but no analysis").path(&path).because(e))?;
    let analysis: Analysis = serde_json::from_str(&text).map_err(|e| {
        Error::input("the finished analysis cannot be read")
            .path(&path)
            .because(e)
            .hint("--overwrite starts anew")
    })?;
    let before = Begin {
        trephine: analysis.trephine.clone(),
        options: analysis.options.clone(),
        simd: analysis.simd.clone(),
        inputs: analysis.inputs.clone(),
    };
    if let Some(text) = begin.difference(&before, true) {
        return Err(changed(out, &text));
    }
    let sums = Checksums::read(out)?.verify(&[], &|_| ());
    match sums.findings.into_iter().find(|finding| finding.level == Level::Error) {
        None => Ok(analysis),
        Some(finding) => {
            let what = format!("the folder holds a finished analysis that is no longer whole: {finding}");
            Err(Error::decide(what).path(out).hint("give another --out, or --overwrite to start anew"))
        }
    }
}

fn changed(out: &Path, text: &str) -> Error {
    Error::decide(format!("the folder holds an analysis that this one cannot go on with: {text}"))
        .path(out)
        .hint("give the same inputs and options, another --out, or --overwrite to start anew")
}

/// Removes what an earlier run left, checksums first: from then on the folder does not pass for whole.
fn clear(out: &Path) -> Result<()> {
    for path in [out.join(B3SUMS), out.join(ANALYSIS), journal_path(out)] {
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::unexpected("cannot remove an earlier run").path(&path).because(e));
            }
            _ => {}
        }
    }
    folder::sync(out)
}
