//! The record of a run's inputs: their sources, the tensors that were read, the tensors that were left out.

use std::ffi::OsStr;
use std::path::Path;

use crate::checkpoint::Checkpoint;
use crate::durable::digest::HexDigest;
use crate::quant::weight::SchemeKind;
use crate::shared::{Name, Shape};
use safetensors::Dtype;
use serde::{Deserialize, Serialize};

/// The role of an input in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Side {
    /// One or more adapters.
    Adapter,
    /// The checkpoint that the adapter is added to.
    Base,
    /// The base, quantized.
    BaseQuantized,
    /// Second moments of the layers' inputs.
    Calibration,
    /// The only checkpoint of the run.
    Checkpoint,
    /// The dense base that the change is taken from.
    Hybrid,
    /// The checkpoint that base and adapter together should become.
    Tuned,
    /// The tuned checkpoint, quantized.
    TunedQuantized,
    /// The checkpoint that will serve the adapter.
    Served,
}

impl Side {
    /// The word for it in files.
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

    /// The phrase for it in a sentence, without an article.
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

/// A short description of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Its name as given on the command line; for a path, the last component.
    pub name: String,
    /// The config's `model_type`.
    pub model_type: Option<String>,
    /// How its weights are stored, in words, for example `dense` or `block FP8 (128 x 128)`.
    pub scheme: String,
    /// The same in a form for programs.
    pub kind: SchemeKind,
}

impl Source {
    /// Whether any of its weights may be stored as codes. Then an adapter on it is of Method B.
    pub fn is_quantized(&self) -> bool {
        self.kind != SchemeKind::Dense
    }
}

/// Why a tensor is not in the adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// It is not a linear weight: a LoRA cannot represent norms, biases or stacks of experts.
    NotLinear,
    /// A norm whose change the linear weights behind it carry.
    Absorbed,
    /// It could be represented, but was not selected.
    NotSelected,
    /// Only the base or only the tuned checkpoint has it.
    NoPartner,
    /// Both have it, in different shapes.
    ShapeDiffers,
    /// Rows of a vocabulary beyond the common ones.
    TrimmedVocabulary,
    /// The model has its rows in another order, in several layers.
    Reordered,
}

impl Reason {
    /// The words for tables.
    pub fn words(self) -> &'static str {
        match self {
            Reason::NotLinear => "not a linear weight",
            Reason::Absorbed => "carried by the weights behind it",
            Reason::NotSelected => "not selected",
            Reason::NoPartner => "no partner",
            Reason::ShapeDiffers => "shapes differ",
            Reason::TrimmedVocabulary => "rows beyond the common vocabulary",
            Reason::Reordered => "rows in another order in the model",
        }
    }
}

/// A tensor that the adapter does not contain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Its name, in the base if the base has it.
    pub name: Name,
    /// Why.
    pub reason: Reason,
    /// The checkpoint that has it, if only one does.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub only_in: Option<Side>,
    /// Its shape, in the base if the base has it.
    pub shape: Shape,
    /// Number of elements.
    pub elements: u64,
    /// `||T - B|| / ||B||`; absent where the two cannot be compared.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub relative_change: Option<f64>,
    /// `||T - B||`; absent where the two cannot be compared.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub change_norm: Option<f64>,
}

impl LeftOut {
    /// A key that is unique: a trimmed vocabulary leaves rows of both checkpoints under the same name.
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
    /// The checkpoint that it was read from.
    pub checkpoint: Side,
    /// Its name there.
    pub name: Name,
    /// Its file, relative to the checkpoint's folder.
    pub file: Name,
    /// Element type.
    pub dtype: Dtype,
    /// Shape.
    pub shape: Shape,
    /// The byte range that was read, if only a part was, for example one expert of a stack.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub part: Option<[u64; 2]>,
    /// Digest of the bytes that were read.
    pub blake3: HexDigest,
}

/// The description of a checkpoint. A path is shortened to its last component, so the record does not reveal the
/// folders of this machine.
pub fn source(spec: &str, checkpoint: &Checkpoint) -> Source {
    let path = Path::new(spec);
    // `.` and `..` have no last component, but the folders that they refer to do.
    let real = path.exists().then(|| match path.file_name() {
        Some(name) => Some(name.to_owned()),
        None => path.canonicalize().ok()?.file_name().map(OsStr::to_owned),
    });
    let name = real.flatten().map_or(spec.to_owned(), |name| name.to_string_lossy().into_owned());
    let model_type = checkpoint.config().model_type().map(str::to_owned);
    Source { name, model_type, scheme: checkpoint.scheme().label(), kind: checkpoint.scheme().kind() }
}
