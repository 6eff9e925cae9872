//! The types of a GGUF file's tensors.

use std::fmt;

use safetensors::Dtype;

use crate::{Error, Result};

/// The type of a GGUF tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, non_camel_case_types, reason = "as ggml names them")]
#[non_exhaustive]
pub enum GgmlType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ1_S,
    IQ1_M,
    IQ2_XXS,
    IQ2_XS,
    IQ2_S,
    IQ3_XXS,
    IQ3_S,
    IQ4_NL,
    IQ4_XS,
    TQ1_0,
    TQ2_0,
    MXFP4,
    NVFP4,
}

/// The supported types: ggml's number, the values in a block, and its bytes.
const READ: [(u32, GgmlType, usize, usize); 26] = [
    (0, GgmlType::F32, 1, 4),
    (1, GgmlType::F16, 1, 2),
    (2, GgmlType::Q4_0, 32, 18),
    (3, GgmlType::Q4_1, 32, 20),
    (6, GgmlType::Q5_0, 32, 22),
    (7, GgmlType::Q5_1, 32, 24),
    (8, GgmlType::Q8_0, 32, 34),
    (10, GgmlType::Q2_K, 256, 84),
    (11, GgmlType::Q3_K, 256, 110),
    (12, GgmlType::Q4_K, 256, 144),
    (13, GgmlType::Q5_K, 256, 176),
    (14, GgmlType::Q6_K, 256, 210),
    (16, GgmlType::IQ2_XXS, 256, 66),
    (17, GgmlType::IQ2_XS, 256, 74),
    (18, GgmlType::IQ3_XXS, 256, 98),
    (19, GgmlType::IQ1_S, 256, 50),
    (20, GgmlType::IQ4_NL, 32, 18),
    (21, GgmlType::IQ3_S, 256, 110),
    (22, GgmlType::IQ2_S, 256, 82),
    (23, GgmlType::IQ4_XS, 256, 136),
    (29, GgmlType::IQ1_M, 256, 56),
    (30, GgmlType::BF16, 1, 2),
    (34, GgmlType::TQ1_0, 256, 54),
    (35, GgmlType::TQ2_0, 256, 66),
    (39, GgmlType::MXFP4, 32, 17),
    (40, GgmlType::NVFP4, 64, 36),
];

/// The known types that are refused, by ggml's number.
const REFUSED: [(u32, &str); 9] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (41, "Q1_0"),
    (42, "Q2_0"),
];

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl GgmlType {
    /// The type with this number in a GGUF file.
    ///
    /// # Errors
    /// A type that is not supported, by name if it has one.
    pub fn from_id(id: u32) -> Result<GgmlType> {
        if let Some((_, kind, ..)) = READ.iter().find(|(known, ..)| *known == id) {
            return Ok(*kind);
        }
        Err(match REFUSED.iter().find(|(known, _)| *known == id) {
            Some((_, name)) => Error::input(format!("GGUF's type {name} is not supported yet"))
                .hint("give the model's original safetensors, or a GGUF of another type"),
            None => Error::input(format!("unknown tensor type {id}")).hint(
                "a newer trephine may support it; otherwise the file is damaged: download or copy it again",
            ),
        })
    }

    /// The number of the type in a GGUF file.
    pub fn id(self) -> u32 {
        READ.iter().find(|(_, kind, ..)| *kind == self).map_or(0, |(id, ..)| *id)
    }

    /// The number of values in a block, and of its bytes.
    pub fn block(self) -> (usize, usize) {
        let found = READ.iter().find(|(_, kind, ..)| *kind == self);
        found.map_or((1, 1), |(_, _, values, bytes)| (*values, *bytes))
    }

    /// The dtype of plain numbers; `None` for blocks.
    pub fn plain(self) -> Option<Dtype> {
        match self {
            GgmlType::F32 => Some(Dtype::F32),
            GgmlType::F16 => Some(Dtype::F16),
            GgmlType::BF16 => Some(Dtype::BF16),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{GgmlType, READ, REFUSED};

    #[test]
    fn every_type_has_its_block() {
        for (id, kind, values, bytes) in READ {
            assert_eq!(GgmlType::from_id(id).unwrap(), kind);
            assert_eq!(kind.id(), id);
            assert_eq!(kind.block(), (values, bytes), "{kind}");
        }
        assert!(REFUSED.iter().all(|(id, _)| GgmlType::from_id(*id).is_err()));
    }
}
