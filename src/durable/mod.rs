//! Durability: what makes a run safe to kill, and its output safe to trust.
//!
//! There are two rules. *Never lose work*: a file appears under its own name only when it is complete and on the
//! disk ([`atomic_file`]); only then does the [`journal`] record it. *Never trust a file*: everything that is
//! read back is checked first, a journal by the checksum of every line, a shard by its digest, a finished folder
//! by its [`checksums`].
//!
//! | file | what a kill may leave | how that is handled |
//! |---|---|---|
//! | any [`atomic_file`] | a file with a temporary name | removed by [`atomic_file::remove_leftovers`] |
//! | the [`journal`] | a torn last line | dropped on replay, and its work is done again |
//! | the [`lock`] | the file, but not the lock | the existence of the file does not matter |

pub mod atomic_file;
pub mod checksums;
pub mod digest;
pub(crate) mod direct_io;
pub(crate) mod finding;
pub mod folder;
pub mod inside;
pub mod journal;
pub mod json_file;
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
