//! The element types that factors are stored in.

use serde::{Deserialize, Serialize};

/// How the factors are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum FactorType {
    /// bfloat16, rounded to nearest even.
    Bf16,
    /// IEEE half precision, rounded to nearest even.
    F16,
    /// IEEE single precision, as computed.
    F32,
}

impl FactorType {
    /// The same type in a safetensors header.
    pub fn dtype(self) -> safetensors::Dtype {
        match self {
            FactorType::Bf16 => safetensors::Dtype::BF16,
            FactorType::F16 => safetensors::Dtype::F16,
            FactorType::F32 => safetensors::Dtype::F32,
        }
    }

    /// The type that all of `dtypes` are, or f32 if they differ.
    pub(crate) fn common(mut dtypes: impl Iterator<Item = safetensors::Dtype>) -> FactorType {
        let first = dtypes.next();
        match first.filter(|first| dtypes.all(|dtype| dtype == *first)) {
            Some(safetensors::Dtype::BF16) => FactorType::Bf16,
            Some(safetensors::Dtype::F16) => FactorType::F16,
            _ => FactorType::F32,
        }
    }

    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            FactorType::Bf16 | FactorType::F16 => 2,
            FactorType::F32 => 4,
        }
    }

    /// Rounds `values` in place to what will be read back, and returns their little-endian bytes.
    pub fn round(self, values: &mut [f32]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(values.len() * self.bytes());
        for value in values {
            match self {
                FactorType::Bf16 => {
                    let stored = half::bf16::from_f32(*value);
                    *value = stored.to_f32();
                    bytes.extend_from_slice(&stored.to_le_bytes());
                }
                FactorType::F16 => {
                    let stored = half::f16::from_f32(*value);
                    *value = stored.to_f32();
                    bytes.extend_from_slice(&stored.to_le_bytes());
                }
                FactorType::F32 => bytes.extend_from_slice(&value.to_le_bytes()),
            }
        }
        bytes
    }
}
