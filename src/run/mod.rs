//! The life of a run: one engine for every command whose work can be interrupted.
//!
//! ```text
//! identity ── folder, lock ── earlier attempts ── what is missing ── journal, heartbeat ── output, checksums
//! ```
//! A command plans its work as [units](mod@unit) and implements [`Job`]; the [`Engine`] does the rest, and does it for all of them
//! alike:
//!
//! - **Journal.** A unit counts when its result is safe on disk and its record is in the journal. A kill at any instant costs
//!   at most the units in flight.
//! - **Identity.** A run is continued only by the same command, version, options, inputs and vector instructions; what differs
//!   is named ([`RunIdentity`]).
//! - **Touched inputs.** What was read from a file that has been written to since is hashed again. The same content: the unit
//!   is kept. Another: the run is refused by the tensor's name. A result that is missing or damaged is done again.
//! - **Parts.** A run can be [split](Partition) over machines, each of which writes under a name of its own and takes no lock;
//!   [`Engine::assemble`] brings them together, or says what is missing.
//! - **Signs of life.** Every attempt writes a heartbeat, from which [`status()`] tells how far a run is.

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
