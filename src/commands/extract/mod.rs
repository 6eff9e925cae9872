//! Extracts an adapter from two checkpoints: pair, plan, read, factorize, write, assemble.

pub(crate) mod factors;
pub(crate) mod fetch;
pub(crate) mod folded;
pub(crate) mod holding;
pub(crate) mod inputs;
pub(crate) mod job;
pub(crate) mod leftover;
pub(crate) mod module;
pub(crate) mod noise;
pub(crate) mod norm;
pub(crate) mod options;
pub mod output;
pub(crate) mod plan;
pub(crate) mod record;
pub(crate) mod stages;
pub(crate) mod units;
pub(crate) mod verify;
pub use self::holding::Holding;
pub use self::inputs::Inputs;
pub use self::job::assemble;
pub use self::noise::{kept_noise, mostly_noise};
pub use self::options::{AbsorbNorms, Allowances, Extraction, ResultOptions, Target};
pub use self::plan::{ExtractionPlan, PlannedLeftover, PlannedModule, kind};
pub use self::verify::{AdapterVerification, Content, verify};

use crate::Result;
use crate::commands::extract::job::ExtractJob;
use crate::commands::extract::output::summary::ExtractionOutcome;
use crate::run::engine::PartOutcome;
use crate::run::parts::part_id::Part;
use crate::run::progress::Progress;

/// The default memory limit of a run in bytes: the smaller of 2 GiB and half of the memory that is available now to
/// this process and its control group.
pub fn default_memory() -> u64 {
    const MOST: u64 = 2 << 30;
    MOST.min(available_memory() / 2)
}

/// What this process could take: what the machine has left, and what its control group has.
pub fn available_memory() -> u64 {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    let group = crate::pipeline::cgroup::available().unwrap_or(u64::MAX);
    system.available_memory().min(group)
}

/// Plans an extraction without running it.
///
/// # Errors
/// See [`ExtractionPlan::make`] and [`Checkpoint::open`](crate::checkpoint::Checkpoint::open).
pub fn plan(job: &Extraction) -> Result<ExtractionPlan> {
    let inputs = Inputs::open(job)?;
    ExtractionPlan::make(&inputs, job)
}

/// Extracts an adapter, or continues an extraction that was stopped, split or not.
///
/// # Errors
/// Bad input, options that need a decision, a failing disk: see [`Kind`](crate::Kind). Finished work is kept, and the
/// same call resumes from there.
pub fn extract(job: &Extraction, progress: &dyn Progress) -> Result<ExtractionOutcome> {
    let inputs = Inputs::open(job)?;
    let plan = ExtractionPlan::make(&inputs, job)?;
    plan.notes.iter().for_each(|note| progress.note(note));
    ExtractJob::new(job, &inputs, &plan)?.run(progress)
}

/// Runs `part` of an extraction: the units of its share that are not done yet. Nothing is assembled.
///
/// # Errors
/// See [`extract`]; also a folder with parts of a different run.
pub fn extract_part(job: &Extraction, part: Part, progress: &dyn Progress) -> Result<PartOutcome> {
    let inputs = Inputs::open(job)?;
    let plan = ExtractionPlan::make(&inputs, job)?;
    plan.notes.iter().for_each(|note| progress.note(note));
    ExtractJob::new(job, &inputs, &plan)?.part(part, progress)
}
