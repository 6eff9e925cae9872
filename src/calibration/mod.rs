//! Calibrations: second moments of the inputs of a model's linear layers, which determine how much an error of each
//! weight matters.
//!
//! [`layout`] describes the files, [`Accumulator`] computes the moments from a model's activations, [`FileWriter`]
//! writes them.

mod accumulate;
pub mod layout;
mod write;

pub use self::accumulate::{Accumulator, Task};
pub use self::write::{Announced, FileWriter};
