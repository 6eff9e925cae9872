//! The life of a run: one engine for every command whose work can be interrupted.
//!
//! ```text
//! identity ── folder, lock ── earlier attempts ── what is missing ── journal, heartbeat ── output, checksums
//! ```
//! A command plans its work as [units](mod@unit) and implements [`Job`]; the [`Engine`] does the rest in the same way
//! for every command:
//!
//! - **Journal.** A unit counts as done when its result is on disk and its record is in the journal. A kill at any
//!   instant costs at most the units in flight.
//! - **Identity.** Only a run with the same command, version, options, inputs and vector instructions continues an
//!   earlier one; otherwise the error names the difference ([`RunIdentity`]).
//! - **Touched inputs.** If an input file has been modified since, the tensors that were read from it are hashed again.
//!   If the content is the same, the unit is kept; if it differs, the run is refused and the error names the tensor. A
//!   unit whose result is missing or damaged is done again.
//! - **Parts.** A run can be [split](Partition) over machines. Each writes under a name of its own and takes no lock;
//!   [`Engine::assemble`] combines the parts, or reports what is missing.
//! - **Heartbeat.** Every attempt writes a heartbeat, from which [`status()`] reports the progress of a run.

pub(crate) mod attempts;
pub(crate) mod engine;
pub(crate) mod folder;
pub(crate) mod heartbeat;
pub(crate) mod identity;
pub(crate) mod job;
pub(crate) mod layout;
pub(crate) mod life;
pub(crate) mod log;
pub mod parts;
pub(crate) mod progress;
pub mod unit;
pub use self::attempts::{
    AttemptState, AttemptStatus, Completed, Finished, Recorder, RunState, Seen, Status, status,
};
pub use self::engine::{Ended, Engine, PartOutcome};
pub use self::identity::{RunIdentity, option_map, simd_level};
pub use self::job::{Job, RunOutput};
pub use self::layout::{LOG, Layout, STATE};
pub use self::life::Life;
pub use self::log::Log;
pub use self::parts::{
    Assembled, Assembly, Missing, MissingPart, Part, PartChoice, Partition, Recorded, Share,
};
pub use self::progress::{Progress, Silent};
pub use self::unit::{PlannedUnit, Unit, UnitId, UnitKind, Work};
