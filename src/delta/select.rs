//! Selection of the modules to extract: the linear layers, or those that match patterns.

use std::collections::BTreeSet;

use globset::{Glob, GlobBuilder, GlobMatcher};
use regex::Regex;

use crate::lora::names::{Place, expert_of_stack, place_of};
use crate::shared::Name;
use crate::{Error, Result};

/// The pattern of `--include` that stands for the default selection.
pub const LINEAR: &str = "linear";

/// One pattern: a glob that matches a module's whole name or its trailing components, or, after `re:`, a regular
/// expression that is searched for anywhere in the name, as in mergekit.
#[derive(Debug)]
enum Pattern {
    All,
    Linear,
    Glob(GlobMatcher),
    Regex(Regex),
}

impl Pattern {
    fn parse(text: &str) -> Result<Pattern> {
        if text == LINEAR {
            return Ok(Pattern::Linear);
        }
        if let Some(expression) = text.strip_prefix("re:") {
            let bad = |e| {
                Error::decide(format!("'{text}' is not a regular expression"))
                    .because(e)
                    .hint("an example is re:layers\\.[0-3]\\.")
            };
            return Regex::new(expression).map(Pattern::Regex).map_err(bad);
        }
        let bad = |e| {
            Error::decide(format!("'{text}' is not a glob"))
                .because(e)
                .hint("examples are q_proj and *.layers.0.*; for a regular expression put re: before it")
        };
        let glob: Glob = GlobBuilder::new(text).literal_separator(false).build().map_err(bad)?;
        Ok(Pattern::Glob(glob.compile_matcher()))
    }

    fn matches(&self, module: &str) -> bool {
        match self {
            Pattern::All => true,
            Pattern::Linear => place_of(module).by_default(),
            Pattern::Regex(expression) => expression.is_match(module),
            Pattern::Glob(glob) => {
                let tails = |name: &str| {
                    let tails = name.match_indices('.').map(|(at, _)| &name[at + 1..]);
                    std::iter::once(name).chain(tails).any(|tail| glob.is_match(tail))
                };
                // `down_proj` takes every expert of a stack.
                tails(module) || expert_of_stack(module).is_some_and(|(stack, _)| tails(stack))
            }
        }
    }
}

/// A parsed selection.
#[derive(Debug)]
pub struct Selection {
    include: Vec<Pattern>,
    exclude: Vec<Pattern>,
    /// The patterns as given, each with its flag, in the order of the parsed patterns.
    texts: Vec<(&'static str, String)>,
}

impl Selection {
    /// Parses the patterns. No `include` means `linear`, the linear layers.
    ///
    /// # Errors
    /// A glob or a regular expression that does not parse.
    pub fn parse(include: &[String], exclude: &[String]) -> Result<Selection> {
        Selection::parse_or(Pattern::Linear, include, exclude)
    }

    /// Parses the patterns for commands that read every tensor: no `include` means all of them.
    ///
    /// # Errors
    /// The errors of [`parse`](Self::parse).
    pub fn of_all(include: &[String], exclude: &[String]) -> Result<Selection> {
        Selection::parse_or(Pattern::All, include, exclude)
    }

    fn parse_or(default: Pattern, include: &[String], exclude: &[String]) -> Result<Selection> {
        let parse =
            |texts: &[String]| texts.iter().map(|text| Pattern::parse(text)).collect::<Result<Vec<_>>>();
        let flagged =
            |flag, texts: &[String]| texts.iter().map(|text| (flag, text.clone())).collect::<Vec<_>>();
        let texts = [flagged("include", include), flagged("exclude", exclude)].concat();
        let mut include = parse(include)?;
        if texts.iter().all(|(flag, _)| *flag != "include") {
            include.push(default);
        }
        Ok(Selection { include, exclude: parse(exclude)?, texts })
    }

    /// The patterns that match none of `modules`, as given: a typo in one of several would otherwise go unnoticed.
    pub fn idle(&self, modules: &BTreeSet<Name>) -> Vec<String> {
        let given = self.texts.iter().partition::<Vec<_>, _>(|(flag, _)| *flag == "include");
        let patterns = self.include.iter().zip(given.0).chain(self.exclude.iter().zip(given.1));
        let idle = patterns.filter(|(pattern, _)| !modules.iter().any(|module| pattern.matches(module)));
        idle.map(|(_, (flag, text))| format!("--{flag} {text}")).collect()
    }

    /// Whether `module` is to be extracted. Tables of positions and parameters of norms never are: a LoRA has no form
    /// for them.
    pub fn takes(&self, module: &str) -> bool {
        !matches!(place_of(module), Place::Positions | Place::Parameter) && self.names(module)
    }

    /// Whether an `--include` of its own names `module`, beside the default selection.
    pub fn asks_for(&self, module: &str) -> bool {
        let own = |pattern: &&Pattern| !matches!(pattern, Pattern::All | Pattern::Linear);
        self.takes(module) && self.include.iter().filter(own).any(|pattern| pattern.matches(module))
    }

    /// Whether the patterns match the name of a module or tensor of any kind.
    pub fn names(&self, name: &str) -> bool {
        self.include.iter().any(|pattern| pattern.matches(name))
            && !self.exclude.iter().any(|pattern| pattern.matches(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn takes(include: &[&str], exclude: &[&str], module: &str) -> bool {
        let own = |texts: &[&str]| texts.iter().map(|&t| t.to_owned()).collect::<Vec<_>>();
        Selection::parse(&own(include), &own(exclude)).unwrap().takes(module)
    }

    #[test]
    fn linear_layers_by_default() {
        assert!(takes(&[], &[], "model.layers.0.self_attn.q_proj"));
        assert!(!takes(&[], &[], "model.embed_tokens"));
        assert!(!takes(&[], &[], "lm_head"));
        assert!(!takes(&[], &[], "model.layers.0.mlp.gate"));
        assert!(takes(&["linear", "gate"], &[], "model.layers.0.mlp.gate"));
        assert!(takes(&[], &[], "model.layers.0.mlp.experts.7.gate_proj"));
        assert!(takes(&[], &[], "model.layers.0.mlp.experts.down_proj.7"));
        assert!(takes(&["down_proj"], &[], "model.layers.0.mlp.experts.down_proj.7"));
        assert!(!takes(&[], &["*.experts.*"], "model.layers.0.mlp.experts.down_proj.7"));
    }

    #[test]
    fn patterns_match_whole_names_and_tails() {
        assert!(takes(&["q_proj"], &[], "model.layers.0.self_attn.q_proj"));
        assert!(takes(&["*.layers.0.*"], &[], "model.layers.0.self_attn.q_proj"));
        assert!(!takes(&["*.layers.0.*"], &[], "model.layers.10.self_attn.q_proj"));
        assert!(takes(&["re:layers\\.[01]\\."], &[], "model.layers.1.mlp.up_proj"));
        assert!(takes(&["linear", "lm_head"], &[], "lm_head"));
        assert!(takes(&["linear", "lm_head"], &[], "model.layers.1.mlp.up_proj"));
        assert!(!takes(&[], &["up_proj"], "model.layers.1.mlp.up_proj"));
    }

    #[test]
    fn patterns_that_match_nothing_are_reported() {
        let own = |texts: &[&str]| texts.iter().map(|&t| t.to_owned()).collect::<Vec<_>>();
        let modules = ["model.layers.0.self_attn.q_proj", "lm_head"].map(Name::from).into();
        let idle = |include: &[&str], exclude: &[&str]| {
            Selection::parse(&own(include), &own(exclude)).unwrap().idle(&modules)
        };
        assert!(idle(&[], &[]).is_empty());
        assert!(idle(&["linear", "lm_head"], &["q_proj"]).is_empty());
        assert_eq!(
            idle(&["linear", "lm_haed"], &["re:x_proj"]),
            ["--include lm_haed", "--exclude re:x_proj"]
        );
    }

    #[test]
    fn bad_patterns_are_named() {
        let own = vec!["re:(".to_owned()];
        assert!(Selection::parse(&own, &[]).unwrap_err().to_string().starts_with("'re:(' is not a regular"));
    }
}
