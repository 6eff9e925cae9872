//! Quantized formats: one file a family, all behind [`Dequantize`]. Nothing here touches a file: bytes in, numbers out.
//!
//! Whether a tensor is quantized is what its dtype and companions say; how is what the config says. [`Scheme`] holds the
//! config's half and turns the leading tensor of a weight into its decoder. A further format is a file with a
//! [`Format`] in it and a line in the registry of `registry.rs`.

pub(crate) mod declared;
pub mod encode;
pub mod expert;
pub mod format;
pub mod number;
pub mod packing;
pub(crate) mod registry;
pub(crate) mod weight;
pub use self::declared::Declared;
pub use self::registry::Scheme;
pub use self::weight::Stack;
pub use self::weight::{
    Capabilities, Dequantize, Double, Format, FoundWeight, SMALL, Saturation, SchemeKind, Segments,
    SegmentsF64, StackSlice, TensorInfo, Tensors,
};
