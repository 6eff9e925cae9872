//! Units of work: planned, finished, and as recorded in the journal.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::delta::record::TensorRecord;
use crate::durable::digest::Written;
use crate::run::identity::RunIdentity;
use crate::shared::Name;

/// What a unit of work produces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum UnitKind {
    /// The result of one module.
    Module,
    /// One weight file.
    File,
    /// The comparison of a tensor that the output does not contain.
    Compared,
}

impl UnitKind {
    /// The plural noun.
    pub fn plural(self) -> &'static str {
        match self {
            UnitKind::Module => "modules",
            UnitKind::File => "files",
            UnitKind::Compared => "comparisons",
        }
    }
}

/// The identifier of a unit, unique within its run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitId {
    /// What the unit produces.
    pub kind: UnitKind,
    /// Its name.
    pub name: Name,
}

impl UnitId {
    /// The identifier of a module.
    pub fn module(name: impl Into<Name>) -> UnitId {
        UnitId { kind: UnitKind::Module, name: name.into() }
    }

    /// The identifier of a file.
    pub fn file(name: impl Into<Name>) -> UnitId {
        UnitId { kind: UnitKind::File, name: name.into() }
    }

    /// The identifier of a comparison.
    pub fn compared(key: impl Into<Name>) -> UnitId {
        UnitId { kind: UnitKind::Compared, name: key.into() }
    }
}

/// A planned unit of work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedUnit {
    /// Its identifier.
    pub id: UnitId,
    /// Bytes of tensors to read, each counted once.
    pub read_bytes: u64,
    /// Its cost by the cost model, in millions of floating-point operations.
    pub cost: u64,
}

/// The cost of reading, decoding and hashing one byte, in floating-point operations of a large matrix product: 4 GB/s
/// against about 160 GFLOP/s.
const FLOPS_PER_BYTE: f64 = 40.0;

impl PlannedUnit {
    /// A unit that reads `read_bytes` bytes and computes `flops` floating-point operations.
    pub fn new(id: UnitId, flops: f64, read_bytes: u64) -> PlannedUnit {
        // Integers have the same sum in any order.
        let cost = ((flops + FLOPS_PER_BYTE * read_bytes as f64) / 1e6).round().max(1.0) as u64;
        PlannedUnit { id, read_bytes, cost }
    }
}

/// A finished unit. `R` is the command's record of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Unit<R> {
    /// Its identifier.
    pub id: UnitId,
    /// Length and digest of its result, where that is a file.
    pub written: Option<Written>,
    /// The tensors, or parts of tensors, that were read for it.
    pub tensors: Vec<TensorRecord>,
    /// The command's record.
    pub record: R,
}

/// One record of the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JournalEntry<R> {
    /// The run's identity. Always the first entry.
    Begin(Box<RunIdentity>),
    /// A module is finished.
    Module(JournalLine<R>),
    /// A weight file is on disk.
    File(JournalLine<R>),
    /// A comparison is finished.
    Compared(JournalLine<R>),
}

/// A finished unit in the form of its line in the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JournalLine<R> {
    name: Name,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    blake3: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    tensors: Vec<TensorRecord>,
    #[serde(flatten)]
    record: R,
}

/// The record of a unit of any command, as a JSON object.
pub type AnyRecord = Map<String, Value>;

impl<R> From<Unit<R>> for JournalEntry<R> {
    fn from(unit: Unit<R>) -> JournalEntry<R> {
        let Unit { id: UnitId { kind, name }, written, tensors, record } = unit;
        let bytes = written.map(|written| written.bytes);
        let blake3 = written.map(|written| written.blake3.to_hex().to_string());
        let line = JournalLine { name, bytes, blake3, tensors, record };
        match kind {
            UnitKind::Module => JournalEntry::Module(line),
            UnitKind::File => JournalEntry::File(line),
            UnitKind::Compared => JournalEntry::Compared(line),
        }
    }
}

impl<R> JournalEntry<R> {
    /// The finished unit; `None` for the entry with the run's identity.
    pub fn into_unit(self) -> Option<Unit<R>> {
        let (kind, line) = match self {
            JournalEntry::Begin(_) => return None,
            JournalEntry::Module(line) => (UnitKind::Module, line),
            JournalEntry::File(line) => (UnitKind::File, line),
            JournalEntry::Compared(line) => (UnitKind::Compared, line),
        };
        let JournalLine { name, bytes, blake3, tensors, record } = line;
        // A malformed digest becomes one that matches no file.
        let digest =
            |hex: String| blake3::Hash::from_hex(hex).unwrap_or_else(|_| blake3::Hash::from_bytes([0; 32]));
        let written = bytes.zip(blake3).map(|(bytes, hex)| Written { bytes, blake3: digest(hex) });
        Some(Unit { id: UnitId { kind, name }, written, tensors, record })
    }
}

/// An amount of work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// Modules, or weight files where those are the units.
    pub modules: usize,
    /// Comparisons of tensors that the output does not contain.
    pub compared: usize,
    /// Bytes of tensors to read, each counted once.
    pub bytes: u64,
    /// Cost by the cost model, in millions of floating-point operations.
    pub cost: u64,
}

impl Work {
    /// The sum of `units`.
    pub fn of<'a>(units: impl IntoIterator<Item = &'a PlannedUnit>) -> Work {
        units.into_iter().fold(Work::default(), |sum, unit| {
            let compared = usize::from(unit.id.kind == UnitKind::Compared);
            Work {
                modules: sum.modules + 1 - compared,
                compared: sum.compared + compared,
                bytes: sum.bytes + unit.read_bytes,
                cost: sum.cost + unit.cost,
            }
        })
    }

    /// Whether there is nothing to do.
    pub fn is_none(&self) -> bool {
        self.modules == 0 && self.compared == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Measured {
        value: f64,
        #[serde(default)]
        count: Option<u64>,
    }

    #[test]
    fn a_unit_survives_its_journal_line_bit_for_bit() {
        let written = Some(Written { bytes: 7, blake3: blake3::hash(b"x") });
        let record = Measured { value: 0.1 + 0.2, count: Some(u64::MAX) };
        for (kind, written) in
            [(UnitKind::Module, None), (UnitKind::File, written), (UnitKind::Compared, written)]
        {
            let id = UnitId { kind, name: "a".into() };
            let unit = Unit { id, written, tensors: Vec::new(), record: record.clone() };
            let json = serde_json::to_string(&JournalEntry::from(unit.clone())).unwrap();
            let entry: JournalEntry<Measured> = serde_json::from_str(&json).unwrap();
            assert_eq!(entry.into_unit().unwrap(), unit, "{json}");
            let any: JournalEntry<AnyRecord> = serde_json::from_str(&json).unwrap();
            let any = any.into_unit().unwrap();
            assert_eq!((any.id, any.written), (unit.id, unit.written));
        }
    }
}
