//! `adapter_config.json` of any LoRA adapter: the rank and `lora_alpha` of each module, by PEFT's rules, and other
//! settings that change the adapter's meaning.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use crate::lora::names::{parameter_name, wrapped_by};
use crate::quant::patterns::Patterns;
use crate::{Error, Result};

/// PEFT's default for a rank or a `lora_alpha` that the config leaves out.
const DEFAULT: usize = 8;

/// The most keys of one pattern: one for every module of the largest mixtures of experts.
const MOST_KEYS: usize = 200_000;

/// What `target_modules` names.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Targets {
    /// Modules, by name or by the last parts of their names.
    Names(Vec<String>),
    /// A regular expression over whole names, or PEFT's `all-linear`.
    Pattern(String),
    /// Nothing: the key is missing or null.
    None,
}

/// The config of a LoRA adapter, whichever program wrote it. [`AdapterConfig`](crate::lora::AdapterConfig) is what
/// Trephine writes.
#[derive(Clone, Debug)]
pub struct PeftConfig {
    raw: Value,
    r: Option<usize>,
    alpha: Option<f64>,
    ranks: ByPattern<usize>,
    alphas: ByPattern<f64>,
    targets: Targets,
    target_names: HashSet<String>,
    /// `None` where the pattern cannot be read here.
    target_pattern: Option<Patterns>,
}

impl PeftConfig {
    /// Reads the text of a config. `path` is for messages only.
    ///
    /// # Errors
    /// Text that is not a JSON object; a `peft_type` other than LORA, which is named; a value of a type that its key
    /// cannot have.
    pub fn parse(text: &str, path: &Path) -> Result<PeftConfig> {
        let raw: Value = serde_json::from_str(text).map_err(|e| {
            Error::input("the adapter's config is not JSON")
                .because(e)
                .path(path)
                .hint("export the adapter again")
        })?;
        let bad = |what: String| Error::input(what).path(path);
        if !raw.is_object() {
            return Err(bad("the adapter's config is not a JSON object".into()));
        }
        match raw.get("peft_type") {
            None | Some(Value::Null) => {}
            Some(Value::String(kind)) if kind == "LORA" => {}
            Some(kind) => {
                let kind = kind.as_str().map_or_else(|| kind.to_string(), str::to_owned);
                return Err(bad(format!("the adapter is of peft_type {kind}, not LORA")).hint(
                    "only LoRA adapters can be read: merge this one into its base with PEFT, then extract a LoRA from the result",
                ));
            }
        }
        let wrong = |key: &str, expected: &str| bad(format!("{key} is {}, not {expected}", raw[key]));
        let given = |key: &str| raw.get(key).filter(|value| !value.is_null());
        let r =
            given("r").map(|value| whole(value).ok_or_else(|| wrong("r", "a whole number"))).transpose()?;
        let alpha = given("lora_alpha")
            .map(|value| value.as_f64().ok_or_else(|| wrong("lora_alpha", "a number")))
            .transpose()?;
        let targets = match given("target_modules") {
            None => Targets::None,
            Some(Value::String(pattern)) => Targets::Pattern(pattern.clone()),
            Some(list) => Targets::Names(
                strings(list).ok_or_else(|| wrong("target_modules", "a list of names or a pattern"))?,
            ),
        };
        let ordered: OrderedPatterns = serde_json::from_str(text)
            .map_err(|e| Error::input("the adapter's patterns cannot be read").because(e).path(path))?;
        let ranks = ByPattern::new(&ordered.rank_pattern.0, whole).map_err(|e| e.path(path))?;
        let alphas = ByPattern::new(&ordered.alpha_pattern.0, Value::as_f64).map_err(|e| e.path(path))?;
        let (mut target_names, mut target_pattern) = (HashSet::new(), Some(Patterns::default()));
        match &targets {
            Targets::Names(names) => target_names.extend(names.iter().cloned()),
            Targets::Pattern(pattern) => {
                target_pattern = Patterns::compile(&[(format!("^(?:{pattern})$"), pattern)]).ok();
            }
            Targets::None => {}
        }
        Ok(PeftConfig { r, alpha, ranks, alphas, targets, target_names, target_pattern, raw })
    }

    /// The config's JSON, unchanged.
    pub fn raw(&self) -> &Value {
        &self.raw
    }

    /// `r`, if it is given.
    pub fn r(&self) -> Option<usize> {
        self.r
    }

    /// `lora_alpha`, if it is given.
    pub fn lora_alpha(&self) -> Option<f64> {
        self.alpha
    }

    /// The rank that the config gives to `module`: `rank_pattern`, else `r`, else PEFT's default of 8.
    pub fn rank_of(&self, module: &str) -> usize {
        self.ranks.get(module).or(self.r).unwrap_or(DEFAULT)
    }

    /// The `lora_alpha` that the config gives to `module`: `alpha_pattern`, else `lora_alpha`, else PEFT's default of
    /// 8.
    pub fn alpha_of(&self, module: &str) -> f64 {
        self.alphas.get(module).or(self.alpha).unwrap_or(DEFAULT as f64)
    }

    /// The scale of `B·A` for `module`, whose factors have `rank`: `alpha / rank`, or `alpha / sqrt(rank)` with rsLoRA
    /// (Kalajdzievski 2023); zero for a rank of zero.
    pub fn scale_of(&self, module: &str, rank: usize) -> f64 {
        let alpha = self.alpha_of(module);
        match rank {
            0 => 0.0,
            rank if self.is("use_rslora") => alpha / (rank as f64).sqrt(),
            rank => alpha / rank as f64,
        }
    }

    /// `target_modules`.
    pub fn targets(&self) -> &Targets {
        &self.targets
    }

    /// Whether `target_modules` reaches the module, by PEFT's rule: names by the last parts of the module's name, a
    /// pattern by the whole of it. `None` where its pattern cannot be read here.
    pub(crate) fn is_target(&self, module: &str) -> Option<bool> {
        match &self.targets {
            Targets::None => Some(false),
            Targets::Names(_) => {
                let ends = module.match_indices('.').map(|(at, _)| &module[at + 1..]);
                Some(std::iter::once(module).chain(ends).any(|end| self.target_names.contains(end)))
            }
            Targets::Pattern(all) if all.eq_ignore_ascii_case("all-linear") => Some(true),
            Targets::Pattern(_) => self.target_pattern.as_ref().map(|pattern| pattern.any(module)),
        }
    }

    /// The parameter that `target_parameters` reaches and whose factors the adapter keeps under `module`: the second
    /// of two stacks under the module that has both, the first under its `base_layer`.
    pub(crate) fn target_parameter(&self, module: &str) -> Option<String> {
        let entries = self.raw.get("target_parameters")?.as_array()?;
        let is_entry = |name: &String| {
            let reaches =
                |entry: &str| name.strip_suffix(entry).is_some_and(|h| h.is_empty() || h.ends_with('.'));
            entries.iter().filter_map(Value::as_str).any(reaches)
        };
        wrapped_by(module).map(|(path, kind)| parameter_name(&format!("{path}.{kind}"))).find(is_entry)
    }

    /// `modules_to_save`; empty where it is null.
    pub fn modules_to_save(&self) -> Vec<String> {
        self.raw.get("modules_to_save").and_then(strings).unwrap_or_default()
    }

    /// The base's name or path, if it is given.
    pub fn base(&self) -> Option<&str> {
        self.text("base_model_name_or_path")
    }

    /// A string under `key`.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.raw.get(key).and_then(Value::as_str)
    }

    /// Whether `key`, for example `use_dora` or `fan_in_fan_out`, is switched on: true, a number other than 0, or
    /// anything that is not empty.
    pub fn is(&self, key: &str) -> bool {
        match self.raw.get(key) {
            None | Some(Value::Null | Value::Bool(false)) => false,
            Some(Value::Number(number)) => number.as_f64() != Some(0.0),
            Some(Value::String(text)) => !text.is_empty(),
            Some(Value::Array(list)) => !list.is_empty(),
            Some(Value::Object(map)) => !map.is_empty(),
            Some(Value::Bool(true)) => true,
        }
    }

    /// The `init_lora_weights` that makes PEFT change the base's own weights when it loads the adapter (PiSSA, OLoRA,
    /// CorDA, LoftQ): the factors then belong to that changed base, not to the base as it is published.
    pub fn init_that_changes_the_base(&self) -> Option<&str> {
        const HARMLESS: [&str; 5] = ["gaussian", "eva", "orthogonal", "mica", "lora_ga"];
        self.text("init_lora_weights").filter(|init| !HARMLESS.contains(&init.to_lowercase().as_str()))
    }
}

fn whole(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|number| usize::try_from(number).ok())
}

fn strings(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|item| item.as_str().map(str::to_owned)).collect()
}

/// The values of a pattern by its keys. PEFT matches `(.*\.)?(key)$` from the start of a module's name; the first
/// key that matches wins.
#[derive(Clone, Debug)]
struct ByPattern<T> {
    /// Keys of letters, digits and dots, of which a dot stands for any character. mergekit writes one a module, so
    /// these may be thousands and are matched without a regular expression. Each with its place among all keys.
    plain: Vec<(String, usize)>,
    /// The others.
    patterns: Patterns,
    /// Their places.
    places: Vec<usize>,
    values: Vec<T>,
}

impl<T: Copy> ByPattern<T> {
    fn new(entries: &[(String, Value)], read: impl Fn(&Value) -> Option<T>) -> Result<ByPattern<T>> {
        if entries.len() > MOST_KEYS {
            let what = format!("the config has {} patterns; at most {MOST_KEYS} are read", entries.len());
            return Err(Error::input(what));
        }
        let (mut plain, mut patterns, mut places, mut values) = (vec![], vec![], vec![], vec![]);
        for (place, (key, value)) in entries.iter().enumerate() {
            values.push(read(value).ok_or_else(|| {
                Error::input(format!("the pattern '{key}' has the value {value}, not a number"))
            })?);
            if key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')) {
                plain.push((key.clone(), place));
            } else {
                patterns.push((format!(r"^(?:.*\.)?(?:{key})$"), key.as_str()));
                places.push(place);
            }
        }
        Ok(ByPattern { plain, patterns: Patterns::compile(&patterns)?, places, values })
    }

    /// The value of the first key that matches.
    fn get(&self, module: &str) -> Option<T> {
        let plain = self.plain.iter().find(|(key, _)| is_end(key, module)).map(|(_, place)| *place);
        let pattern = self.patterns.first(module).map(|at| self.places[at]);
        let first = [plain, pattern].into_iter().flatten().min()?;
        self.values.get(first).copied()
    }
}

/// Whether a plain key matches the last parts of a module's name.
fn is_end(key: &str, module: &str) -> bool {
    let (key, module) = (key.as_bytes(), module.as_bytes());
    let Some(at) = module.len().checked_sub(key.len()) else { return false };
    let same = |(k, m): (&u8, &u8)| *k == b'.' || k == m;
    key.iter().rev().zip(module.iter().rev()).all(same) && (at == 0 || module[at - 1] == b'.')
}

/// The two patterns with their keys in the order of the file, in which PEFT tries them.
#[derive(serde::Deserialize)]
struct OrderedPatterns {
    #[serde(default)]
    rank_pattern: InOrder,
    #[serde(default)]
    alpha_pattern: InOrder,
}

/// A JSON object's entries in file order; none for null.
#[derive(Default)]
struct InOrder(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for InOrder {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = InOrder;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of patterns")
            }

            fn visit_unit<E>(self) -> std::result::Result<InOrder, E> {
                Ok(InOrder::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<InOrder, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(InOrder(entries))
            }
        }
        deserializer.deserialize_any(Pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<PeftConfig> {
        PeftConfig::parse(text, Path::new("adapter_config.json"))
    }

    #[test]
    fn patterns_match_as_pefts_do_and_the_first_wins() {
        let config = parse(
            r#"{"r": 16, "lora_alpha": 32, "rank_pattern": {"z_proj": 2, "layers.0.self_attn.q_proj": 4, "q_proj": 8,
                "layers\\.[12]\\.mlp\\.(up|gate)_proj": 6, "up_proj": 3}, "alpha_pattern": {"q_proj": 5.5}}"#,
        )
        .unwrap();
        for (module, rank, alpha) in [
            ("model.layers.0.self_attn.q_proj", 4, 5.5),
            ("layers.0.self_attn.q_proj", 4, 5.5),
            ("model.layers.10.self_attn.q_proj", 8, 5.5),
            ("model.layers.0.self_attn.xq_proj", 16, 32.0),
            ("model.layers.1.mlp.up_proj", 6, 32.0),
            ("model.layers.3.mlp.up_proj", 3, 32.0),
            ("model.layers.1.mlp.gate_proj", 6, 32.0),
            ("q_proj", 8, 5.5),
            ("q_proj.more", 16, 32.0),
            ("_proj", 16, 32.0),
        ] {
            assert_eq!((config.rank_of(module), config.alpha_of(module)), (rank, alpha), "{module}");
        }
    }

    #[test]
    fn a_plain_keys_dot_is_any_character() {
        let of = |key: &str| ByPattern::new(&[(key.to_owned(), 4.into())], whole).unwrap();
        let plain = of("a.b");
        assert_eq!(["x.a.b", "aXb", "xa.b"].map(|name| plain.get(name)), [Some(4), Some(4), None]);
        let escaped = of(r"a\.b");
        assert_eq!(["x.a.b", "aXb"].map(|name| escaped.get(name)), [Some(4), None]);
    }

    #[test]
    fn scales_are_pefts() {
        let config = parse(r#"{"r": 16, "lora_alpha": 32}"#).unwrap();
        assert_eq!((config.scale_of("a", 16), config.scale_of("a", 0)), (2.0, 0.0));
        let config = parse(r#"{"r": 16, "lora_alpha": 32, "use_rslora": true}"#).unwrap();
        assert_eq!(config.scale_of("a", 16), 8.0);
        let silent = parse("{}").unwrap();
        assert_eq!((silent.r(), silent.rank_of("a"), silent.scale_of("a", 4)), (None, 8, 2.0));
    }

    #[test]
    fn what_no_key_can_have_is_named() {
        for (text, words) in [
            ("[]", "not a JSON object"),
            ("{", "not JSON"),
            (r#"{"peft_type": "LOHA"}"#, "of peft_type LOHA, not LORA"),
            (r#"{"r": -1}"#, "r is -1, not a whole number"),
            (r#"{"r": 4.5}"#, "r is 4.5"),
            (r#"{"lora_alpha": "16"}"#, "lora_alpha is \"16\", not a number"),
            (r#"{"target_modules": {"a": 1}}"#, "target_modules is"),
            (r#"{"rank_pattern": {"q": "x"}}"#, "the pattern 'q' has the value \"x\""),
            (r#"{"rank_pattern": {"(": 1}}"#, "the pattern '(' cannot be read"),
            (r#"{"rank_pattern": [1]}"#, "the adapter's patterns cannot be read"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.to_string().contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_on_is_what_is_not_empty() {
        let config = parse(
            r#"{"a": true, "b": false, "c": null, "d": [], "e": [1], "f": {}, "g": "x", "h": 0, "init_lora_weights": "pissa_niter_4"}"#,
        )
        .unwrap();
        let on: String = "abcdefghi".chars().filter(|key| config.is(&key.to_string())).collect();
        assert_eq!(on, "aeg");
        assert_eq!(config.init_that_changes_the_base(), Some("pissa_niter_4"));
        assert_eq!(parse(r#"{"init_lora_weights": "EVA"}"#).unwrap().init_that_changes_the_base(), None);
        assert_eq!(parse(r#"{"init_lora_weights": true}"#).unwrap().init_that_changes_the_base(), None);
    }
}
