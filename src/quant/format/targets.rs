//! Which modules a config refers to: exact names, `re:` patterns, layer classes; interpreted as in compressed-tensors'
//! `utils/match.py`.

use std::collections::HashSet;

use serde_json::Value;

use crate::quant::patterns::Patterns;
use crate::{Error, Result};

/// A list of targets.
#[derive(Clone, Debug, Default)]
pub(crate) struct Targets {
    names: HashSet<String>,
    /// Matched at a name's start, as Python's `re.match` does.
    patterns: Patterns,
    /// Whether all modules are meant.
    every: bool,
}

/// How closely a list names a module, from loosest to closest: by its class, by a pattern, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fit {
    Class,
    Pattern,
    Name,
}

impl Targets {
    /// Every module.
    pub(crate) fn everything() -> Targets {
        Targets { every: true, ..Targets::default() }
    }

    /// Parses a JSON list of strings; a missing or null list is empty.
    ///
    /// # Errors
    /// An entry that is not a string, or a pattern that only Python supports (with a look-around).
    pub(crate) fn parse(origin: &str, list: Option<&Value>) -> Result<Targets> {
        let entries = match list {
            None | Some(Value::Null) => return Ok(Targets::default()),
            Some(Value::Array(entries)) => entries,
            Some(other) => return Err(unreadable(origin, other)),
        };
        let (mut names, mut patterns) = (HashSet::new(), Vec::new());
        for entry in entries {
            let text = entry.as_str().ok_or_else(|| unreadable(origin, entry))?;
            match text.strip_prefix("re:") {
                None => drop(names.insert(text.to_owned())),
                Some(pattern) => patterns.push((format!("^(?:{pattern})"), text)),
            }
        }
        let patterns = Patterns::compile(&patterns)
            .map_err(|e| Error::input(format!("{origin}: the list of modules cannot be read")).because(e))?;
        Ok(Targets { names, patterns, every: false })
    }

    /// How this list names `module`, if it does. A file does not show a module's class: `Embedding` is taken to mean
    /// input embeddings, and any other word that begins with a capital, for example `Linear`, every other module.
    pub(crate) fn fit(&self, module: &str) -> Option<Fit> {
        let last = module.rsplit('.').next().unwrap_or(module);
        let embedding = ["embed_tokens", "wte", "word_embeddings", "tok_embeddings"].contains(&last);
        if self.names.contains(module) {
            return Some(Fit::Name);
        }
        if self.patterns.any(module) {
            return Some(Fit::Pattern);
        }
        if self.every {
            return Some(Fit::Class);
        }
        let is_class = |name: &&String| name.starts_with(char::is_uppercase) && !name.contains('.');
        let mut classes = self.names.iter().filter(is_class);
        classes.any(|name| (name == "Embedding") == embedding).then_some(Fit::Class)
    }
}

fn unreadable(origin: &str, entry: &Value) -> Error {
    Error::input(format!("{origin}: {entry} names no modules"))
        .hint("write a module name, or `re:` and a pattern without look-around")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Fit, Targets};

    #[test]
    fn names_patterns_and_classes() {
        let list = json!(["Linear", "re:.*q_proj$", "model.layers.0.mlp.up_proj"]);
        let targets = Targets::parse("config.json", Some(&list)).unwrap();
        assert_eq!(targets.fit("model.layers.0.mlp.up_proj"), Some(Fit::Name));
        assert_eq!(targets.fit("model.layers.0.self_attn.q_proj"), Some(Fit::Pattern));
        assert_eq!(targets.fit("model.layers.0.self_attn.k_proj"), Some(Fit::Class));
        assert_eq!(targets.fit("model.embed_tokens"), None, "an embedding is not a Linear");
        let start = Targets::parse("config.json", Some(&json!(["re:model"]))).unwrap();
        assert_eq!(start.fit("model.x"), Some(Fit::Pattern));
        assert_eq!(start.fit("a.model.x"), None, "matched at the start only");
        let error = Targets::parse("config.json", Some(&json!(["re:^(?!x).*"]))).unwrap_err();
        assert!(error.to_string().starts_with("config.json: the list of modules cannot be read"), "{error}");
        assert!(error.to_string().contains("'re:^(?!x).*'"), "{error}");
        assert!(Targets::parse("config.json", Some(&json!([1]))).is_err());
        assert!(Targets::parse("config.json", Some(&json!("Linear"))).is_err());
    }
}
