//! Regular expressions that a config gives: all of a list in one automaton, whose size is bounded as a whole.
//!
//! A short text may stand for an automaton of gigabytes, as `(x{1000}){1000}` does, or a list of thousands of small
//! ones. So a list is compiled together, and refused where it is more than configs have use for.

use regex::bytes::{RegexBuilder, RegexSet, RegexSetBuilder};

use crate::{Error, Result};

/// Bytes of one list, compiled: a thousand names of modules with wildcards in them.
const COMPILED: usize = 4 << 20;

/// Bytes that matching may hold beside it.
const CACHE: usize = 1 << 20;

/// An ordered list of patterns.
#[derive(Clone, Debug)]
pub(crate) struct Patterns(RegexSet);

impl Patterns {
    /// Compiles `patterns`, each with what it is called in messages.
    ///
    /// # Errors
    /// [`Kind::Input`](crate::Kind::Input) with the first one that is no regular expression, or for a list that is
    /// too large.
    pub(crate) fn compile(patterns: &[(String, &str)]) -> Result<Patterns> {
        let all = patterns.iter().map(|(pattern, _)| pattern);
        let set = RegexSetBuilder::new(all).size_limit(COMPILED).dfa_size_limit(CACHE).build();
        set.map(Patterns).map_err(|e| refused(patterns, e))
    }

    /// The number of the first pattern that matches.
    pub(crate) fn first(&self, name: &str) -> Option<usize> {
        self.0.matches(name.as_bytes()).iter().next()
    }

    /// Whether any pattern matches.
    pub(crate) fn any(&self, name: &str) -> bool {
        self.0.is_match(name.as_bytes())
    }
}

impl Default for Patterns {
    fn default() -> Patterns {
        Patterns(RegexSet::empty())
    }
}

fn refused(patterns: &[(String, &str)], error: regex::Error) -> Error {
    if matches!(error, regex::Error::CompiledTooBig(_)) {
        let what = format!("{} patterns are too large to be matched together", patterns.len());
        return Error::input(what).hint("name the modules with fewer or simpler patterns");
    }
    // Nothing is compiled within no bytes, but syntax errors come before that.
    let is_wrong = |pattern: &str| {
        matches!(RegexBuilder::new(pattern).size_limit(0).build(), Err(regex::Error::Syntax(_)))
    };
    let wrong = patterns.iter().find(|(pattern, _)| is_wrong(pattern)).map_or("", |(_, called)| called);
    Error::input(format!("the pattern '{wrong}' cannot be read"))
        .because(error)
        .hint("name the modules without look-around or back-references")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_bounded_as_a_whole() {
        let many: Vec<(String, &str)> =
            (0..1000).map(|i| (format!("^(?:.*\\.)?(?:layers\\.{i}\\..*_proj)$"), "x")).collect();
        let patterns = Patterns::compile(&many).unwrap();
        assert_eq!(patterns.first("model.layers.37.mlp.up_proj"), Some(37));
        assert!(!patterns.any("model.layers.37.mlp.up"));
        let started = std::time::Instant::now();
        let large: Vec<(String, &str)> = (0..2000).map(|i| (format!("(x{{99}}){{99}}{i}"), "x")).collect();
        let error = Patterns::compile(&large).unwrap_err();
        assert!(error.to_string().contains("2000 patterns are too large"), "{error}");
        assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
        let error = Patterns::compile(&[("a".into(), "a"), ("(b".into(), "(b")]).unwrap_err();
        assert!(error.to_string().contains("the pattern '(b' cannot be read"), "{error}");
        assert!(Patterns::default().first("a").is_none());
    }
}
