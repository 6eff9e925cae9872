//! The JSON of a safetensors header, parsed into tensors as it streams by: what a hostile header claims is never
//! held, only what it can prove to be a tensor.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::io::Read;
use std::ops::Range;

use safetensors::Dtype;
use serde::de::value::StrDeserializer;
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::Number;

use crate::quant::weight::TensorInfo;
use crate::shared::Shape;
use crate::{Error, Result};

/// The most tensors that one file may have. The largest models have some hundred thousand in all their files.
pub(crate) const MOST_TENSORS: usize = 400_000;

/// The longest name of a tensor, in bytes.
pub(crate) const LONGEST_NAME: usize = 4096;

/// The most dimensions of a tensor.
const MOST_DIMENSIONS: usize = 16;

/// The key that no tensor can have.
const METADATA: &str = "__metadata__";

/// A tensor's entry: its bytes count from the end of the header.
pub(crate) type Entry = (TensorInfo, Range<u64>);

/// Parses the JSON that `reader` holds to its end. The tensors come in the order of the header. Strings of the
/// metadata go to `metadata` where that is wanted.
///
/// # Errors
/// [`Kind::Input`](crate::Kind::Input) for what is no header, or describes a tensor that contradicts itself; a
/// failing read.
pub(crate) fn parse(
    reader: impl Read,
    metadata: Option<&mut BTreeMap<String, String>>,
) -> Result<Vec<Entry>> {
    let mut parser = Parser {
        tensors: Vec::new(),
        names: HashSet::new(),
        shapes: HashSet::new(),
        metadata,
        refusal: None,
        inside: false,
    };
    let mut json = serde_json::Deserializer::from_reader(reader);
    let parsed = json.deserialize_map(&mut parser).and_then(|()| json.end());
    let Parser { tensors, refusal, inside, .. } = parser;
    match (refusal, parsed) {
        (Some(refusal), _) => Err(refusal),
        (None, Ok(())) => Ok(tensors),
        (None, Err(e)) if e.is_io() => Err(Error::unexpected("cannot read the header").because(e)),
        (None, Err(e)) if inside => Err(Error::input("the header is not valid").because(e)),
        (None, Err(e)) => Err(Error::input("the header is not a JSON object").because(e)),
    }
}

struct Parser<'m> {
    tensors: Vec<Entry>,
    names: HashSet<blake3::Hash>,
    /// Most tensors have one of a few shapes.
    shapes: HashSet<Shape>,
    metadata: Option<&'m mut BTreeMap<String, String>>,
    /// Why the header is refused, where that is not about JSON.
    refusal: Option<Error>,
    /// Whether it is the metadata that is read.
    inside: bool,
}

impl Parser<'_> {
    /// Keeps the error and ends the parsing.
    fn refuse<T, E: serde::de::Error>(&mut self, error: Error) -> std::result::Result<T, E> {
        self.refusal = Some(error);
        Err(E::custom("refused"))
    }
}

impl<'de> Visitor<'de> for &mut Parser<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        let mut has_metadata = false;
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA && !has_metadata {
                (has_metadata, self.inside) = (true, true);
                map.next_value_seed(Metadata(self.metadata.as_deref_mut()))?;
                self.inside = false;
                continue;
            }
            if name.len() > LONGEST_NAME {
                let what =
                    format!("a tensor's name has {} bytes; at most {LONGEST_NAME} are read", name.len());
                return self.refuse(Error::input(what));
            }
            // A digest each: the names themselves are in the tensors.
            if name == METADATA || !self.names.insert(blake3::hash(name.as_bytes())) {
                return self.refuse(Error::input("the header names a tensor twice").tensor(name));
            }
            if self.tensors.len() == MOST_TENSORS {
                let what = format!("the header names more than {MOST_TENSORS} tensors");
                return self.refuse(Error::input(what));
            }
            let fields: Fields = map.next_value()?;
            match fields.check(name.as_str(), &mut self.shapes) {
                Ok(entry) => self.tensors.push(entry),
                Err(error) => return self.refuse(error.tensor(name)),
            }
        }
        Ok(())
    }
}

/// An object of strings, or null.
struct Metadata<'m>(Option<&'m mut BTreeMap<String, String>>);

impl<'de> DeserializeSeed<'de> for Metadata<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Metadata<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_unit<E>(self) -> std::result::Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> std::result::Result<(), A::Error> {
        while let Some((key, value)) = map.next_entry::<String, String>()? {
            if let Some(kept) = self.0.as_deref_mut() {
                kept.insert(key, value);
            }
        }
        Ok(())
    }
}

/// What an entry has, as far as it was understood.
#[derive(Default)]
struct Fields {
    dtype: Option<Field>,
    shape: Option<Field>,
    data_offsets: Option<Field>,
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Fields, D::Error> {
        deserializer.deserialize_any(FieldsVisitor)
    }
}

struct FieldsVisitor;

/// The visits of values that are no object, whatever they are.
macro_rules! scalars {
    ($made:expr) => {
        fn visit_bool<E>(self, value: bool) -> std::result::Result<Self::Value, E> {
            Ok($made(value.to_string()))
        }

        fn visit_unit<E>(self) -> std::result::Result<Self::Value, E> {
            Ok($made("null".to_owned()))
        }
    };
}

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields;

    scalars!(|_| Fields::default());

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with dtype, shape and data_offsets")
    }

    fn visit_u64<E>(self, _: u64) -> std::result::Result<Fields, E> {
        Ok(Fields::default())
    }

    fn visit_i64<E>(self, _: i64) -> std::result::Result<Fields, E> {
        Ok(Fields::default())
    }

    fn visit_f64<E>(self, _: f64) -> std::result::Result<Fields, E> {
        Ok(Fields::default())
    }

    fn visit_str<E>(self, _: &str) -> std::result::Result<Fields, E> {
        Ok(Fields::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Fields, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Fields::default())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Fields, A::Error> {
        let mut fields = Fields::default();
        while let Some(key) = map.next_key::<String>()? {
            let field = match key.as_str() {
                "dtype" => &mut fields.dtype,
                "shape" => &mut fields.shape,
                "data_offsets" => &mut fields.data_offsets,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            if field.is_some() {
                return Err(A::Error::custom(format!("a tensor has the key {key} twice")));
            }
            *field = Some(map.next_value()?);
        }
        Ok(fields)
    }
}

/// The value of one key.
enum Field {
    Text(String),
    Numbers(Vec<u64>),
    /// Anything else, as far as it is shown.
    Other(String),
    /// A list of more numbers than any tensor has dimensions: so many.
    Long(u64),
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Field, D::Error> {
        deserializer.deserialize_any(FieldVisitor)
    }
}

struct FieldVisitor;

impl<'de> Visitor<'de> for FieldVisitor {
    type Value = Field;

    scalars!(Field::Other);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text or a list of numbers")
    }

    fn visit_u64<E>(self, value: u64) -> std::result::Result<Field, E> {
        Ok(Field::Other(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> std::result::Result<Field, E> {
        Ok(Field::Other(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> std::result::Result<Field, E> {
        Ok(Field::Other(value.to_string()))
    }

    fn visit_str<E>(self, text: &str) -> std::result::Result<Field, E> {
        Ok(Field::Text(text.chars().take(64).collect()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Field, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Field::Other("an object".to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Field, A::Error> {
        let (mut numbers, mut shown, mut count, mut whole) = (Vec::new(), Vec::new(), 0u64, true);
        while let Some(Element(number)) = list.next_element()? {
            count += 1;
            whole &= number.as_ref().is_some_and(Number::is_u64);
            if shown.len() < MOST_DIMENSIONS {
                numbers.extend(number.as_ref().and_then(Number::as_u64));
                shown.push(number.map_or("…".to_owned(), |number| number.to_string()));
            }
        }
        Ok(match (whole, count as usize > MOST_DIMENSIONS) {
            (true, true) => Field::Long(count),
            (true, false) => Field::Numbers(numbers),
            (false, _) => Field::Other(format!("[{}]", shown.join(","))),
        })
    }
}

/// An element of a list: a number, or something else.
struct Element(Option<Number>);

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Element, D::Error> {
        deserializer.deserialize_any(ElementVisitor)
    }
}

struct ElementVisitor;

impl<'de> Visitor<'de> for ElementVisitor {
    type Value = Element;

    scalars!(|_| Element(None));

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number")
    }

    fn visit_u64<E>(self, value: u64) -> std::result::Result<Element, E> {
        Ok(Element(Some(value.into())))
    }

    fn visit_i64<E>(self, value: i64) -> std::result::Result<Element, E> {
        Ok(Element(Some(value.into())))
    }

    fn visit_f64<E>(self, value: f64) -> std::result::Result<Element, E> {
        Ok(Element(Number::from_f64(value)))
    }

    fn visit_str<E>(self, _: &str) -> std::result::Result<Element, E> {
        Ok(Element(None))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Element, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Element(None))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Element, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Element(None))
    }
}

impl Fields {
    /// The tensor, each of its fields checked against the others.
    fn check(self, name: &str, shapes: &mut HashSet<Shape>) -> Result<Entry> {
        let missing = |key: &str| Error::input(format!("the header's entry has no {key}"));
        let dtype = dtype(self.dtype.ok_or_else(|| missing("dtype"))?)?;
        let shape = numbers(self.shape.ok_or_else(|| missing("shape"))?, "shape")?;
        let offsets = numbers(self.data_offsets.ok_or_else(|| missing("data_offsets"))?, "data_offsets")?;
        let &[start, end] = offsets.as_slice() else {
            return Err(Error::input(format!("data_offsets has {} numbers, not 2", offsets.len())));
        };
        let dims: Option<Vec<usize>> = shape.iter().map(|&dim| usize::try_from(dim).ok()).collect();
        let elements =
            dims.as_ref().and_then(|dims| dims.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim)));
        let bits = elements.and_then(|n| n.checked_mul(dtype.bitsize()));
        let overflow = || Error::input(format!("shape {shape:?} overflows"));
        let (bits, dims) = (bits.ok_or_else(overflow)?, dims.ok_or_else(overflow)?);
        let known = shapes.get(dims.as_slice()).cloned();
        let shape = known.unwrap_or_else(|| {
            let shape = Shape::from(dims);
            shapes.insert(shape.clone());
            shape
        });
        let stored = TensorInfo::new(name, dtype, shape);
        let given = end.checked_sub(start).ok_or_else(|| {
            Error::input(format!("the bytes of a tensor end at {end}, before their start at {start}"))
        })?;
        if bits % 8 != 0 {
            return Err(Error::input(format!("{} does not fill whole bytes", stored.describe())));
        }
        if given != (bits / 8) as u64 {
            let what =
                format!("{} needs {} bytes, but its offsets give {given}", stored.describe(), bits / 8);
            return Err(Error::input(what));
        }
        Ok((stored, start..end))
    }
}

fn dtype(field: Field) -> Result<Dtype> {
    let unknown = |shown: String| {
        Error::input(format!("unknown dtype {shown}"))
            .hint("use a newer trephine that may know it, or convert the checkpoint to bf16 or f32")
    };
    match field {
        Field::Text(text) => {
            let known = Dtype::deserialize(StrDeserializer::<serde::de::value::Error>::new(&text));
            known.map_err(|_| unknown(format!("{text:?}")))
        }
        Field::Other(shown) => Err(unknown(shown)),
        Field::Numbers(list) => Err(unknown(format!("{list:?}"))),
        Field::Long(count) => Err(unknown(format!("a list of {count} numbers"))),
    }
}

fn numbers(field: Field, key: &str) -> Result<Vec<u64>> {
    let wrong = |shown: String| Error::input(format!("{key} is {shown}, not a list of whole numbers"));
    match field {
        Field::Numbers(numbers) => Ok(numbers),
        Field::Text(text) => Err(wrong(format!("{text:?}"))),
        Field::Other(shown) => Err(wrong(shown)),
        Field::Long(count) if key == "data_offsets" => {
            Err(Error::input(format!("data_offsets has {count} numbers, not 2")))
        }
        Field::Long(count) => {
            Err(Error::input(format!("{key} has {count} dimensions; at most {MOST_DIMENSIONS} are read")))
        }
    }
}
