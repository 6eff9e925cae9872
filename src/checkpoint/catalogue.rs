//! The catalogue of a checkpoint's tensors: each name with the location of its bytes.

use crate::quant::weight::TensorInfo;
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

/// The tensors across files, in the order of their names.
#[derive(Debug, Default)]
pub(crate) struct Catalogue(Vec<Tensor>);

impl Catalogue {
    /// Sorts the tensors. Of those with one name the last one stays; `twice` gets every earlier one with the next.
    ///
    /// # Errors
    /// What `twice` returns.
    pub(crate) fn of<E>(
        mut tensors: Vec<Tensor>,
        mut twice: impl FnMut(&Tensor, &Tensor) -> Result<(), E>,
    ) -> Result<Catalogue, E> {
        tensors.sort_by(|a, b| a.name().cmp(b.name()));
        for pair in tensors.windows(2).filter(|pair| pair[0].name() == pair[1].name()) {
            twice(&pair[0], &pair[1])?;
        }
        tensors.dedup_by(|later, earlier| {
            let same = later.name() == earlier.name();
            if same {
                std::mem::swap(later, earlier);
            }
            same
        });
        tensors.shrink_to_fit();
        Ok(Catalogue(tensors))
    }

    /// The tensor of that name.
    pub(crate) fn get(&self, name: &str) -> Option<&Tensor> {
        let at = self.0.binary_search_by(|tensor| tensor.name().cmp(name)).ok()?;
        self.0.get(at)
    }

    /// Every tensor, by name.
    pub(crate) fn iter(&self) -> std::slice::Iter<'_, Tensor> {
        self.0.iter()
    }
}
