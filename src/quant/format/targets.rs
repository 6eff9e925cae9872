//! Which modules a config refers to: exact names, `re:` patterns, layer classes; interpreted as in compressed-tensors'
//! `utils/match.py`.

use regex::Regex;
use serde_json::Value;

use crate::{Error, Result};

/// One entry of `targets` or `ignore`.
#[derive(Clone, Debug)]
enum Target {
    Name(String),
    /// Matched at the start of the name, as Python's `re.match` does.
    Pattern(Regex),
}

/// A list of targets.
#[derive(Clone, Debug, Default)]
pub(crate) struct Targets(Vec<Target>);

/// How closely a list names a module, from loosest to closest: by its class, by a pattern, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fit {
    Class,
    Pattern,
    Name,
}

impl Targets {
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
        let parse = |entry: &Value| {
            let text = entry.as_str().ok_or_else(|| unreadable(origin, entry))?;
            match text.strip_prefix("re:") {
                None => Ok(Target::Name(text.to_owned())),
                Some(pattern) => Regex::new(&format!("^(?:{pattern})"))
                    .map(Target::Pattern)
                    .map_err(|e| unreadable(origin, entry).because(e)),
            }
        };
        entries.iter().map(parse).collect::<Result<_>>().map(Targets)
    }

    /// How this list names `module`, if it does. A file does not show a module's class: `Embedding` is taken to mean
    /// input embeddings, and any other word that begins with a capital, for example `Linear`, every other module.
    pub(crate) fn fit(&self, module: &str) -> Option<Fit> {
        let last = module.rsplit('.').next().unwrap_or(module);
        let embedding = ["embed_tokens", "wte", "word_embeddings", "tok_embeddings"].contains(&last);
        let fit = |target: &Target| match target {
            Target::Name(name) if name == module => Some(Fit::Name),
            Target::Name(name) => {
                let class = name.starts_with(char::is_uppercase) && !name.contains('.');
                (class && (name == "Embedding") == embedding).then_some(Fit::Class)
            }
            Target::Pattern(pattern) => pattern.is_match(module).then_some(Fit::Pattern),
        };
        self.0.iter().filter_map(fit).max()
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
        assert!(error.to_string().starts_with("config.json: \"re:^(?!x).*\" names no modules"), "{error}");
        assert!(Targets::parse("config.json", Some(&json!([1]))).is_err());
        assert!(Targets::parse("config.json", Some(&json!("Linear"))).is_err());
    }
}
