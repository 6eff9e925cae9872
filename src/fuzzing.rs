//! What the fuzz targets in `tests/fuzz` call: every parser of a file that anybody may have written, on bytes in
//! memory. Nothing here is for use elsewhere.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use crate::checkpoint::weight_map::Index;
use crate::container::gguf;
use crate::container::safetensors::{entries, header};
use crate::lora::read::PeftConfig;
use crate::quant::declared::Declared;
use crate::quant::registry::Scheme;
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
