//! Statistics and verdicts for every tensor of a checkpoint or adapter, after dequantization.

pub(crate) mod compare;
pub(crate) mod examine;
pub(crate) mod findings;
pub(crate) mod judge;
pub(crate) mod kinds;
pub(crate) mod moments;
pub(crate) mod record;
pub mod statistics;
pub(crate) mod thresholds;
pub use self::examine::{Examination, autopsy};
pub use self::findings::{Finding, findings};
pub use self::record::{
    AUTOPSY, AUTOPSY_VERSION, Autopsy, Comparison, Fault, LeftUnread, Role, Saturated, Severity,
    TensorAutopsy, Total, Verdict,
};
pub use self::statistics::{Histogram, Quantile, Statistics};
pub use self::thresholds::{InitLimits, Thresholds};
