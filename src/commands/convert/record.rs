//! What a conversion was of: the journal's first record, and `conversion.json` in the finished folder.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::checkpoint::identity::{Change, Identity};
use crate::run::identity::differing_option;

/// The file in a finished folder that says how it was made. Its bytes depend on inputs and options alone.
pub const CONVERSION: &str = "conversion.json";

/// All that decides a conversion's bytes, and what came out beside the weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Conversion {
    /// Version of the program.
    pub trephine: String,
    /// `dequantize` or `merge`.
    pub command: String,
    /// The options that decide the result.
    pub options: Map<String, Value>,
    /// Instruction set that products ran on, where there were any.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub simd: Option<String>,
    /// The files that were read, by what they were to the run: `checkpoint`, `base`, `adapter`.
    pub inputs: BTreeMap<String, Identity>,
    /// How the weights of the checkpoint are stored.
    pub scheme: String,
    /// Modules whose weights were computed: dequantized, or changed by the adapter.
    pub computed: usize,
    /// Tensors that were copied as they are.
    pub copied: usize,
    /// Tensors that only the quantization needed, and that are not part of any weight: scales of activations and caches.
    pub dropped: Vec<String>,
    /// Parameters that the adapter holds whole (`modules_to_save`), which took the place of the base's.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub replaced: Vec<String>,
    /// Values that are NaN or infinite, by module, where there are any.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub non_finite: BTreeMap<String, u64>,
}

impl Conversion {
    /// In words, the first thing in which `self` (this run) differs from `before`; modification times aside.
    pub(crate) fn difference(&self, before: &Conversion) -> Option<String> {
        if self.command != before.command {
            return Some(format!("it was made by `trephine {}`", before.command));
        }
        if self.trephine != before.trephine {
            return Some(format!("it was made by version {}, this is {}", before.trephine, self.trephine));
        }
        if self.simd != before.simd {
            let [then, now] =
                [&before.simd, &self.simd].map(|simd| simd.as_deref().unwrap_or("no").to_owned());
            return Some(format!("it was made with {then} instructions, this machine has {now}"));
        }
        if let Some(text) = differing_option(&before.options, &self.options) {
            return Some(text);
        }
        let sides: BTreeSet<&String> = before.inputs.keys().chain(self.inputs.keys()).collect();
        sides.into_iter().find_map(|side| match (before.inputs.get(side), self.inputs.get(side)) {
            (Some(then), Some(now)) => {
                let changes = then.changes(now);
                let change = changes.into_iter().find(|change| !matches!(change, Change::Touched(_)))?;
                Some(format!("the {side} is another one: {change}"))
            }
            _ => Some(format!("one of the two runs had no {side}")),
        })
    }

    /// The same without the files' times, as it is kept in the finished folder.
    pub(crate) fn timeless(&self) -> Conversion {
        let inputs = self.inputs.iter().map(|(side, identity)| (side.clone(), identity.timeless()));
        Conversion { inputs: inputs.collect(), ..self.clone() }
    }
}

/// The end of a conversion.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// The folder.
    pub out: PathBuf,
    /// Whether an earlier run had done all of it.
    pub was_done: bool,
    /// Files of weights.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// What was done.
    #[serde(flatten)]
    pub conversion: Conversion,
}
