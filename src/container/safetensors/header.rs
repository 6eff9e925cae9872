//! Reading the header of a safetensors file: 8 bytes of length, JSON, then the tensors' bytes without gaps.
//!
//! The checks are those of the `safetensors` crate (whose `read_metadata` wants the whole file as one slice, and
//! whose `Metadata` is built before anything is checked), with messages that name the tensor and the bytes.

use std::io::{self, BufReader, Read};
use std::ops::Range;

use crate::container::safetensors::entries;
use crate::quant::weight::TensorInfo;
use crate::storage::Storage;
use crate::{Error, Result};

/// How much of a header is held at once.
const PIECE: usize = 64 << 10;

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
    let mut reader = HeaderBytes::new(file, start.split_off(8), length);
    reader.hasher.update(&length.to_le_bytes());
    let parsed = entries::parse(BufReader::with_capacity(PIECE, &mut reader), None);
    if let Some(error) = reader.failed {
        return Err(error);
    }
    let mut tensors = parsed.map_err(|e| e.path(file.location()).hint(AGAIN))?;
    let digest = reader.hasher.finalize();
    tensors.sort_by_key(|(_, bytes)| (bytes.start, bytes.end));
    cover(&tensors, file.length() - 8 - length).map_err(|e| e.path(file.location()).hint(AGAIN))?;
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

/// The JSON of a header as it is read from its file: hashed, and checked to be UTF-8.
struct HeaderBytes<'a> {
    file: &'a dyn Storage,
    /// Bytes that were read already, for a look at the file's beginning.
    held: Vec<u8>,
    /// Where the next bytes lie in the file.
    at: u64,
    left: u64,
    hasher: blake3::Hasher,
    /// The beginning of a character that a piece has cut.
    cut: Vec<u8>,
    /// What the file system has refused.
    failed: Option<Error>,
}

impl<'a> HeaderBytes<'a> {
    fn new(file: &'a dyn Storage, mut held: Vec<u8>, left: u64) -> HeaderBytes<'a> {
        held.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        HeaderBytes { file, held, at: 8, left, hasher: blake3::Hasher::new(), cut: Vec::new(), failed: None }
    }

    /// Whether `bytes` continue UTF-8 text.
    fn is_text(&mut self, bytes: &[u8]) -> bool {
        self.cut.extend_from_slice(bytes);
        match std::str::from_utf8(&self.cut) {
            Ok(_) => self.cut.clear(),
            Err(e) if e.error_len().is_none() && (self.left > 0) => drop(self.cut.drain(..e.valid_up_to())),
            Err(_) => return false,
        }
        true
    }
}

impl Read for HeaderBytes<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = usize::try_from(self.left).unwrap_or(usize::MAX).min(out.len());
        let out = &mut out[..count];
        let held = self.held.len().min(count);
        out[..held].copy_from_slice(&self.held[..held]);
        self.held.drain(..held);
        if let Err(error) = self.file.read_into(self.at + held as u64, &mut out[held..]) {
            self.failed = Some(error);
            return Err(io::Error::other("the file cannot be read"));
        }
        self.at += count as u64;
        self.left -= count as u64;
        self.hasher.update(out);
        if !self.is_text(out) {
            self.failed =
                Some(Error::input("the header is not UTF-8").path(self.file.location()).hint(AGAIN));
            return Err(io::Error::other("not UTF-8"));
        }
        Ok(count)
    }
}

/// Checks that the tensors, in order, cover all bytes exactly once. The format requires this, so no file can hide data.
pub(crate) fn cover(tensors: &[(TensorInfo, Range<u64>)], size: u64) -> Result<()> {
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
