//! The header of a GGUF file: magic, version, metadata and a list of tensors, followed by their bytes, each padded to
//! an alignment.
//!
//! The layout is defined in ggml's `docs/gguf.md`, versions 2 and 3. A header is read once, front to back, without
//! trusting any count or length in it: nothing is allocated before its bytes are read, and every offset is checked
//! against the file's size. As in safetensors, tensors must follow one another, with only padding in between.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

use serde_json::Value;

use crate::container::safetensors::entries::MOST_TENSORS;
use crate::container::safetensors::header::{AGAIN, LARGEST, is_lfs_pointer, lfs_pointer};
use crate::quant::format::gguf::GgmlType;
use crate::storage::Storage;
use crate::{Error, Result};

/// Texts longer than this many bytes are skipped, for example chat templates.
const LONGEST: u64 = 4096;
/// The largest number of dimensions in ggml.
const DIMENSIONS: u32 = 4;
/// The most keys of metadata; real models have some dozens.
const MOST_KEYS: u64 = 65_536;
const NESTED: usize = 4;
/// The largest alignment that is read: models have 32.
const LARGEST_ALIGNMENT: u64 = 1 << 20;
const PIECE: usize = 1 << 16;
/// The type of a 32-bit unsigned number.
const U32: u32 = 4;

/// The content of a file's header.
#[derive(Debug)]
pub(crate) struct Header {
    /// Numbers, flags and short texts by key; null for lists and long texts.
    pub(crate) metadata: BTreeMap<String, Value>,
    /// The tensors, in the order of their bytes.
    pub(crate) tensors: Vec<GgufTensor>,
    /// The blake3 of the whole header.
    pub(crate) digest: blake3::Hash,
}

/// One tensor.
#[derive(Debug)]
pub(crate) struct GgufTensor {
    /// Its name in the file.
    pub(crate) name: String,
    pub(crate) kind: GgmlType,
    /// Outermost dimension first; the file has the opposite order.
    pub(crate) shape: Vec<usize>,
    /// The range of its bytes in the file.
    pub(crate) bytes: Range<u64>,
}

/// Reads and checks the header of a file.
pub(crate) fn read(file: &dyn Storage) -> Result<Header> {
    let mut cursor = Cursor::new(file);
    header(&mut cursor).map_err(|e| e.path(file.location()).hint(AGAIN))
}

fn header(cursor: &mut Cursor) -> Result<Header> {
    let start = cursor.peek(64)?;
    if start.is_empty() {
        return Err(Error::input("the file is empty"));
    }
    if is_lfs_pointer(start) {
        return Err(lfs_pointer());
    }
    if !start.starts_with(b"GGUF") {
        return Err(Error::input("the file does not begin with the magic bytes of GGUF"));
    }
    cursor.take(4)?;
    match cursor.u32()? {
        2 | 3 => {}
        version if (1..16).contains(&version.swap_bytes()) => {
            return Err(Error::input("the GGUF file is big-endian, which is not supported")
                .hint("give a little-endian file, the usual kind"));
        }
        version => {
            return Err(Error::input(format!("version {version} of GGUF is not supported"))
                .hint("convert the model again, to version 2 or 3"));
        }
    }
    let (tensors, entries) = (cursor.u64()?, cursor.u64()?);
    if tensors > MOST_TENSORS as u64 {
        return Err(Error::input(format!(
            "the header claims {tensors} tensors; at most {MOST_TENSORS} are read"
        )));
    }
    if entries > MOST_KEYS {
        return Err(Error::input(format!("the header claims {entries} keys; at most {MOST_KEYS} are read")));
    }
    let (mut metadata, mut alignment_type) = (BTreeMap::new(), None);
    for _ in 0..entries {
        let key = cursor.text()?;
        let kind = cursor.u32()?;
        if key == "general.alignment" {
            alignment_type = Some(kind);
        }
        let value = value(cursor, kind, 0)
            .map_err(|e| Error::input(format!("the value of '{key}' cannot be read")).because(e))?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(Error::input(format!("the header has the key '{key}' twice")));
        }
    }
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        // Its type is part of the format, which readers hold files to.
        Some(_) if alignment_type != Some(U32) => {
            return Err(Error::input("general.alignment is not stored as a 32-bit unsigned number"));
        }
        Some(value) => {
            value.as_u64().filter(|n| n.is_power_of_two() && *n <= LARGEST_ALIGNMENT).ok_or_else(|| {
                Error::input(format!(
                    "general.alignment is {value}, not a power of two up to {LARGEST_ALIGNMENT}"
                ))
            })?
        }
    };
    let (mut found, mut names) = (Vec::new(), HashSet::new());
    for _ in 0..tensors {
        let name = cursor.text()?;
        if !names.insert(name.clone()) {
            return Err(Error::input("the header names a tensor twice").tensor(name));
        }
        found.push(entry(cursor, &name, alignment).map_err(|e| e.tensor(&name))?);
    }
    let (digest, data) = (cursor.hasher.finalize(), cursor.read.next_multiple_of(alignment));
    let tensors = place(found, data, alignment, cursor.file.length())?;
    Ok(Header { metadata, tensors, digest })
}

/// Reads a tensor's entry. Its byte range is still relative to the end of the header.
fn entry(cursor: &mut Cursor, name: &str, alignment: u64) -> Result<GgufTensor> {
    let dimensions = cursor.u32()?;
    if dimensions > DIMENSIONS {
        return Err(Error::input(format!("{dimensions} dimensions; the format allows {DIMENSIONS}")));
    }
    let mut shape = Vec::new();
    for _ in 0..dimensions {
        shape.push(cursor.u64()?);
    }
    let (kind, start) = (cursor.u32()?, cursor.u64()?);
    let kind = GgmlType::from_id(kind)?;
    let (values, bytes) = kind.block();
    let inner = shape.first().copied().unwrap_or(1);
    if inner % values as u64 != 0 {
        return Err(Error::input(format!(
            "rows of {inner} values are not a whole number of {kind} blocks of {values}"
        )));
    }
    let count = shape.iter().try_fold(1u64, |n, &dim| n.checked_mul(dim));
    let size = count.and_then(|n| (n / values as u64).checked_mul(bytes as u64));
    let end = size.and_then(|size| start.checked_add(size)).filter(|&end| end < 1 << 62);
    let dims = shape.iter().rev().map(|&dim| usize::try_from(dim).ok()).collect::<Option<Vec<_>>>();
    let (Some(end), Some(dims)) = (end, dims) else {
        return Err(Error::input(format!("shape {shape:?} at offset {start} overflows")));
    };
    if start % alignment != 0 {
        return Err(Error::input(format!(
            "the bytes of a tensor begin at {start}, which is not a multiple of {alignment}"
        )));
    }
    Ok(GgufTensor { name: name.to_owned(), kind, shape: dims, bytes: start..end })
}

/// Checks that the tensors cover all data except padding, and makes their byte ranges relative to the file.
fn place(mut tensors: Vec<GgufTensor>, data: u64, alignment: u64, size: u64) -> Result<Vec<GgufTensor>> {
    tensors.sort_by_key(|entry| (entry.bytes.start, entry.bytes.end));
    let (mut end, mut last) = (0u64, String::new());
    for entry in &mut tensors {
        let Range { start, end: stop } = entry.bytes;
        if start < end {
            let what = format!("the bytes of a tensor, from {start}, overlap those of '{last}', up to {end}");
            return Err(Error::input(what).tensor(&entry.name));
        }
        if start > end.next_multiple_of(alignment) {
            let what = format!("bytes {end} to {start}, before a tensor, belong to no tensor");
            return Err(Error::input(what).tensor(&entry.name));
        }
        if data + stop > size {
            let held = size.saturating_sub(data);
            let what = format!(
                "the bytes of a tensor are {start} to {stop}, but the file holds only {held} after its header"
            );
            return Err(Error::input(what).tensor(&entry.name));
        }
        entry.bytes = data + start..data + stop;
        end = stop;
        last.clone_from(&entry.name);
    }
    if size > data + end.next_multiple_of(alignment) {
        let what = format!("bytes {end} to {}, after the last tensor, belong to no tensor", size - data);
        return Err(Error::input(what));
    }
    Ok(tensors)
}

/// Reads a metadata value. Lists and long texts are skipped and returned as null.
fn value(cursor: &mut Cursor, kind: u32, depth: usize) -> Result<Value> {
    Ok(match kind {
        0 => cursor.array().map(u8::from_le_bytes)?.into(),
        1 => cursor.array().map(i8::from_le_bytes)?.into(),
        2 => cursor.array().map(u16::from_le_bytes)?.into(),
        3 => cursor.array().map(i16::from_le_bytes)?.into(),
        4 => cursor.u32()?.into(),
        5 => cursor.array().map(i32::from_le_bytes)?.into(),
        6 => f64::from(cursor.array().map(f32::from_le_bytes)?).into(),
        7 => (cursor.take(1)?[0] != 0).into(),
        8 => match cursor.u64()? {
            length if length <= LONGEST => String::from_utf8_lossy(cursor.take(length as usize)?).into(),
            length => {
                cursor.skip(length)?;
                Value::Null
            }
        },
        9 => {
            let (kind, count) = (cursor.u32()?, cursor.u64()?);
            list(cursor, kind, count, depth)?;
            Value::Null
        }
        10 => cursor.u64()?.into(),
        11 => cursor.array().map(i64::from_le_bytes)?.into(),
        12 => cursor.array().map(f64::from_le_bytes)?.into(),
        _ => return Err(Error::input(format!("a value has the unknown type {kind}"))),
    })
}

fn list(cursor: &mut Cursor, kind: u32, count: u64, depth: usize) -> Result<()> {
    let size = match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        10..=12 => 8,
        _ if depth == NESTED => return Err(Error::input("lists are nested too deeply")),
        _ => {
            for _ in 0..count {
                value(cursor, kind, depth + 1)?;
            }
            return Ok(());
        }
    };
    let bytes =
        count.checked_mul(size).ok_or_else(|| Error::input(format!("a list of {count} overflows")))?;
    cursor.skip(bytes)
}

/// Reads a file front to back and hashes what is taken.
struct Cursor<'a> {
    file: &'a dyn Storage,
    buffer: Vec<u8>,
    at: usize,
    /// Number of bytes taken.
    read: u64,
    hasher: blake3::Hasher,
}

impl<'a> Cursor<'a> {
    fn new(file: &'a dyn Storage) -> Cursor<'a> {
        Cursor { file, buffer: Vec::new(), at: 0, read: 0, hasher: blake3::Hasher::new() }
    }

    /// The next `count` bytes (at most `PIECE`), or fewer at the end of the file.
    fn peek(&mut self, count: usize) -> Result<&[u8]> {
        let held = self.buffer.len() - self.at;
        if held < count {
            let left = self.file.length() - self.read - held as u64;
            self.buffer.drain(..self.at);
            self.at = 0;
            self.buffer.resize(held + left.min(PIECE as u64) as usize, 0);
            self.file.read_into(self.read + held as u64, &mut self.buffer[held..])?;
        }
        let end = self.buffer.len().min(self.at + count);
        Ok(&self.buffer[self.at..end])
    }

    fn take(&mut self, count: usize) -> Result<&[u8]> {
        if self.read + count as u64 > LARGEST {
            return Err(Error::input(format!("the header has more than {LARGEST} bytes")));
        }
        if self.peek(count)?.len() < count {
            return Err(Error::input(format!(
                "the file ends after {} bytes, within its header",
                self.file.length()
            )));
        }
        let taken = &self.buffer[self.at..self.at + count];
        self.hasher.update(taken);
        self.at += count;
        self.read += count as u64;
        Ok(taken)
    }

    fn skip(&mut self, mut count: u64) -> Result<()> {
        while count > 0 {
            let piece = count.min(PIECE as u64);
            self.take(piece as usize)?;
            count -= piece;
        }
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// Reads a name.
    fn text(&mut self) -> Result<String> {
        let length = self.u64()?;
        if length > LONGEST {
            return Err(Error::input(format!("a name has {length} bytes; the limit is {LONGEST}")));
        }
        String::from_utf8(self.take(length as usize)?.to_vec())
            .map_err(|e| Error::input("a name is not UTF-8").because(e))
    }
}
