//! What quantization noise and fine-tuning look like beside each other, measured in a stream over whole checkpoints.

mod fidelity_record;
mod record;
pub use crate::pipeline::walk;

pub use fidelity_record::{
    Distances, FIDELITY, FIDELITY_VERSION, Fidelity, FidelityAdapter, FidelityGroup, FidelityModule,
};
pub use record::{
    ANALYSIS, ANALYSIS_VERSION, About, Analysis, Angles, Cosine, Group, LeftAside, MethodB, ModuleAnalysis,
    Norms, Pooled, Remaining, SpectrumAboveNoise, Statement, Subspaces,
};
