//! Building the header of a safetensors file reproducibly, and parsing it with every number checked.
//!
//! The `safetensors` crate's writer keeps metadata in a `HashMap`, so the order of its keys would differ between runs.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::ops::Range;

use safetensors::tensor::TensorInfo as HeaderInfo;
use serde::{Serialize, Serializer};

use crate::container::safetensors::{entries, header};
use crate::quant::weight::TensorInfo;
use crate::{Error, Result};

/// The longest header that readers accept.
const LONGEST: u64 = 100_000_000;

/// The key of the metadata, which no tensor can have.
const METADATA: &str = "__metadata__";

/// A tensor and its byte range in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Name, element type, shape.
    pub stored: TensorInfo,
    /// The range of its bytes in the file.
    pub range: Range<u64>,
}

impl Placed {
    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Whether it has no bytes, as with a dimension of zero.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }
}

/// The first bytes of a file, and the layout of the data after them.
#[derive(Debug)]
pub(crate) struct Header {
    /// The length, the JSON and the padding.
    pub bytes: Vec<u8>,
    /// The tensors in the order of their data.
    pub layout: Vec<Placed>,
}

impl Header {
    /// Length of the whole file in bytes.
    pub fn length(&self) -> u64 {
        self.layout.last().map_or(self.bytes.len() as u64, |last| last.range.end)
    }
}

/// The header's JSON, serialized in order: the metadata first, as human readers expect, then the tensors by name.
struct Document<'a> {
    metadata: &'a BTreeMap<String, String>,
    tensors: BTreeMap<&'a str, HeaderInfo>,
}

impl Serialize for Document<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let metadata =
            (!self.metadata.is_empty()).then_some((METADATA, HeaderEntry::Metadata(self.metadata)));
        let tensors = self.tensors.iter().map(|(&name, info)| (name, HeaderEntry::Tensor(info)));
        serializer.collect_map(metadata.into_iter().chain(tensors))
    }
}

#[derive(Serialize)]
#[serde(untagged)]
enum HeaderEntry<'a> {
    Metadata(&'a BTreeMap<String, String>),
    Tensor(&'a HeaderInfo),
}

/// Builds the header of `tensors`. The data are sorted by element size, largest first, so that each tensor is aligned,
/// and then by name.
///
/// # Errors
/// A name that occurs twice or is not allowed, a length that overflows or ends inside a byte, a header that is
/// too long.
pub(crate) fn build(mut tensors: Vec<TensorInfo>, metadata: &BTreeMap<String, String>) -> Result<Header> {
    tensors.sort_by(|a, b| b.dtype.bitsize().cmp(&a.dtype.bitsize()).then_with(|| a.name.cmp(&b.name)));
    build_in_order(tensors, metadata)
}

/// Builds the header with the data in the order of `tensors`.
///
/// # Errors
/// The errors of [`build`], and a tensor that would not be aligned.
pub(crate) fn build_in_order(
    tensors: Vec<TensorInfo>,
    metadata: &BTreeMap<String, String>,
) -> Result<Header> {
    let mut infos = BTreeMap::new();
    let mut end = 0u64;
    for tensor in &tensors {
        let refuse =
            |why: &str| Error::unexpected(format!("cannot store the tensor, {why}")).tensor(&tensor.name);
        let start = end;
        end = bytes(tensor).and_then(|n| start.checked_add(n)).ok_or_else(|| {
            refuse(&format!("{:?} {:?} is not a whole number of bytes", tensor.dtype, tensor.shape))
        })?;
        let data_offsets = (index(start)?, index(end)?);
        let info = HeaderInfo { dtype: tensor.dtype, shape: tensor.shape.to_vec(), data_offsets };
        if !start.is_multiple_of((tensor.dtype.bitsize() as u64 / 8).max(1)) {
            return Err(refuse("its bytes would not be aligned"));
        }
        if tensor.name == METADATA || infos.insert(tensor.name.as_str(), info).is_some() {
            return Err(refuse("its name is taken"));
        }
    }
    let bytes = encode(&Document { metadata, tensors: infos })?;
    let mut at = bytes.len() as u64;
    let place = |stored: TensorInfo| {
        let start = at;
        at += self::bytes(&stored).unwrap_or_default();
        Placed { stored, range: start..at }
    };
    Ok(Header { layout: tensors.into_iter().map(place).collect(), bytes })
}

fn encode(document: &Document<'_>) -> Result<Vec<u8>> {
    let mut json = serde_json::to_vec(document)
        .map_err(|e| Error::unexpected("cannot encode the safetensors header").because(e))?;
    // Pad, so that the data begin at a multiple of eight.
    json.resize(json.len().next_multiple_of(8), b' ');
    let length = json.len() as u64;
    if length > LONGEST {
        return Err(Error::unexpected(format!(
            "a safetensors header of {length} bytes is too long for readers"
        )));
    }
    Ok([&length.to_le_bytes()[..], &json].concat())
}

/// Length of a tensor in bytes; `None` if it overflows or ends inside a byte.
fn bytes(tensor: &TensorInfo) -> Option<u64> {
    let bits =
        tensor.shape.iter().try_fold(tensor.dtype.bitsize() as u64, |n, &d| n.checked_mul(d as u64))?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

fn index(offset: u64) -> Result<usize> {
    usize::try_from(offset).map_err(|e| Error::unexpected("the file is too long for this machine").because(e))
}

/// The content of a header, in the order of the data.
pub(crate) struct Parsed {
    pub layout: Vec<Placed>,
    pub metadata: BTreeMap<String, String>,
}

/// Reads the header of `file`, which is `length` bytes long, from its beginning.
///
/// # Errors
/// [`Kind::Input`](crate::Kind::Input) for a header that is malformed or does not match the file.
pub(crate) fn parse(mut file: &File, length: u64) -> Result<Parsed> {
    let bad = |why: String| Error::input(format!("the safetensors header is damaged: {why}"));
    let failed = |e: io::Error| Error::unexpected("cannot read the safetensors header").because(e);
    let after = length.checked_sub(8).ok_or_else(|| bad(format!("the file has only {length} bytes")))?;
    let mut size = [0; 8];
    file.read_exact(&mut size).map_err(failed)?;
    let size = u64::from_le_bytes(size);
    if size > after.min(LONGEST) {
        return Err(bad(format!("it claims {size} bytes of a file of {length}")));
    }
    let mut metadata = BTreeMap::new();
    let json = BufReader::new(file.take(size));
    let mut entries = entries::parse(json, Some(&mut metadata)).map_err(|e| bad(e.to_string()))?;
    entries.sort_by_key(|(_, bytes)| (bytes.start, bytes.end));
    header::cover(&entries, after - size).map_err(|e| bad(e.to_string()))?;
    let place = |(stored, bytes): entries::Entry| Placed {
        stored,
        range: 8 + size + bytes.start..8 + size + bytes.end,
    };
    Ok(Parsed { layout: entries.into_iter().map(place).collect(), metadata })
}
