//! The bounded producer/consumer machinery: byte budgets, buffers that are used again, panels in order, progress.

pub(crate) mod budget;
pub(crate) mod buffer_pool;
pub(crate) mod cgroup;
pub(crate) mod memory;
pub(crate) mod options;
pub mod ordered_panels;
pub use self::options::RunOptions;
