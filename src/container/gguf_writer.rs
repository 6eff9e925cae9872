//! Writes a GGUF file, version 3: metadata, a list of tensors, and their bytes, each padded to 32.

use std::path::Path;

use crate::durable::atomic_file::Draft;
use crate::durable::digest::Written;
use crate::quant::format::gguf::GgmlType;
use crate::{Error, Result};

/// What every tensor's bytes begin at a multiple of.
const ALIGNMENT: u64 = 32;

/// A value of the metadata.
#[derive(Clone, Debug)]
pub(crate) enum MetadataValue {
    U32(u32),
    F32(f32),
    Text(String),
}

/// One tensor: its name, its type, and its shape, outermost dimension first.
#[derive(Clone, Debug)]
pub(crate) struct OutTensor {
    pub(crate) name: String,
    pub(crate) kind: GgmlType,
    pub(crate) shape: Vec<usize>,
}

impl OutTensor {
    /// Its bytes in the file, without padding.
    fn size(&self) -> u64 {
        let (values, bytes) = self.kind.block();
        self.shape.iter().product::<usize>() as u64 / values as u64 * bytes as u64
    }
}

/// A file that is being written, tensor by tensor.
pub(crate) struct GgufWriter {
    draft: Draft,
    tensors: Vec<OutTensor>,
    next: usize,
}

impl GgufWriter {
    /// Begins the file `path` with its header.
    ///
    /// # Errors
    /// A full disk.
    pub(crate) fn create(
        path: &Path,
        metadata: &[(&str, MetadataValue)],
        tensors: Vec<OutTensor>,
    ) -> Result<GgufWriter> {
        let mut header = b"GGUF".to_vec();
        header.extend(3u32.to_le_bytes());
        header.extend((tensors.len() as u64).to_le_bytes());
        header.extend((metadata.len() as u64).to_le_bytes());
        for (key, value) in metadata {
            text(&mut header, key);
            match value {
                MetadataValue::U32(number) => {
                    header.extend(4u32.to_le_bytes());
                    header.extend(number.to_le_bytes());
                }
                MetadataValue::F32(number) => {
                    header.extend(6u32.to_le_bytes());
                    header.extend(number.to_le_bytes());
                }
                MetadataValue::Text(value) => {
                    header.extend(8u32.to_le_bytes());
                    text(&mut header, value);
                }
            }
        }
        let mut offset = 0u64;
        for tensor in &tensors {
            text(&mut header, &tensor.name);
            header.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().rev().for_each(|&side| header.extend((side as u64).to_le_bytes()));
            header.extend(tensor.kind.id().to_le_bytes());
            header.extend(offset.to_le_bytes());
            offset += tensor.size().next_multiple_of(ALIGNMENT);
        }
        header.resize((header.len() as u64).next_multiple_of(ALIGNMENT) as usize, 0);
        let mut draft = Draft::create(path)?.expecting(header.len() as u64 + offset);
        draft.put(&header)?;
        Ok(GgufWriter { draft, tensors, next: 0 })
    }

    /// Appends the bytes of the next tensor, which is `name`.
    ///
    /// # Errors
    /// Another tensor is next, or has another length; a full disk.
    pub(crate) fn put(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let due =
            self.tensors.get(self.next).filter(|due| due.name == name && due.size() == bytes.len() as u64);
        let Some(due) = due else {
            let what =
                format!("{} bytes were given for a tensor that is not next or has another size", bytes.len());
            return Err(Error::unexpected(what).tensor(name).path(self.draft.path()));
        };
        let padding = due.size().next_multiple_of(ALIGNMENT) - due.size();
        self.draft.put(bytes)?;
        self.draft.put(&[0; ALIGNMENT as usize][..padding as usize])?;
        self.next += 1;
        Ok(())
    }

    /// Completes the file durably.
    ///
    /// # Errors
    /// A tensor that was not given; a full disk.
    pub(crate) fn finish(self) -> Result<Written> {
        match self.tensors.get(self.next) {
            Some(due) => {
                Err(Error::unexpected("a tensor was not written").tensor(&due.name).path(self.draft.path()))
            }
            None => self.draft.finish(),
        }
    }
}

/// A length and the bytes of a text.
fn text(header: &mut Vec<u8>, text: &str) {
    header.extend((text.len() as u64).to_le_bytes());
    header.extend(text.as_bytes());
}
