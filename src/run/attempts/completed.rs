//! The finished units of all attempts at a run, each once.

use std::collections::HashMap;
use std::path::PathBuf;

use crate::durable::digest::Written;
use crate::run::unit::UnitId;

/// A finished unit.
#[derive(Clone, Debug)]
pub struct Finished<D> {
    /// The file with its result, where it has one.
    pub path: PathBuf,
    /// Length and digest of that file.
    pub written: Option<Written>,
    /// The loaded unit.
    pub done: D,
}

/// The finished units of a run.
#[derive(Debug)]
pub struct Completed<D>(HashMap<UnitId, Finished<D>>);

impl<D> Completed<D> {
    /// No finished units.
    pub fn new() -> Completed<D> {
        Completed(HashMap::new())
    }

    /// Whether a unit is finished.
    pub fn contains(&self, id: &UnitId) -> bool {
        self.0.contains_key(id)
    }

    /// A finished unit.
    pub fn get(&self, id: &UnitId) -> Option<&Finished<D>> {
        self.0.get(id)
    }

    /// All of them, in no particular order.
    pub fn units(&self) -> impl Iterator<Item = (&UnitId, &Finished<D>)> {
        self.0.iter()
    }

    /// Their number.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing is finished.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes of the results.
    pub fn bytes(&self) -> u64 {
        self.0.values().filter_map(|unit| unit.written).map(|written| written.bytes).sum()
    }

    pub(crate) fn insert(&mut self, id: UnitId, path: PathBuf, written: Option<Written>, done: D) {
        self.0.insert(id, Finished { path, written, done });
    }
}

impl<D> Default for Completed<D> {
    fn default() -> Completed<D> {
        Completed::new()
    }
}
