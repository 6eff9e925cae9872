//! What is planned: the modules to extract, and the tensors that are only compared.

use std::sync::Arc;

use serde::Serialize;

use crate::calibration::KnownInput;
use crate::commands::extract::holding::Holding;
use crate::delta::module_record::Minimized;
use crate::delta::pair::{Leftover, Pair};
use crate::delta::record::{LeftOut, Reason};
use crate::delta::rescaling::Rescaling;
use crate::factorize::precision::Precision;
use crate::run::unit::UnitId;
use crate::shared::{Name, Shape};
use crate::storage::Kept;

/// One module to extract.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedModule {
    /// Its name in the base.
    pub name: String,
    /// `[out, in]` in the base.
    pub shape: [usize; 2],
    /// How it will be factorized.
    pub method: String,
    /// In what numbers its delta is multiplied.
    pub precision: Precision,
    /// What is held of its delta.
    #[serde(flatten)]
    pub holding: Holding,
    /// The same where bytes turn out to be too coarse.
    #[serde(skip)]
    pub in_f32: Holding,
    /// Floating-point operations, by the cost model.
    pub flops: f64,
    /// Bytes of tensors to read in one pass.
    pub read_bytes: u64,
    /// Bytes of them that cross the link to a server, if each crosses it once.
    #[serde(skip_serializing_if = "is_zero")]
    pub link_bytes: u64,
    /// Where its stored bytes are kept, if they come from a server and are read more than once.
    #[serde(skip)]
    pub kept: Option<Kept>,
    /// The same if its passes are in f32.
    #[serde(skip)]
    pub kept_in_f32: Option<Kept>,
    /// Which error its factors will be the least in, where the run knows of more than that of the weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimizes: Option<Minimized>,
    /// What its inputs are like.
    #[serde(skip)]
    pub calibrated: Option<KnownInput>,
    /// The pair itself.
    #[serde(skip)]
    pub pair: Pair,
    /// What the tuned weight is multiplied by, where scales are folded into the base's norms.
    #[serde(skip)]
    pub rescaling: Option<Arc<Rescaling>>,
}

/// A tensor that the adapter will not hold.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedLeftover {
    /// Its name.
    pub name: Name,
    /// Why it is left out.
    pub reason: Reason,
    /// Its shape.
    pub shape: Shape,
    /// Bytes to read for its comparison.
    pub read_bytes: u64,
    /// Bytes of them that cross the link to a server.
    #[serde(skip_serializing_if = "is_zero")]
    pub link_bytes: u64,
    /// Bytes that the comparison keeps resident.
    pub memory: u64,
    /// The names under which it is compared.
    #[serde(skip)]
    pub leftover: Leftover,
    /// Its comparison as a unit of work.
    #[serde(skip)]
    pub unit: UnitId,
}

impl PlannedLeftover {
    /// Identifies it among all others, as [`LeftOut::key`] does.
    pub fn key(&self) -> &str {
        &self.unit.name
    }

    /// Its report, before its values are compared.
    pub fn blank(&self) -> LeftOut {
        self.leftover.blank()
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)]
pub(super) fn is_zero(bytes: &u64) -> bool {
    *bytes == 0
}
