//! Names and shapes that many records share. A checkpoint may have a hundred thousand tensors, and each is named in the
//! catalogue, in its module, in its decoder, in the plan and in the record of what was read: a copy costs a pointer.

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The number that a part of a name is, as programs write it: digits alone, without leading zeros. Of `3`, `03` and
/// `+3`, which name different tensors, one is a number, so that no two are taken for the same.
pub(crate) fn number_in_name(text: &str) -> Option<usize> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| is_plain)
}

/// A name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

impl Name {
    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

// Hash and Ord of a name are those of its text, as `Borrow` requires.
impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Default for Name {
    fn default() -> Name {
        Name::from("")
    }
}

impl From<&str> for Name {
    fn from(text: &str) -> Name {
        Name(text.into())
    }
}

impl From<String> for Name {
    fn from(text: String) -> Name {
        Name(text.into())
    }
}

impl From<&String> for Name {
    fn from(text: &String) -> Name {
        Name(text.as_str().into())
    }
}

impl From<&Name> for Name {
    fn from(name: &Name) -> Name {
        name.clone()
    }
}

impl From<&Name> for String {
    fn from(name: &Name) -> String {
        name.as_str().to_owned()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.as_str().to_owned()
    }
}

impl PartialEq<str> for Name {
    fn eq(&self, other: &str) -> bool {
        *self.0 == *other
    }
}

impl PartialEq<&str> for Name {
    fn eq(&self, other: &&str) -> bool {
        *self.0 == **other
    }
}

impl PartialEq<String> for Name {
    fn eq(&self, other: &String) -> bool {
        *self.0 == **other
    }
}

impl PartialEq<Name> for String {
    fn eq(&self, other: &Name) -> bool {
        **self == *other.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Name, D::Error> {
        Cow::<'de, str>::deserialize(deserializer).map(|text| Name::from(&*text))
    }
}

/// The shape of an array, outermost dimension first.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shape(Arc<[usize]>);

impl Shape {
    /// Its dimensions.
    pub fn as_slice(&self) -> &[usize] {
        &self.0
    }
}

impl Deref for Shape {
    type Target = [usize];

    fn deref(&self) -> &[usize] {
        &self.0
    }
}

impl From<Vec<usize>> for Shape {
    fn from(shape: Vec<usize>) -> Shape {
        Shape(shape.into())
    }
}

impl From<&[usize]> for Shape {
    fn from(shape: &[usize]) -> Shape {
        Shape(shape.into())
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(shape: [usize; N]) -> Shape {
        Shape(shape.as_slice().into())
    }
}

impl Borrow<[usize]> for Shape {
    fn borrow(&self) -> &[usize] {
        &self.0
    }
}

impl<const N: usize> PartialEq<[usize; N]> for Shape {
    fn eq(&self, other: &[usize; N]) -> bool {
        *self.0 == *other
    }
}

impl PartialEq<[usize]> for Shape {
    fn eq(&self, other: &[usize]) -> bool {
        *self.0 == *other
    }
}

impl PartialEq<Vec<usize>> for Shape {
    fn eq(&self, other: &Vec<usize>) -> bool {
        *self.0 == **other
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl Serialize for Shape {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter())
    }
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Shape, D::Error> {
        Vec::<usize>::deserialize(deserializer).map(Shape::from)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use super::*;

    #[test]
    fn a_name_is_found_by_its_text_and_written_as_it() {
        let name = Name::from("model.layers.0.q_proj \u{e9}\n");
        assert_eq!(HashMap::from([(name.clone(), 1)]).get("model.layers.0.q_proj \u{e9}\n"), Some(&1));
        assert_eq!(BTreeMap::from([(name.clone(), 1)]).get(&*name), Some(&1));
        let json = serde_json::to_string(&name).unwrap();
        assert_eq!(json, serde_json::to_string(&*name).unwrap());
        assert_eq!(serde_json::from_str::<Name>(&json).unwrap(), name);
        assert_eq!(format!("{name:?} {:>4}", Name::from("a")), format!("{:?}    a", &*name));
    }

    #[test]
    fn a_number_has_one_spelling() {
        assert_eq!(["0", "7", "160"].map(number_in_name), [Some(0), Some(7), Some(160)]);
        for other in ["", "03", "00", "+3", "-1", " 3", "3 ", "three", "99999999999999999999999"] {
            assert_eq!(number_in_name(other), None, "{other:?}");
        }
    }

    #[test]
    fn a_shape_is_a_list_of_numbers() {
        let shape = Shape::from([2, 3]);
        assert_eq!(serde_json::to_string(&shape).unwrap(), "[2,3]");
        assert_eq!(serde_json::from_str::<Shape>("[2,3]").unwrap(), shape);
        assert_eq!((shape.len(), format!("{shape:?}")), (2, "[2, 3]".to_owned()));
    }
}
