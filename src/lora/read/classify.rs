//! Classifies an adapter's tensors: pairs of factors, tensors that are not part of a LoRA, and problems.

use std::collections::BTreeMap;
use std::fmt;

use safetensors::Dtype;
use serde::{Deserialize, Serialize};

use crate::checkpoint::catalogue::Tensor;
use crate::lora::names::{Place, place_of};
use crate::lora::read::config::PeftConfig;
use crate::lora::read::keys::{Key, Part, is_norm};
use crate::{Error, Result};

/// One module that the adapter changes.
#[derive(Clone, Debug)]
pub struct PeftModule {
    name: String,
    place: Place,
    shape: [usize; 2],
    rank: usize,
    stack: usize,
    alpha: f64,
    scale: f64,
    a: Tensor,
    b: Tensor,
}

impl PeftModule {
    /// The same under another name.
    pub(crate) fn renamed(self, name: String) -> PeftModule {
        PeftModule { name, ..self }
    }

    /// Its name in the base, without `.weight`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its place in the model: [`Place::Embedding`] if its factors are `lora_embedding_A` and `_B`, otherwise what its
    /// name says.
    pub fn place(&self) -> Place {
        self.place
    }

    /// `[out, in]` of `B·A`. For an embedding `[dim, vocab]`, the transpose of its weight.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// The rank, by the factors' shape. `lora_alpha` is divided by it.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many experts the factors hold: 1 for an ordinary module. PEFT stores those of fused experts (`….experts`,
    /// `….experts.base_layer`) in one pair, `lora_A` `[rank · experts, in]` with row `e · rank + k`, and `lora_B`
    /// `[out, rank · experts]` with column `k · experts + e`.
    pub fn experts(&self) -> usize {
        self.stack
    }

    /// Its `lora_alpha`.
    pub fn alpha(&self) -> f64 {
        self.alpha
    }

    /// The scale of `B·A`.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// The element types of both factors.
    pub(crate) fn dtypes(&self) -> [safetensors::Dtype; 2] {
        [self.a().stored.dtype, self.b().stored.dtype]
    }

    /// `lora_A` `[rank · experts, in]`.
    pub fn a(&self) -> &Tensor {
        &self.a
    }

    /// `lora_B` `[out, rank · experts]`.
    pub fn b(&self) -> &Tensor {
        &self.b
    }
}

/// The kind of a tensor that is not a factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ExtraKind {
    /// A norm's weight, which replaces the base's.
    Norm,
    /// A bias, which replaces the base's.
    Bias,
    /// Another whole weight, for example the output head's, which replaces the base's.
    FullWeight,
    /// An unchanged parameter of the base, saved along: it has no effect.
    BaseCopy,
    /// `lora_B.bias`: added to the layer's output with the module's scale.
    LoraBias,
    /// DoRA's magnitude vector, which rescales every row of the sum.
    Magnitude,
    /// An unknown kind.
    Unknown,
}

impl ExtraKind {
    /// In words, for tables.
    pub fn words(self) -> &'static str {
        match self {
            ExtraKind::Norm => "norm, saved whole",
            ExtraKind::Bias => "bias, saved whole",
            ExtraKind::FullWeight => "weight, saved whole",
            ExtraKind::BaseCopy => "the base's own, saved along",
            ExtraKind::LoraBias => "bias of lora_B",
            ExtraKind::Magnitude => "DoRA's magnitudes",
            ExtraKind::Unknown => "not part of a LoRA",
        }
    }
}

/// A tensor that is not a factor.
#[derive(Clone, Debug)]
pub struct Extra {
    /// The tensor in the adapter's file.
    pub tensor: Tensor,
    /// The parameter of the base that it belongs to, for example `model.norm.weight`; for [`ExtraKind::LoraBias`] and
    /// [`ExtraKind::Magnitude`] the module.
    pub target: String,
    /// What it is.
    pub kind: ExtraKind,
}

/// What is wrong with a tensor or a module of an adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "fault")]
#[non_exhaustive]
pub enum Fault {
    /// `lora_A` without `lora_B`: the module is left out.
    LoneA,
    /// `lora_B` without `lora_A`: the module is left out.
    LoneB,
    /// The factors are not a pair of matrices, or have different ranks: the module is left out.
    Misfit {
        /// The shape of `lora_A`.
        a: Vec<usize>,
        /// The shape of `lora_B`.
        b: Vec<usize>,
    },
    /// A dtype that does not hold plain numbers: the module is left out.
    Dtype {
        /// Its name.
        dtype: String,
    },
    /// A rank of zero, which adds nothing.
    ZeroRank,
    /// The config gives the module a rank that differs from its factors'.
    OtherRank {
        /// The rank in the config.
        config: usize,
        /// The rank by the factors' shape.
        stored: usize,
    },
    /// The name lacks `base_model.model.`.
    NoPrefix,
    /// The name still contains what a wrapper of the model put into it during training.
    Wrapper {
        /// The part of the name, for example `_orig_mod`.
        part: String,
    },
    /// The name still contains the adapter's own name.
    AdapterName {
        /// That name, usually `default`.
        adapter: String,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::LoneA => f.write_str("has a lora_A without its lora_B"),
            Fault::LoneB => f.write_str("has a lora_B without its lora_A"),
            Fault::Misfit { a, b } => {
                write!(f, "has a lora_A {a:?} and a lora_B {b:?}, which are not a pair of factors")
            }
            Fault::Dtype { dtype } => write!(f, "has factors of {dtype}, which does not hold plain numbers"),
            Fault::ZeroRank => f.write_str("has rank 0"),
            Fault::OtherRank { config, stored } => {
                write!(f, "has factors of rank {stored}, but the config says {config}")
            }
            Fault::NoPrefix => f.write_str("lacks the prefix 'base_model.model.'"),
            Fault::Wrapper { part } => {
                write!(f, "contains '{part}', which a wrapper of the model left there in training")
            }
            Fault::AdapterName { adapter } => {
                write!(f, "still contains the adapter's name '{adapter}'")
            }
        }
    }
}

/// One problem of an adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The module, or the tensor's name.
    pub at: String,
    /// What is wrong with it.
    #[serde(flatten)]
    pub fault: Fault,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.at, self.fault)
    }
}

/// An adapter's tensors, classified.
#[derive(Debug, Default)]
pub(crate) struct Sorted {
    pub(crate) modules: BTreeMap<String, PeftModule>,
    pub(crate) extras: Vec<Extra>,
    pub(crate) problems: Vec<Problem>,
}

/// The factors of one module that were found so far.
#[derive(Default)]
struct Pair<'a> {
    a: Option<&'a Tensor>,
    b: Option<&'a Tensor>,
    embedding: bool,
}

/// Classifies the tensors of one adapter.
///
/// # Errors
/// Two tensors that are the same factor of the same module, for example from two adapters in one file.
pub(crate) fn sort<'a>(tensors: impl Iterator<Item = &'a Tensor>, config: &PeftConfig) -> Result<Sorted> {
    let (mut pairs, mut sorted) = (BTreeMap::<String, Pair<'a>>::new(), Sorted::default());
    for tensor in tensors {
        let key = Key::of(tensor.name());
        let mut wrong = |fault| sorted.problems.push(Problem { at: tensor.name().to_owned(), fault });
        if !key.prefixed {
            wrong(Fault::NoPrefix);
        }
        if let Some(part) = key.wrapper {
            wrong(Fault::Wrapper { part: part.to_owned() });
        }
        if let Some(adapter) = key.adapter {
            wrong(Fault::AdapterName { adapter: adapter.to_owned() });
        }
        let factor = match key.part {
            Part::A | Part::EmbeddingA => true,
            Part::B | Part::EmbeddingB => false,
            part => {
                let kind = extra(part, &key.target, tensor);
                sorted.extras.push(Extra { tensor: tensor.clone(), target: key.target, kind });
                continue;
            }
        };
        let pair = pairs.entry(key.target).or_default();
        pair.embedding |= matches!(key.part, Part::EmbeddingA | Part::EmbeddingB);
        let slot = if factor { &mut pair.a } else { &mut pair.b };
        if let Some(first) = slot.replace(tensor) {
            return Err(Error::input(format!(
                "this tensor and '{}' are the same factor of one module",
                first.name()
            ))
            .tensor(tensor.name())
            .hint("the file holds two adapters: save only the one that is needed"));
        }
    }
    for (name, pair) in pairs {
        let mut faults = Vec::new();
        if let Some(module) = module(&name, &pair, config, &mut faults) {
            sorted.modules.insert(name.clone(), module);
        }
        sorted.problems.extend(faults.into_iter().map(|fault| Problem { at: name.clone(), fault }));
    }
    sorted.problems.sort_by(|a, b| a.at.cmp(&b.at));
    Ok(sorted)
}

fn extra(part: Part, target: &str, tensor: &Tensor) -> ExtraKind {
    match part {
        Part::Magnitude => ExtraKind::Magnitude,
        Part::LoraBias => ExtraKind::LoraBias,
        Part::Original => ExtraKind::BaseCopy,
        Part::Whole if is_norm(target, &tensor.stored.shape) => ExtraKind::Norm,
        Part::Whole if target.ends_with(".bias") => ExtraKind::Bias,
        Part::Whole if target.ends_with(".weight") => ExtraKind::FullWeight,
        _ => ExtraKind::Unknown,
    }
}

/// The module of a pair of factors, if the pair is valid. What is wrong with it goes to `faults`.
fn module(name: &str, pair: &Pair<'_>, config: &PeftConfig, faults: &mut Vec<Fault>) -> Option<PeftModule> {
    let (a, b) = match (pair.a, pair.b) {
        (Some(a), Some(b)) => (a, b),
        (a, _) => {
            faults.push(if a.is_some() { Fault::LoneA } else { Fault::LoneB });
            return None;
        }
    };
    let (&[rows, inner], &[out, columns]) = (a.stored.shape.as_slice(), b.stored.shape.as_slice()) else {
        faults.push(Fault::Misfit { a: a.stored.shape.to_vec(), b: b.stored.shape.to_vec() });
        return None;
    };
    if rows != columns {
        faults.push(Fault::Misfit { a: a.stored.shape.to_vec(), b: b.stored.shape.to_vec() });
        return None;
    }
    let numeric = |dtype| matches!(dtype, Dtype::BF16 | Dtype::F16 | Dtype::F32 | Dtype::F64);
    if let Some(dtype) = [a.stored.dtype, b.stored.dtype].into_iter().find(|dtype| !numeric(*dtype)) {
        faults.push(Fault::Dtype { dtype: dtype.to_string() });
        return None;
    }
    let known_as = pattern_name(name, config);
    let configured = config.rank_of(&known_as);
    let stack = match configured {
        r if r > 0 && known_as != name && rows > 0 && rows.is_multiple_of(r) => rows / r,
        _ => 1,
    };
    let rank = rows / stack;
    if rank == 0 {
        faults.push(Fault::ZeroRank);
    } else if rank != configured {
        faults.push(Fault::OtherRank { config: configured, stored: rank });
    }
    let place = match place_of(name) {
        _ if pair.embedding => Place::Embedding,
        Place::Embedding => Place::Linear,
        place => place,
    };
    let (alpha, scale) = (config.alpha_of(&known_as), config.scale_of(&known_as, rank));
    let (a, b, shape) = (a.clone(), b.clone(), [out, inner]);
    Some(PeftModule { name: name.to_owned(), place, shape, rank, stack, alpha, scale, a, b })
}

/// The name that PEFT matches against the patterns. For stacks of experts it is the parameter's: an adapter calls their
/// two weights `experts.base_layer` (`gate_up_proj`, where the config does not say otherwise) and `experts`
/// (`down_proj`).
fn pattern_name(module: &str, config: &PeftConfig) -> String {
    if let Some(parameter) = config.target_parameter(module) {
        return parameter;
    }
    match module.strip_suffix(".experts.base_layer") {
        Some(stem) => format!("{stem}.experts.gate_up_proj"),
        None if module.ends_with(".experts") => format!("{module}.down_proj"),
        None => module.to_owned(),
    }
}
