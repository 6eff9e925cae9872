//! The bounded producer/consumer machinery: byte budgets, reused buffers, ordered panels, progress.

pub(crate) mod budget;
pub(crate) mod buffer_pool;
pub(crate) mod cgroup;
pub(crate) mod memory;
pub(crate) mod options;
pub mod ordered_panels;
pub(crate) mod peak;
pub use self::options::RunOptions;
pub use self::peak::peak_resident;
