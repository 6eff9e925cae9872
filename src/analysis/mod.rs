//! What quantization noise and fine-tuning look like beside each other, measured in a stream over whole checkpoints.

mod autopsy;
mod autopsy_compare;
mod autopsy_judge;
mod autopsy_record;
mod fidelity_record;
mod moments;
mod probe;
mod probe_adapter;
mod probe_groups;
mod record;
pub mod statistics;
mod thresholds;

pub use crate::pipeline::walk;
pub use autopsy::{Examination, autopsy};
pub use autopsy_record::{
    AUTOPSY, AUTOPSY_VERSION, Autopsy, Comparison, Fault, Gravity, LeftUnread, Role, Saturated,
    TensorAutopsy, Total, Verdict,
};
pub use fidelity_record::{
    Distances, FIDELITY, FIDELITY_VERSION, Fidelity, FidelityAdapter, FidelityGroup, FidelityModule,
};
pub use probe::{Finding, Kind, Level, Part, Probe, Probed, Showing, probe};
pub use probe_adapter::{AdapterProbe, probe_adapter};
pub use probe_groups::ProbedGroup;
pub use record::{
    ANALYSIS, ANALYSIS_VERSION, About, Analysis, Angles, Cosine, Group, LeftAside, MethodB, ModuleAnalysis,
    Norms, Pooled, Remaining, SpectrumAboveNoise, Statement, Subspaces,
};
pub use statistics::{Histogram, Quantile, Statistics};
pub use thresholds::Thresholds;
