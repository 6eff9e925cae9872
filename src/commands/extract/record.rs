//! What the journal of an extraction records of its units, and what they are once loaded.

use serde::{Deserialize, Serialize};

use crate::commands::extract::module::ShardRecord;
use crate::delta::record::{LeftOut, TensorRecord};

/// What the journal records of a comparison. A module's record lies in its shard.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// What came out of the comparison.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub left_out: Option<LeftOut>,
}

/// A finished unit.
#[derive(Debug)]
pub enum Done {
    /// A module, and what its shard says of it.
    Module(Box<ShardRecord>),
    /// A comparison, and what was read for it.
    Compared(LeftOut, Vec<TensorRecord>),
}
