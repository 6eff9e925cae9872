//! What makes a run safe to kill, and its output safe to trust.
//!
//! Two rules hold the room together. *Never lose work*: a file appears under its own name only when it is
//! whole and on the disk ([`durable`]); only then does the [`journal`] say so. *Never trust a file*: whatever
//! is read again is checked first, a journal by the checksum of every line, a shard by its digest, a finished
//! folder by its [`checksums`].
//!
//! | file | what a kill may leave of it | how that is met |
//! |---|---|---|
//! | any [`durable`] file | a temporary that bears no name | [`durable::remove_leftovers`] |
//! | the [`journal`] | a torn last line | dropped on replay, its work is done again |
//! | the [`lock`] | the file, but not the lock | its existence means nothing |

pub mod checksums;
pub mod digest;
mod direct;
pub mod durable;
pub mod folder;
mod header;
pub mod journal;
pub mod lock;
mod manifest;
pub mod safetensors_writer;
pub mod shard;
pub mod verify;

pub use checksums::Checksums;
pub use digest::Written;
pub use direct::DIRECT_BYTES;
pub use durable::Draft;
pub use header::Placed;
pub use journal::Journal;
pub use lock::Lock;
pub use manifest::{
    LeftOut, Manifest, ModuleRecord, Quality, Reason, ServedError, Side, Source, Spectrum, TensorRecord,
};
pub use safetensors_writer::SafetensorsWriter;
pub use shard::Shard;
pub use verify::{Finding, Level, Problem, Verification};
