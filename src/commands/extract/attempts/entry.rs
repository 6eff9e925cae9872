//! One record of an extraction's journal.

use crate::commands::extract::run_identity::Begin;
use crate::delta::record::{LeftOut, TensorRecord};
use serde::{Deserialize, Serialize};

/// One record of the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Entry {
    /// What the run is of. Always the first.
    Begin(Box<Begin>),
    /// A module's shard is on disk.
    Module {
        /// The module.
        name: String,
        /// Length of its shard.
        bytes: u64,
        /// Digest of its shard.
        blake3: String,
    },
    /// A tensor that the adapter does not hold has been compared.
    Compared {
        /// What came out.
        left_out: LeftOut,
        /// What was read for it.
        tensors: Vec<TensorRecord>,
    },
}
