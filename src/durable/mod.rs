//! What makes a run safe to kill, and its output safe to trust.
//!
//! Two rules hold the room together. *Never lose work*: a file appears under its own name only when it is
//! whole and on the disk ([`atomic_file`]); only then does the [`journal`] say so. *Never trust a file*: whatever
//! is read again is checked first, a journal by the checksum of every line, a shard by its digest, a finished
//! folder by its [`checksums`].
//!
//! | file | what a kill may leave of it | how that is met |
//! |---|---|---|
//! | any [`atomic_file`] | a temporary that bears no name | [`atomic_file::remove_leftovers`] |
//! | the [`journal`] | a torn last line | dropped on replay, its work is done again |
//! | the [`lock`] | the file, but not the lock | its existence means nothing |

pub mod atomic_file;
pub mod checksums;
pub mod digest;
pub(crate) mod direct_io;
pub(crate) mod finding;
pub mod folder;
pub mod inside;
pub mod journal;
pub mod lock;
pub mod verify;
pub use self::atomic_file::Draft;
pub use self::checksums::Checksums;
pub use self::digest::Written;
pub use self::direct_io::DIRECT_BYTES;
pub use self::finding::{B3SUMS, Finding, Level, Problem};
pub use self::journal::Journal;
pub use self::lock::Lock;
pub use self::verify::Verification;
