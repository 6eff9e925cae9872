//! The safetensors container: reading a header, building one, and writing a file as a stream.

pub(crate) mod entries;
pub(crate) mod header;
pub(crate) mod layout;
pub mod writer;
pub use self::layout::Placed;
pub use self::writer::SafetensorsWriter;
