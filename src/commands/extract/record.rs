//! What the journal records for each unit of an extraction, and the units as loaded.

use serde::{Deserialize, Serialize};

use crate::commands::extract::module::ShardRecord;
use crate::delta::record::{LeftOut, TensorRecord};

/// What the journal records for a comparison. A module's record is in its shard.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The result of the comparison.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub left_out: Option<LeftOut>,
}

/// A finished unit.
#[derive(Debug)]
pub enum Done {
    /// A module, with the record from its shard.
    Module(Box<ShardRecord>),
    /// A comparison, with the tensors read for it.
    Compared(LeftOut, Vec<TensorRecord>),
}
