//! The command line that does what is missing, made of what a run has recorded.

use std::path::Path;

use serde_json::{Map, Value};

use crate::Result;
use crate::commands::extract::attempts::attempt::How;
use crate::commands::extract::options::Deciding;
use crate::commands::extract::run_identity;
use crate::run::part_id::Part;

/// `trephine extract` with the recorded checkpoints and options, for `part` or for all.
///
/// # Errors
/// Options that JSON cannot hold.
pub fn extract_command(
    how: &How,
    options: &Map<String, Value>,
    out: &Path,
    part: Option<Part>,
) -> Result<String> {
    let out = std::path::absolute(out).unwrap_or_else(|_| out.to_owned());
    let mut words: Vec<String> =
        ["trephine", "extract", "--base", &how.base, "--tuned", &how.tuned].map(str::to_owned).into();
    if let Some(served) = &how.served {
        words.extend(["--served".to_owned(), served.clone()]);
    }
    words.extend(["--out".to_owned(), out.to_string_lossy().into_owned()]);
    words.extend(flags(options, &run_identity::deciding(&Deciding::for_base(&how.base))?));
    if let Some(part) = part {
        words.extend(["--part".to_owned(), part.to_string()]);
    }
    Ok(shlex::try_join(words.iter().map(String::as_str)).unwrap_or_else(|_| words.join(" ")))
}

/// Those of `options` that are not the defaults: they bear the names of their flags.
fn flags(options: &Map<String, Value>, defaults: &Map<String, Value>) -> Vec<String> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut words = Vec::new();
    for (name, value) in options.iter().filter(|(name, value)| defaults.get(*name) != Some(*value)) {
        let flag = format!("--{}", name.replace('_', "-"));
        match value {
            Value::Null | Value::Bool(false) => {}
            Value::Bool(true) => words.push(flag),
            Value::Array(values) => words.extend(values.iter().flat_map(|v| [flag.clone(), text(v)])),
            value => words.extend([flag, text(value)]),
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_not_the_default_is_said() {
        let defaults = run_identity::deciding(&Deciding::for_base("base")).unwrap();
        assert_eq!(flags(&defaults, &defaults), Vec::<String>::new());
        let deciding = Deciding {
            rank: 8,
            energy: Some(0.5),
            include: vec!["linear".into(), "lm_head".into()],
            trim_vocab: true,
            base_model_name: "Qwen/Qwen3 32B".into(),
            ..Deciding::for_base("base")
        };
        let mut words = flags(&run_identity::deciding(&deciding).unwrap(), &defaults);
        words.sort();
        let mut expected = [
            "--rank",
            "8",
            "--energy",
            "0.5",
            "--include",
            "linear",
            "--include",
            "lm_head",
            "--trim-vocab",
            "--base-model-name",
            "Qwen/Qwen3 32B",
        ];
        expected.sort();
        assert_eq!(words, expected);
    }
}
