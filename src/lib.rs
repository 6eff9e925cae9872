//! Trephine: a LoRA adapter out of the difference between two checkpoints that are far larger than memory.

#![deny(missing_docs)]

pub mod adapter;
pub mod checkpoint;
pub mod error;
pub mod factorize;
pub mod ledger;
pub mod pipeline;
pub mod quant;

pub use error::{Error, Kind, Result};
