//! Sources of bytes. A memory-mapped file is the first; another source goes beside it.

pub(crate) mod mmap;
pub use self::mmap::Window;
