//! Descriptions of modules and tensors.

use serde::Serialize;

/// A weight with all tensors that belong to it, or another tensor.
#[derive(Clone, Debug, Serialize)]
pub struct Probed {
    /// The name of the module or tensor.
    pub name: String,
    /// Whether it is a module: a weight that is read as `[out, in]`.
    pub module: bool,
    /// Whether it is stored as codes with scales.
    pub quantized: bool,
    /// Shape of its values.
    pub shape: Vec<usize>,
    /// Rows and columns under one scale.
    pub block: Option<[usize; 2]>,
    /// The stored tensors, the weight itself first.
    pub parts: Vec<DescribedTensor>,
    /// Stored bytes of all of them.
    pub bytes: u64,
    /// The first values of its first rows after dequantization, if requested; values that are not finite are null.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub values: Option<Vec<Vec<f32>>>,
}

impl Probed {
    /// The number of its values.
    pub fn count(&self) -> u64 {
        self.shape.iter().map(|&side| side as u64).product()
    }

    /// Its storage type, in a few words.
    pub(crate) fn kind(&self) -> String {
        let dtype = &self.parts[0].dtype;
        match (self.module, self.quantized) {
            (true, true) => format!("quantized weights, {dtype}"),
            (true, false) => format!("dense weights, {dtype}"),
            _ => format!("other tensors, {dtype}"),
        }
    }
}

/// One stored tensor.
#[derive(Clone, Debug, Serialize)]
pub struct DescribedTensor {
    /// Its name.
    pub name: String,
    /// Element type.
    pub dtype: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// Its bytes.
    pub bytes: u64,
    /// The file that holds it.
    pub file: String,
}
