//! Shows what is in a checkpoint or adapter, and what looks wrong, from headers alone.

pub(crate) mod adapter;
pub(crate) mod checkpoint;
pub(crate) mod described;
pub(crate) mod groups;
pub use self::adapter::{AdapterProbe, LoaderMatches, probe_adapter};
pub use self::checkpoint::{Level, Probe, ProbeFinding, Showing, WeightKind, probe};
pub use self::described::DescribedTensor;
pub use self::described::Probed;
pub use self::groups::ProbedGroup;
