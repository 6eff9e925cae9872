//! Sorts an adapter's tensors: into pairs of factors, into what is no LoRA, and into what is wrong.

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
    /// As the base names it, without `.weight`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is to a LoRA: [`Place::Embedding`] where its factors are `lora_embedding_A` and `_B`, else what its name says.
    pub fn place(&self) -> Place {
        self.place
    }

    /// `[out, in]` of `B·A`. For an embedding `[dim, vocab]`, the transpose of its weight.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// The rank, by the factors' shape: what `lora_alpha` is divided by.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many experts the factors hold: 1 for an ordinary module. PEFT keeps those of fused experts (`….experts`,
    /// `….experts.base_layer`) in one pair, `lora_A` `[rank · experts, in]` with row `e · rank + k`, and `lora_B`
    /// `[out, rank · experts]` with column `k · experts + e`.
    pub fn experts(&self) -> usize {
        self.stack
    }

    /// Its `lora_alpha`.
    pub fn alpha(&self) -> f64 {
        self.alpha
    }

    /// The factor before `B·A`.
    pub fn scale(&self) -> f64 {
        self.scale
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

/// What a tensor that is no factor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExtraKind {
    /// A norm's weight, as it is to become.
    Norm,
    /// A bias of the base, as it is to become.
    Bias,
    /// Another whole weight, as the output head's, as it is to become.
    FullWeight,
    /// A parameter of the base as it is, saved along: it changes nothing.
    BaseCopy,
    /// `lora_B.bias`: added to the layer's output with the module's scale.
    LoraBias,
    /// DoRA's magnitude vector, which rescales every row of the sum.
    Magnitude,
    /// Nothing that is known here.
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
            ExtraKind::Unknown => "no part of a LoRA",
        }
    }
}

/// A tensor that is no factor.
#[derive(Clone, Debug)]
pub struct Extra {
    /// The tensor in the adapter's file.
    pub tensor: Tensor,
    /// The parameter of the base that it belongs to, as `model.norm.weight`; for [`ExtraKind::LoraBias`] and
    /// [`ExtraKind::Magnitude`] the module.
    pub target: String,
    /// What it is.
    pub kind: ExtraKind,
}

/// What is wrong with a tensor or a module of an adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "fault")]
pub enum Fault {
    /// `lora_A` without `lora_B`: the module is not among the adapter's.
    LoneA,
    /// `lora_B` without `lora_A`: the module is not among the adapter's.
    LoneB,
    /// The factors are no pair of matrices, or of different ranks: the module is not among the adapter's.
    Misfit {
        /// The shape of `lora_A`.
        a: Vec<usize>,
        /// The shape of `lora_B`.
        b: Vec<usize>,
    },
    /// A dtype that holds no plain numbers: the module is not among the adapter's.
    Dtype {
        /// Its name.
        dtype: String,
    },
    /// A rank of zero, which adds nothing.
    ZeroRank,
    /// The config gives the module another rank than its factors have.
    OtherRank {
        /// By the config.
        config: usize,
        /// By the factors' shape.
        stored: usize,
    },
    /// The name lacks `base_model.model.`.
    NoPrefix,
    /// The name still has the adapter's own in it.
    AdapterName {
        /// That name, mostly `default`.
        adapter: String,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::LoneA => f.write_str("has a lora_A without its lora_B"),
            Fault::LoneB => f.write_str("has a lora_B without its lora_A"),
            Fault::Misfit { a, b } => {
                write!(f, "has a lora_A {a:?} and a lora_B {b:?}, which are no pair of factors")
            }
            Fault::Dtype { dtype } => write!(f, "has factors of {dtype}, which holds no plain numbers"),
            Fault::ZeroRank => f.write_str("has rank 0"),
            Fault::OtherRank { config, stored } => {
                write!(f, "has factors of rank {stored}, the config says {config}")
            }
            Fault::NoPrefix => f.write_str("has no 'base_model.model.' before it"),
            Fault::AdapterName { adapter } => {
                write!(f, "still has the adapter's name '{adapter}' in its own")
            }
        }
    }
}

/// One thing that is wrong.
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

/// An adapter's tensors, sorted.
#[derive(Debug, Default)]
pub(crate) struct Sorted {
    pub(crate) modules: BTreeMap<String, PeftModule>,
    pub(crate) extras: Vec<Extra>,
    pub(crate) problems: Vec<Problem>,
}

/// The factors of one module, as far as they were met.
#[derive(Default)]
struct Pair<'a> {
    a: Option<&'a Tensor>,
    b: Option<&'a Tensor>,
    embedding: bool,
}

/// Sorts the tensors of one adapter.
///
/// # Errors
/// Two tensors that are the same factor of the same module, as from two adapters in one file.
pub(crate) fn sort<'a>(tensors: impl Iterator<Item = &'a Tensor>, config: &PeftConfig) -> Result<Sorted> {
    let (mut pairs, mut sorted) = (BTreeMap::<String, Pair<'a>>::new(), Sorted::default());
    for tensor in tensors {
        let key = Key::of(tensor.name());
        let mut wrong = |fault| sorted.problems.push(Problem { at: tensor.name().to_owned(), fault });
        if !key.prefixed {
            wrong(Fault::NoPrefix);
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
            return Err(Error::input(format!("it and '{}' are the same factor of one module", first.name()))
                .tensor(tensor.name())
                .hint("the file holds two adapters: save the one that is meant by itself"));
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

/// The module of a pair that is one. What is wrong with it goes to `faults`.
fn module(name: &str, pair: &Pair<'_>, config: &PeftConfig, faults: &mut Vec<Fault>) -> Option<PeftModule> {
    let (a, b) = match (pair.a, pair.b) {
        (Some(a), Some(b)) => (a, b),
        (a, _) => {
            faults.push(if a.is_some() { Fault::LoneA } else { Fault::LoneB });
            return None;
        }
    };
    let (&[rows, inner], &[out, columns]) = (a.stored.shape.as_slice(), b.stored.shape.as_slice()) else {
        faults.push(Fault::Misfit { a: a.stored.shape.clone(), b: b.stored.shape.clone() });
        return None;
    };
    if rows != columns {
        faults.push(Fault::Misfit { a: a.stored.shape.clone(), b: b.stored.shape.clone() });
        return None;
    }
    let numeric = |dtype| matches!(dtype, Dtype::BF16 | Dtype::F16 | Dtype::F32 | Dtype::F64);
    if let Some(dtype) = [a.stored.dtype, b.stored.dtype].into_iter().find(|dtype| !numeric(*dtype)) {
        faults.push(Fault::Dtype { dtype: dtype.to_string() });
        return None;
    }
    let known_as = pattern_name(name);
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

/// The name that PEFT holds against the patterns: that of the parameter for fused experts, whose two weights are called
/// `experts.base_layer` (`gate_up_proj`) and `experts` (`down_proj`) in an adapter.
fn pattern_name(module: &str) -> String {
    match module.strip_suffix(".experts.base_layer") {
        Some(stem) => format!("{stem}.experts.gate_up_proj"),
        None if module.ends_with(".experts") => format!("{module}.down_proj"),
        None => module.to_owned(),
    }
}
