//! The command line that does the missing work of a run, built from the run's records.

use std::path::Path;

use serde_json::{Map, Value};

use crate::delta::record::Side;
use crate::run::attempts::attempt::AttemptInfo;
use crate::run::identity::RunIdentity;
use crate::run::parts::part_id::Part;

/// The recorded command on the recorded inputs, with those of its options that differ from `defaults`, for `part` or
/// for the whole run.
pub fn rerun_command(
    identity: &RunIdentity,
    info: &AttemptInfo,
    defaults: &Map<String, Value>,
    out: &Path,
    part: Option<Part>,
) -> String {
    let out = std::path::absolute(out).unwrap_or_else(|_| out.to_owned());
    let mut words = vec!["trephine".to_owned(), identity.command.clone()];
    for (side, place) in info.places.iter().flat_map(|(side, places)| places.iter().map(move |p| (side, p))) {
        if *side != Side::Checkpoint {
            words.push(format!("--{}", side.flag()));
        }
        words.push(place.clone());
    }
    words.extend(["--out".to_owned(), out.to_string_lossy().into_owned()]);
    words.extend(flags(&identity.options, defaults));
    if let Some(part) = part {
        words.extend(["--part".to_owned(), part.to_string()]);
    }
    shlex::try_join(words.iter().map(String::as_str)).unwrap_or_else(|_| words.join(" "))
}

/// The `options` that differ from the defaults, as flags: each option is named like its flag.
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
    use serde_json::json;

    use super::*;

    #[test]
    fn only_options_that_differ_from_the_defaults_become_flags() {
        let map = |value: Value| value.as_object().cloned().unwrap_or_default();
        let defaults =
            map(json!({"rank": 128, "energy": null, "include": [], "trim_vocab": false, "name": "base"}));
        assert_eq!(flags(&defaults, &defaults), Vec::<String>::new());
        let options = map(
            json!({"rank": 8, "energy": 0.5, "include": ["linear", "lm_head"], "trim_vocab": true, "name": "Qwen 3"}),
        );
        let mut words = flags(&options, &defaults);
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
            "--name",
            "Qwen 3",
        ];
        expected.sort_unstable();
        assert_eq!(words, expected);
    }
}
