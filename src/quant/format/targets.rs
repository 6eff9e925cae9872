//! Which modules a config speaks of: exact names, `re:` patterns, classes of layers; as compressed-tensors' `utils/match.py` reads them.

use regex::Regex;
use serde_json::Value;

use crate::{Error, Result};

/// One entry of `targets` or `ignore`.
#[derive(Clone, Debug)]
enum Target {
    Name(String),
    /// Matched at the name's start, as Python's `re.match` does.
    Pattern(Regex),
}

/// A list of targets.
#[derive(Clone, Debug, Default)]
pub(crate) struct Targets(Vec<Target>);

/// How well a list names a module, the better the greater: by its class, by a pattern, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fit {
    Class,
    Pattern,
    Name,
}

impl Targets {
    /// Reads a JSON list of strings; nothing is an empty list.
    ///
    /// # Errors
    /// Something else than a string, or a pattern that only Python reads (with a look-around).
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

    /// How this list names `module`, if it does. A class cannot be seen in a file: `Embedding` is taken for input embeddings
    /// and any other word that begins with a capital, as `Linear`, for every other module.
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
        .hint("write it as a name or as `re:` and a pattern without look-around")
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
        assert_eq!(targets.fit("model.embed_tokens"), None, "an embedding is no Linear");
        let start = Targets::parse("config.json", Some(&json!(["re:model"]))).unwrap();
        assert_eq!(start.fit("model.x"), Some(Fit::Pattern));
        assert_eq!(start.fit("a.model.x"), None, "matched at the start only");
        let error = Targets::parse("config.json", Some(&json!(["re:^(?!x).*"]))).unwrap_err();
        assert!(error.to_string().starts_with("config.json: \"re:^(?!x).*\" names no modules"), "{error}");
        assert!(Targets::parse("config.json", Some(&json!([1]))).is_err());
        assert!(Targets::parse("config.json", Some(&json!("Linear"))).is_err());
    }
}
