//! What an index says: which file holds which tensor. It is read as it streams by, and the name of a file is kept once
//! for all of its tensors.

use std::collections::HashMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// The most tensors in all files together.
pub(crate) const MOST_TENSORS: usize = 1_000_000;

/// An index.
#[derive(Deserialize)]
pub(crate) struct Index {
    /// Its only part that matters.
    #[serde(default)]
    pub(crate) weight_map: Option<WeightMap>,
}

/// From tensor to file.
#[derive(Debug, Default)]
pub(crate) struct WeightMap {
    /// The names of files, in the order in which they were met.
    pub(crate) files: Vec<String>,
    /// Tensors by name, each with the number of its file; `None` where the entry is not a string.
    pub(crate) tensors: Vec<(Box<str>, Option<usize>)>,
}

impl WeightMap {
    /// The file of a tensor.
    pub(crate) fn file(&self, tensor: &str) -> Option<&str> {
        let at = self.tensors.binary_search_by(|(name, _)| (**name).cmp(tensor)).ok()?;
        self.files.get(self.tensors[at].1?).map(String::as_str)
    }

    /// Every tensor with its file, by name.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tensors.iter().filter_map(|(name, file)| Some((&**name, self.files.get((*file)?)?.as_str())))
    }
}

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<WeightMap, D::Error> {
        deserializer.deserialize_map(Entries)
    }
}

struct Entries;

impl<'de> Visitor<'de> for Entries {
    type Value = WeightMap;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of file names")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
        let (mut found, mut numbers) = (WeightMap::default(), HashMap::new());
        while let Some(tensor) = map.next_key::<Box<str>>()? {
            if found.tensors.len() == MOST_TENSORS {
                return Err(A::Error::custom(format!("it names more than {MOST_TENSORS} tensors")));
            }
            let file = map.next_value_seed(File { numbers: &mut numbers, names: &mut found.files })?;
            found.tensors.push((tensor, file));
        }
        // Of two entries with one name the last one counts, as in every reader of JSON.
        found.tensors.reverse();
        found.tensors.sort_by(|a, b| a.0.cmp(&b.0));
        found.tensors.dedup_by(|later, kept| later.0 == kept.0);
        found.tensors.shrink_to_fit();
        Ok(found)
    }
}

/// The value of an entry: the number of the file, which gets one if it is new.
struct File<'a> {
    numbers: &'a mut HashMap<String, usize>,
    names: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for File<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<usize>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for File<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a file name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Option<usize>, E> {
        if let Some(number) = self.numbers.get(name) {
            return Ok(Some(*number));
        }
        let number = self.names.len();
        self.numbers.insert(name.to_owned(), number);
        self.names.push(name.to_owned());
        Ok(Some(number))
    }

    // Values that are no text are skipped.
    fn visit_bool<E>(self, _: bool) -> Result<Option<usize>, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Option<usize>, E> {
        Ok(None)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Option<usize>, E> {
        Ok(None)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Option<usize>, E> {
        Ok(None)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Option<usize>, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Option<usize>, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Option<usize>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_entry_of_a_name_counts_and_what_is_no_name_is_kept_as_such() {
        let text = r#"{"metadata": {"x": [1]}, "weight_map": {"b": "2", "a": "1", "c": [{"d": 1}], "e": 1.5, "b": "1"}}"#;
        let map = serde_json::from_str::<Index>(text).unwrap().weight_map.unwrap();
        assert_eq!(map.entries().collect::<Vec<_>>(), [("a", "1"), ("b", "1")]);
        assert_eq!((map.file("b"), map.file("c"), map.file("x")), (Some("1"), None, None));
        assert_eq!(map.files, ["2", "1"]);
        let numbers: Vec<_> = map.tensors.iter().map(|(name, file)| (&**name, *file)).collect();
        assert_eq!(numbers, [("a", Some(1)), ("b", Some(1)), ("c", None), ("e", None)]);
        assert!(serde_json::from_str::<Index>(r#"{"weight_map": null}"#).unwrap().weight_map.is_none());
        assert!(serde_json::from_str::<Index>(r#"{"weight_map": [1]}"#).is_err());
    }
}
