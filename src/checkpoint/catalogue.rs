//! The catalogue of a checkpoint's tensors: each name with the location of its bytes.

use crate::quant::weight::TensorInfo;
use std::collections::BTreeMap;
use std::ops::Range;

/// The identifier of one of a checkpoint's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub(crate) usize);

/// One stored tensor and the location of its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Name, dtype, shape.
    pub stored: TensorInfo,
    /// The file that holds it.
    pub file: FileId,
    /// The range of its bytes in that file.
    pub bytes: Range<u64>,
}

impl Tensor {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.stored.name
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.bytes.end - self.bytes.start
    }
}

/// The tensors by name, across files.
#[derive(Debug, Default)]
pub(crate) struct Catalogue(pub(crate) BTreeMap<String, Tensor>);
