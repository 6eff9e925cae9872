//! The bounded producer/consumer machinery: byte budgets, buffers that are used again, panels in order, progress.

pub(crate) mod budget;
pub(crate) mod buffer_pool;
pub mod ordered_panels;
pub(crate) mod progress;
pub use self::progress::{Progress, Silent};
