//! Sources of bytes. A memory-mapped file is the first; another source goes beside it.

pub(crate) mod cut_file;
pub(crate) mod mmap;
pub(crate) mod regular_file;
pub use self::cut_file::tell_of_cut_files;
pub use self::mmap::Window;
