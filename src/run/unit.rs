//! Units of work: what is planned, what is finished, and how the journal records it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::delta::record::TensorRecord;
use crate::durable::digest::Written;
use crate::run::identity::RunIdentity;

/// What a unit of work produces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnitKind {
    /// The result of one module.
    Module,
    /// One file of weights.
    File,
    /// The comparison of a tensor that the output does not hold.
    Compared,
}

impl UnitKind {
    /// For several of them, in a word.
    pub fn plural(self) -> &'static str {
        match self {
            UnitKind::Module => "modules",
            UnitKind::File => "files",
            UnitKind::Compared => "comparisons",
        }
    }
}

/// What distinguishes a unit from every other unit of its run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitId {
    /// What it produces.
    pub kind: UnitKind,
    /// Its name.
    pub name: String,
}

impl UnitId {
    /// A module's.
    pub fn module(name: &str) -> UnitId {
        UnitId { kind: UnitKind::Module, name: name.to_owned() }
    }

    /// A file's.
    pub fn file(name: &str) -> UnitId {
        UnitId { kind: UnitKind::File, name: name.to_owned() }
    }

    /// A comparison's.
    pub fn compared(key: String) -> UnitId {
        UnitId { kind: UnitKind::Compared, name: key }
    }
}

/// A unit of work that is planned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedUnit {
    /// Which one.
    pub id: UnitId,
    /// Bytes of tensors to read, once.
    pub read_bytes: u64,
    /// By the cost model, in millions of floating-point operations.
    pub cost: u64,
}

/// What reading, decoding and hashing a byte costs, in floating-point operations of a large product: 4 GB/s beside some
/// 160 GFLOP/s.
const FLOPS_PER_BYTE: f64 = 40.0;

impl PlannedUnit {
    /// A unit that takes so many floating-point operations beside reading so many bytes.
    pub fn new(id: UnitId, flops: f64, read_bytes: u64) -> PlannedUnit {
        // Whole millions add up to the same in any order.
        let cost = ((flops + FLOPS_PER_BYTE * read_bytes as f64) / 1e6).round().max(1.0) as u64;
        PlannedUnit { id, read_bytes, cost }
    }
}

/// A unit that is finished. `R` is what the command records of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Unit<R> {
    /// Which one.
    pub id: UnitId,
    /// Length and digest of its result, where that is a file.
    pub written: Option<Written>,
    /// The tensors, or parts of tensors, that were read for it.
    pub tensors: Vec<TensorRecord>,
    /// What the command records.
    pub record: R,
}

/// One record of the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JournalEntry<R> {
    /// The run's identity. Always the first.
    Begin(Box<RunIdentity>),
    /// A module is finished.
    Module(JournalLine<R>),
    /// A file of weights is on disk.
    File(JournalLine<R>),
    /// A comparison is finished.
    Compared(JournalLine<R>),
}

/// A finished unit as its line of the journal has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JournalLine<R> {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    blake3: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    tensors: Vec<TensorRecord>,
    #[serde(flatten)]
    record: R,
}

/// The record of a unit of any command, unread.
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
    /// The finished unit; `None` for the run's identity.
    pub fn into_unit(self) -> Option<Unit<R>> {
        let (kind, line) = match self {
            JournalEntry::Begin(_) => return None,
            JournalEntry::Module(line) => (UnitKind::Module, line),
            JournalEntry::File(line) => (UnitKind::File, line),
            JournalEntry::Compared(line) => (UnitKind::Compared, line),
        };
        let JournalLine { name, bytes, blake3, tensors, record } = line;
        // A digest that cannot be read matches no file.
        let digest =
            |hex: String| blake3::Hash::from_hex(hex).unwrap_or_else(|_| blake3::Hash::from_bytes([0; 32]));
        let written = bytes.zip(blake3).map(|(bytes, hex)| Written { bytes, blake3: digest(hex) });
        Some(Unit { id: UnitId { kind, name }, written, tensors, record })
    }
}

/// An amount of work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// Modules, or files of weights where those are the units.
    pub modules: usize,
    /// Comparisons of tensors that the output does not hold.
    pub compared: usize,
    /// Bytes of tensors to read, once.
    pub bytes: u64,
    /// By the cost model, in millions of floating-point operations.
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
    fn a_unit_comes_back_from_its_line_with_the_same_bits() {
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
