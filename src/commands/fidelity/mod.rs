//! Measures how far served weights are from the tuned ones, with each adapter and without any.

pub(crate) mod job;
pub(crate) mod measure;
pub(crate) mod record;
pub use self::job::fidelity;
pub use self::measure::Measuring;
pub use self::record::{
    Distances, FIDELITY, FIDELITY_VERSION, Fidelity, FidelityAdapter, FidelityGroup, FidelityModule,
};
