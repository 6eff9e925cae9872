//! Quantized formats: one file per family, all behind [`Dequantize`]. Nothing here touches a file: bytes in, numbers
//! out.
//!
//! A tensor's dtype and companions say whether it is quantized; the config says how. [`Scheme`] holds what the config
//! declares and turns the leading tensor of a weight into its decoder. A new format is one file with a [`Format`] in it
//! and one line in the registry of `registry.rs`.

pub(crate) mod declared;
pub mod encode;
pub mod expert;
pub mod format;
pub mod number;
pub mod packing;
pub(crate) mod patterns;
pub(crate) mod recognize;
pub(crate) mod registry;
pub(crate) mod weight;
pub use self::declared::Declared;
pub use self::registry::Scheme;
pub use self::weight::Stack;
pub use self::weight::{
    Capabilities, Dequantize, Double, Format, FoundWeight, SMALL, Saturation, SchemeKind, Segments,
    SegmentsF64, StackSlice, TensorInfo, Tensors,
};
