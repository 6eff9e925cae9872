//! What a run says of its inputs: where they came from, what was read of them, what was left out.

use std::ffi::OsStr;
use std::path::Path;

use crate::checkpoint::Checkpoint;
use serde::{Deserialize, Serialize};

/// What an input is to a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// One or more adapters.
    Adapter,
    /// What the adapter is added to.
    Base,
    /// The base, quantized.
    BaseQuantized,
    /// Second moments of the layers' inputs.
    Calibration,
    /// The one checkpoint that is read.
    Checkpoint,
    /// The dense base from which the change is taken by itself.
    Hybrid,
    /// What it should become.
    Tuned,
    /// The tuned checkpoint, quantized.
    TunedQuantized,
    /// What will serve it.
    Served,
}

impl Side {
    /// In a word, as files have it.
    pub fn word(self) -> &'static str {
        match self {
            Side::Base => "base",
            Side::Tuned => "tuned",
            Side::Served => "served",
            Side::Checkpoint => "checkpoint",
            Side::BaseQuantized => "base_quantized",
            Side::TunedQuantized => "tuned_quantized",
            Side::Adapter => "adapter",
            Side::Calibration => "calibration",
            Side::Hybrid => "hybrid",
        }
    }

    /// The option that names it, without its dashes.
    pub fn flag(self) -> String {
        self.word().replace('_', "-")
    }

    /// In a sentence, without its article.
    pub fn phrase(self) -> String {
        match self {
            Side::Checkpoint | Side::Adapter | Side::Calibration => self.word().to_owned(),
            Side::Hybrid => "dense base of --hybrid".to_owned(),
            _ => format!("{} checkpoint", self.flag()),
        }
    }
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.word())
    }
}

/// A checkpoint, in few words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// As given on the command line; of a path the last part.
    pub name: String,
    /// The config's `model_type`.
    pub model_type: Option<String>,
    /// How its weights are stored, as `dense` or `fp8 128x128`.
    pub scheme: String,
}

/// Why a tensor is not in the adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// A LoRA holds products of matrices, not norms, biases or stacks of experts.
    NotLinear,
    /// It could be held, but was not selected.
    NotSelected,
    /// Only the base or only the tuned checkpoint has it.
    NoPartner,
    /// Both have it, in different shapes.
    ShapeDiffers,
    /// Rows of a vocabulary beyond the common ones.
    TrimmedVocabulary,
}

impl Reason {
    /// In words, for tables.
    pub fn words(self) -> &'static str {
        match self {
            Reason::NotLinear => "no linear weight",
            Reason::NotSelected => "not selected",
            Reason::NoPartner => "no partner",
            Reason::ShapeDiffers => "shapes differ",
            Reason::TrimmedVocabulary => "rows beyond the common vocabulary",
        }
    }
}

/// A tensor that the adapter does not hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Its name, in the base where the base has it.
    pub name: String,
    /// Why.
    pub reason: Reason,
    /// The checkpoint that has it, where only one has.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub only_in: Option<Side>,
    /// Its shape, in the base where the base has it.
    pub shape: Vec<usize>,
    /// Number of elements.
    pub elements: u64,
    /// `||T - B|| / ||B||`; absent where the two cannot be compared.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub relative_change: Option<f64>,
}

impl LeftOut {
    /// What tells it from every other: a trimmed vocabulary leaves rows of both checkpoints by one name.
    pub fn key(&self) -> String {
        let side = self.only_in.map(|side| side.to_string()).unwrap_or_default();
        format!("{} {:?} {side}", self.name, self.reason)
    }

    /// Whether leaving it out loses anything, as far as is known.
    pub fn matters(&self) -> bool {
        self.relative_change != Some(0.0)
    }
}

/// A tensor that was read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TensorRecord {
    /// Where it was read from.
    pub checkpoint: Side,
    /// Its name there.
    pub name: String,
    /// Its file, relative to the checkpoint's folder.
    pub file: String,
    /// Element type, as safetensors names it.
    pub dtype: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// The bytes of it that were read, from and to, where they are a part: an expert of a stack.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub part: Option<[u64; 2]>,
    /// Digest of its bytes, or of that part of them.
    pub blake3: String,
}

/// A path is shortened to its last part: where it lay on this machine is no one else's business.
pub fn source(spec: &str, checkpoint: &Checkpoint) -> Source {
    let path = Path::new(spec);
    // `.` and `..` have no last part, but what they lead to has.
    let real = path.exists().then(|| match path.file_name() {
        Some(name) => Some(name.to_owned()),
        None => path.canonicalize().ok()?.file_name().map(OsStr::to_owned),
    });
    let name = real.flatten().map_or(spec.to_owned(), |name| name.to_string_lossy().into_owned());
    let model_type = checkpoint.config().model_type().map(str::to_owned);
    Source { name, model_type, scheme: checkpoint.scheme().label() }
}
