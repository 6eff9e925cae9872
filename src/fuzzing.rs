//! What the fuzz targets in `tests/fuzz` call: every parser of a file that anybody may have written, on bytes in
//! memory. Nothing here is for use elsewhere.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use crate::checkpoint::weight_map::Index;
use crate::container::gguf;
use crate::container::safetensors::{entries, header};
use crate::durable::{checksums, journal};
use crate::lora::read::PeftConfig;
use crate::quant::declared::Declared;
use crate::quant::registry::Scheme;
#[cfg(feature = "report")]
use crate::report::tables;
use crate::run::unit::{AnyRecord, JournalEntry};
use crate::storage::{Storage, Version, Window};
use crate::{Error, Result};

/// The header of a safetensors file, and what it says of its tensors' bytes.
pub fn safetensors_header(bytes: &[u8]) {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else { return };
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX).min(rest.len());
    let (json, data) = rest.split_at(length);
    let mut metadata = BTreeMap::new();
    if let Ok(mut tensors) = entries::parse(json, Some(&mut metadata)) {
        tensors.sort_by_key(|(_, bytes)| (bytes.start, bytes.end));
        if header::cover(&tensors, data.len() as u64).is_ok() {
            assert!(tensors.iter().all(|(_, bytes)| bytes.end <= data.len() as u64));
        }
    }
}

/// A checkpoint's index: which file holds which tensor.
pub fn index_json(bytes: &[u8]) {
    let Ok(index) = serde_json::from_slice::<Index>(bytes) else { return };
    if let Some(map) = index.weight_map {
        assert!(map.entries().all(|(tensor, file)| map.file(tensor) == Some(file)));
    }
}

/// A model's config: the scheme that it declares.
pub fn config_json(bytes: &[u8]) {
    let Ok(raw) = serde_json::from_slice::<serde_json::Value>(bytes) else { return };
    if let Some(raw) = raw.get("quantization_config").cloned() {
        let declared = Declared { origin: "config.json".to_owned(), raw };
        let _ = Scheme::from_config(Some(&declared));
    }
}

/// An adapter's config: ranks and scales of some modules.
pub fn adapter_config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(config) = PeftConfig::parse(text, Path::new("adapter_config.json")) {
        for module in ["model.layers.0.self_attn.q_proj", "q_proj", ""] {
            let _ = config.scale_of(module, config.rank_of(module));
        }
    }
}

/// The spectra beside an adapter, packed; and the same bytes as what is unpacked.
#[cfg(feature = "report")]
pub fn spectra(bytes: &[u8]) {
    let path = Path::new("spectra.jsonl.zst");
    let _ = tables::unpack_spectra(bytes, path);
    if let Ok(packed) = zstd::encode_all(bytes, 1) {
        let _ = tables::unpack_spectra(packed.as_slice(), path);
    }
}

/// A journal; and its lines as records of a journal whose chain of checksums is right, which anybody can write.
pub fn journal(bytes: &[u8]) {
    let replay = |bytes: &[u8]| journal::read::<JournalEntry<AnyRecord>>(bytes, Path::new("journal"));
    let _ = replay(bytes);
    let (mut before, mut chained) = (journal::SEED, Vec::new());
    for line in bytes.split(|byte| *byte == b'\n') {
        let json = line.get(journal::SEED.len() + 1..).unwrap_or_default();
        before = journal::chained(&before, json);
        chained.extend([&before[..], b" ", json, b"\n"].concat());
    }
    if let Ok(read) = replay(&chained) {
        assert!(read.records.len() <= bytes.len());
    }
}

/// A list of checksums.
pub fn checksums(bytes: &[u8]) {
    let sums = checksums::parse(Path::new("/nowhere"), bytes);
    let outside = |name: &str| name.starts_with('/') || name.split('/').any(|part| part == "..");
    assert!(sums.entries().iter().all(|entry| !outside(&entry.name)));
}

/// The header of a GGUF file.
pub fn gguf_header(bytes: &[u8]) {
    if let Ok(header) = gguf::read(&InMemory(bytes.to_vec())) {
        assert!(header.tensors.iter().all(|tensor| tensor.bytes.end <= bytes.len() as u64));
    }
}

/// A file that is no file.
#[derive(Debug)]
struct InMemory(Vec<u8>);

impl Storage for InMemory {
    fn name(&self) -> &str {
        "fuzz"
    }

    fn location(&self) -> &Path {
        Path::new("fuzz")
    }

    fn length(&self) -> u64 {
        self.0.len() as u64
    }

    fn version(&self) -> Option<Version> {
        None
    }

    fn read_range(&self, range: Range<u64>) -> Result<Window> {
        let range = range.start as usize..range.end as usize;
        let bytes = self.0.get(range).ok_or_else(|| Error::input("the range ends behind the file"))?;
        Ok(Window::from(bytes.to_vec()))
    }
}
