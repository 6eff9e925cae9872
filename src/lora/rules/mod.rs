//! What each program that loads adapters requires of one, as rules.
//!
//! PEFT is the most lenient: it ignores what it does not know, and does not report an adapter that has no effect. vLLM,
//! SGLang and llama.cpp each refuse, or misread, something that the others accept. [`judge`] checks an adapter against
//! all of them; [`portable`] checks for the subset that every one of them loads without loss, which is what Trephine
//! writes. The rules follow the loaders' own code (PEFT 0.21, vLLM 0.32, SGLang 0.5, llama.cpp's
//! `convert_lora_to_gguf.py`).

pub(crate) mod programs;
pub(crate) mod settings;
pub(crate) mod siblings;
pub(crate) mod tensors;
pub mod tree;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use crate::lora::loader::Loader;
use crate::lora::read::PeftAdapter;
use crate::lora::tree::BaseModules;

/// The effect of a broken rule, from worst to mildest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Effect {
    /// The program refuses the adapter.
    Refused,
    /// It loads the adapter and silently computes something else.
    Wrong,
    /// It loads the adapter, but a part of it has no effect.
    NoEffect,
    /// It loads the adapter, but an older version or an unknown base may refuse it, or something is rounded.
    Caution,
}

impl Effect {
    /// In words, for tables.
    pub fn words(self) -> &'static str {
        match self {
            Effect::Refused => "refused",
            Effect::Wrong => "wrong numbers",
            Effect::NoEffect => "no effect",
            Effect::Caution => "caution",
        }
    }
}

/// Whether `sanitize` can fix a broken rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Fix {
    /// Yes, and what the adapter adds stays the same, except for rounding.
    Yes,
    /// Yes, by leaving something out, which is reported with its norm.
    ByPruning,
    /// Yes, by a lower rank, with `--max-rank`.
    ByMaxRank,
    /// No.
    No,
}

impl Fix {
    /// In words, for tables.
    pub fn words(self) -> &'static str {
        match self {
            Fix::Yes => "yes",
            Fix::ByPruning => "by pruning",
            Fix::ByMaxRank => "with --max-rank",
            Fix::No => "no",
        }
    }
}

/// One rule that an adapter breaks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleFinding {
    /// The programs that it concerns.
    pub consumers: Vec<Loader>,
    /// The tensor, module, file or key of the config at fault.
    pub at: String,
    /// What is wrong, and what the consequence is.
    pub why: String,
    /// Its effect.
    pub outcome: Effect,
    /// Whether `sanitize` can fix it.
    pub mend: Fix,
}

impl RuleFinding {
    /// Whether it keeps the adapter from working: everything except [`Effect::Caution`].
    pub fn is_failure(&self) -> bool {
        self.outcome != Effect::Caution
    }

    /// Whether no output of `sanitize` could mean what the adapter means. What merely acts in part is as good as it
    /// gets, and a caution keeps nobody from anything.
    pub fn is_hopeless(&self) -> bool {
        self.mend == Fix::No && matches!(self.outcome, Effect::Refused | Effect::Wrong)
    }

    /// Whether it concerns one of `consumers`.
    pub fn concerns(&self, consumers: &[Loader]) -> bool {
        self.consumers.iter().any(|consumer| consumers.contains(consumer))
    }
}

impl fmt::Display for RuleFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.consumers.iter().map(|consumer| consumer.name()).collect();
        write!(f, "{} {} ({}: {})", self.at, self.why, names.join(", "), self.outcome.words())
    }
}

/// Collects the findings of the rules.
pub(crate) struct Report(Vec<RuleFinding>);

impl Report {
    fn add(
        &mut self,
        consumers: &[Loader],
        at: impl Into<String>,
        why: impl Into<String>,
        outcome: Effect,
        mend: Fix,
    ) {
        let consumers = consumers.to_vec();
        self.0.push(RuleFinding { consumers, at: at.into(), why: why.into(), outcome, mend });
    }
}

/// Holds `adapter` against every rule. `base` is what is known of the base: whether vLLM takes a LoRA on the embedding
/// or the head depends on its type, and which modules must come along on those that it has. The worst come first.
pub fn judge(adapter: &PeftAdapter, base: Option<&BaseModules>) -> Vec<RuleFinding> {
    let mut found = portable(adapter, base);
    let mut report = Report(Vec::new());
    tensors::vocabulary(adapter, base.and_then(BaseModules::model_type), &mut report);
    tensors::tied(adapter, base.and_then(BaseModules::tied), &mut report);
    tree::limits(adapter, base, &mut report);
    programs::check(adapter, base, &mut report);
    found.extend(report.0);
    found.sort_by_key(|finding| finding.outcome);
    found
}

/// What keeps `adapter` from being the portable one: everything that anybody could object to, but for what the base
/// decides and no other adapter of the same modules would mend, as a LoRA on the vocabulary, or PEFT's limits with some
/// models. The worst come first.
pub fn portable(adapter: &PeftAdapter, base: Option<&BaseModules>) -> Vec<RuleFinding> {
    let mut report = Report(Vec::new());
    settings::check(adapter, &mut report);
    tensors::check(adapter, base, &mut report);
    base.iter().for_each(|base| tree::check(adapter, base, &mut report));
    report.0.sort_by_key(|finding| finding.outcome);
    report.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_names_whom_it_concerns() {
        let mut report = Report(Vec::new());
        report.add(&[Loader::Vllm, Loader::LlamaCpp], "x", "is wrong", Effect::Refused, Fix::No);
        let found = &report.0[0];
        assert_eq!(found.to_string(), "x is wrong (vLLM, llama.cpp: refused)");
        assert!(found.is_failure() && found.concerns(&Loader::ALL) && !found.concerns(&[Loader::Peft]));
        let json = serde_json::to_value(found).unwrap();
        assert_eq!(json["consumers"], serde_json::json!(["vllm", "llama.cpp"]));
    }
}
