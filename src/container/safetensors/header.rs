//! Reading the header of a safetensors file: 8 bytes of length, JSON, then the tensors' bytes without gaps.
//!
//! Our own checks come first for their messages, which name the tensor and the bytes. The `safetensors` crate then
//! checks everything once more. (Its `read_metadata` needs the whole file as one slice; its `Metadata` makes the same
//! checks and does not map the file.)

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;

use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use crate::quant::weight::TensorInfo;
use crate::storage::Storage;
use crate::{Error, Result};

/// The largest header that the format allows, in bytes. Headers usually describe thousands of tensors in about a
/// hundred bytes each.
pub(crate) const LARGEST: u64 = 100_000_000;
pub(crate) const AGAIN: &str = "the file is damaged or was cut short: download or copy it again";

/// The content of a file's header.
#[derive(Debug)]
pub(crate) struct Header {
    /// Tensors and their byte ranges in the file, in the order of the bytes.
    pub(crate) tensors: Vec<(TensorInfo, Range<u64>)>,
    /// The blake3 of the length and the JSON.
    pub(crate) digest: blake3::Hash,
}

/// Reads and checks the header of a file.
pub(crate) fn read(file: &dyn Storage) -> Result<Header> {
    let bad = |what: String| Error::input(what).path(file.location()).hint(AGAIN);
    if file.length() == 0 {
        return Err(bad("the file is empty".to_owned()));
    }
    let mut start = vec![0u8; file.length().min(64) as usize];
    file.read_into(0, &mut start)?;
    if is_lfs_pointer(&start) {
        return Err(lfs_pointer().path(file.location()));
    }
    let Some(length) = start.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes)) else {
        return Err(bad(format!("the file has {} bytes, too few for a header", file.length())));
    };
    if length > LARGEST {
        let what = format!("the header claims {length} bytes; the format allows {LARGEST}");
        let cure = "this is probably not a safetensors file: download or export it again";
        return Err(Error::input(what).path(file.location()).hint(cure));
    }
    if length + 8 > file.length() {
        return Err(bad(format!(
            "the header claims {length} bytes, but the file ends after {}",
            file.length()
        )));
    }
    let mut json = start.split_off(8);
    let rest = json.len();
    json.resize(length as usize, 0);
    if json.len() > rest {
        file.read_into(8 + rest as u64, &mut json[rest..])?;
    }
    let digest = blake3::Hasher::new().update(&length.to_le_bytes()).update(&json).finalize();
    let tensors =
        parse(&json, file.length() - 8 - length).map_err(|e| e.path(file.location()).hint(AGAIN))?;
    let data = 8 + length;
    let tensors = tensors.into_iter().map(|(stored, at)| (stored, data + at.start..data + at.end)).collect();
    Ok(Header { tensors, digest })
}

/// Whether a file begins like a pointer that Git LFS leaves in place of a large file.
pub(crate) fn is_lfs_pointer(start: &[u8]) -> bool {
    start.starts_with(b"version https://git-lfs")
}

/// The error for such a pointer.
pub(crate) fn lfs_pointer() -> Error {
    Error::input("this is a Git LFS pointer, not the file itself").hint("run `git lfs pull` in its folder")
}

/// Parses a header's JSON. `size` is the number of bytes after it; the ranges are relative to the end of the header.
fn parse(json: &[u8], size: u64) -> Result<Vec<(TensorInfo, Range<u64>)>> {
    let entries: Entries = serde_json::from_slice(json)
        .map_err(|e| Error::input("the header is not a JSON object").because(e))?;
    let mut names = HashSet::new();
    let mut tensors = Vec::with_capacity(entries.0.len());
    for (name, value) in &entries.0 {
        if !names.insert(name) {
            return Err(Error::input("the header names a tensor twice").tensor(name));
        }
        if name != "__metadata__" {
            tensors.push(entry(name, value).map_err(|e| e.tensor(name))?);
        }
    }
    tensors.sort_by_key(|(_, bytes)| (bytes.start, bytes.end));
    cover(&tensors, size)?;
    serde_json::from_slice::<Metadata>(json)
        .map_err(|e| Error::input("the header is not valid").because(e))?;
    Ok(tensors)
}

/// Parses one tensor's entry: dtype, shape and offsets, checked against each other.
fn entry(name: &str, value: &Value) -> Result<(TensorInfo, Range<u64>)> {
    let field = |key| value.get(key).ok_or_else(|| Error::input(format!("the header's entry has no {key}")));
    let kind = field("dtype")?;
    let dtype = Dtype::deserialize(kind).map_err(|_| {
        Error::input(format!("unknown dtype {kind}"))
            .hint("use a newer trephine that may know it, or convert the checkpoint to bf16 or f32")
    })?;
    let shape = numbers(field("shape")?, "shape")?;
    let offsets = numbers(field("data_offsets")?, "data_offsets")?;
    let &[start, end] = offsets.as_slice() else {
        return Err(Error::input(format!("data_offsets has {} numbers, not 2", offsets.len())));
    };
    let mut dims = Vec::with_capacity(shape.len());
    let mut elements = Some(1usize);
    for &dim in &shape {
        let dim = usize::try_from(dim).ok();
        elements = elements.zip(dim).and_then(|(n, dim)| n.checked_mul(dim));
        dims.extend(dim);
    }
    let bits = elements.and_then(|n| n.checked_mul(dtype.bitsize()));
    let bits = bits.ok_or_else(|| Error::input(format!("shape {shape:?} overflows")))?;
    let stored = TensorInfo { name: name.to_owned(), dtype, shape: dims };
    let given = end.checked_sub(start).ok_or_else(|| {
        Error::input(format!("the bytes of a tensor end at {end}, before their start at {start}"))
    })?;
    if bits % 8 != 0 {
        return Err(Error::input(format!("{} does not fill whole bytes", stored.describe())));
    }
    if given != (bits / 8) as u64 {
        let what = format!("{} needs {} bytes, but its offsets give {given}", stored.describe(), bits / 8);
        return Err(Error::input(what));
    }
    Ok((stored, start..end))
}

fn numbers(value: &Value, key: &str) -> Result<Vec<u64>> {
    let list = value.as_array().and_then(|list| list.iter().map(Value::as_u64).collect());
    list.ok_or_else(|| Error::input(format!("{key} is {value}, not a list of whole numbers")))
}

/// Checks that the tensors, in order, cover all bytes exactly once. The format requires this, so no file can hide data.
fn cover(tensors: &[(TensorInfo, Range<u64>)], size: u64) -> Result<()> {
    let mut end = 0;
    let mut last = "";
    for (stored, bytes) in tensors {
        if bytes.end > size {
            return Err(Error::input(format!(
                "the bytes of a tensor are {} to {}, but the file holds only {size} after its header",
                bytes.start, bytes.end
            ))
            .tensor(&stored.name));
        }
        if bytes.start < end {
            return Err(Error::input(format!(
                "the bytes of a tensor, from {}, overlap those of '{last}', up to {end}",
                bytes.start
            ))
            .tensor(&stored.name));
        }
        if bytes.start > end {
            return Err(Error::input(format!(
                "bytes {end} to {}, before a tensor, belong to no tensor",
                bytes.start
            ))
            .tensor(&stored.name));
        }
        (end, last) = (bytes.end, &stored.name);
    }
    if end < size {
        return Err(Error::input(format!(
            "bytes {end} to {size}, after the last tensor, belong to no tensor"
        )));
    }
    Ok(())
}

/// The entries of a JSON object in order, including duplicate names.
struct Entries(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}
