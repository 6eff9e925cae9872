//! A module or tensor of a checkpoint, as probe describes it.

use serde::Serialize;

/// A weight with all that belongs to it, or another tensor.
#[derive(Clone, Debug, Serialize)]
pub struct Probed {
    /// A module's name, or another tensor's.
    pub name: String,
    /// Whether it is a module: a weight that is read as `[out, in]`.
    pub module: bool,
    /// Whether it is stored as codes under scales.
    pub quantized: bool,
    /// Shape of its values.
    pub shape: Vec<usize>,
    /// Rows and columns under one scale.
    pub block: Option<[usize; 2]>,
    /// The stored tensors, the weight itself first.
    pub parts: Vec<DescribedTensor>,
    /// Stored bytes of all of them.
    pub bytes: u64,
    /// A corner of its values after dequantization, where it was asked for; what is not finite is null.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub values: Option<Vec<Vec<f32>>>,
}

impl Probed {
    /// How many values it has.
    pub fn count(&self) -> u64 {
        self.shape.iter().map(|&side| side as u64).product()
    }

    /// How it is stored, in a few words.
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
