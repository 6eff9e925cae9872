//! From two checkpoints to an adapter: pair, plan, read, factorize, make safe, assemble.

pub(crate) mod assemble;
pub(crate) mod attempts;
pub(crate) mod leftover;
pub(crate) mod module;
pub(crate) mod options;
pub mod output;
pub(crate) mod part;
pub(crate) mod partition;
pub(crate) mod plan;
pub(crate) mod rerun_command;
pub(crate) mod run_identity;
pub(crate) mod stages;
pub(crate) mod verify;
pub use self::assemble::{Assembled, Assembly, Missing, MissingPart, assemble};
pub use self::attempts::attempt::Work;
pub use self::attempts::status::{AttemptState, AttemptStatus, RunState, Seen, Status, status};
pub use self::options::{Deciding, Extraction};
pub use self::part::{PartOutcome, extract_part};
pub use self::partition::Split;
pub use self::plan::{Inputs, Plan, PlannedLeftover, PlannedModule, kind};
pub use self::verify::{Content, Verification, verify};
use crate::run::layout::STATE;

use crate::commands::extract::output::summary::Outcome;
use crate::run::progress::Progress;

use std::collections::BTreeMap;
use std::time::Instant;

use crate::Result;
use crate::commands::extract::attempts::attempt::How;
use crate::commands::extract::attempts::run_dir::{self, Found};
use crate::commands::extract::output::write;
use crate::commands::extract::run_identity::Begin;
use crate::run::heartbeat::Living;
use crate::run::log::Log;

/// The memory that a run promises to stay under when it is not told: the smaller of 2 GiB and half of what is
/// available now, to this process.
pub fn default_memory() -> u64 {
    const MOST: u64 = 2 << 30;
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    let group = system.cgroup_limits().map_or(u64::MAX, |limits| limits.free_memory);
    MOST.min(system.available_memory().min(group) / 2)
}

/// Plans an extraction and does nothing.
///
/// # Errors
/// See [`Plan::make`] and [`Checkpoint::open`](crate::checkpoint::Checkpoint::open).
pub fn plan(job: &Extraction) -> Result<Plan> {
    let inputs = Inputs::open(&job.base, &job.tuned, job.served.as_deref())?;
    Plan::make(&inputs, job)
}

/// Extracts an adapter, or goes on with an extraction that was stopped, split or not.
///
/// # Errors
/// Bad input, options that need a decision, a failing disk: see [`Kind`](crate::Kind). Whatever was finished stays
/// safe, and the same call goes on from there.
pub fn extract(job: &Extraction, progress: &dyn Progress) -> Result<Outcome> {
    let started = Instant::now();
    let inputs = Inputs::open(&job.base, &job.tuned, job.served.as_deref())?;
    let plan = Plan::make(&inputs, job)?;
    plan.notes.iter().for_each(|note| progress.note(note));
    let begin = Begin::new(job, &inputs)?;
    let (mut ledger, lock) = match run_dir::open(job, &begin, &inputs)? {
        Found::Open(ledger, lock) => (*ledger, lock),
        Found::Done(manifest, lock) => {
            write::tidy(lock, &job.out, job.running.keep_shards)?;
            return Ok(Outcome::new(job.out.clone(), *manifest, &BTreeMap::new(), true));
        }
    };
    ledger.notes.iter().for_each(|note| progress.note(note));
    plan.check_disk(job, ledger.done.bytes())?;
    let log = Log::open(&job.out)?;
    log.line(&format!(
        "trephine {} begins: {} modules of {} are done; {} threads, {} MiB, {}",
        begin.trephine,
        ledger.done.modules.len(),
        plan.modules.len(),
        plan.threads,
        plan.memory >> 20,
        begin.simd
    ));
    let (whole, ahead) = (Work::of(&plan), Work::ahead(&plan, &ledger.done));
    let state = job.out.join(STATE);
    How::new(job, None, whole, whole, ahead).write(&state)?;
    let living = Living::begin(&state, plan.costs(), progress);
    let times = stages::run(&inputs, job, &plan, &mut ledger, &log, &living);
    let times = living.end(times)?;
    progress.assembling();
    let manifest = write::finish(&inputs, job, &plan, &begin, &ledger.done)?;
    if job.running.keep_shards {
        write::keep_shards(&job.out, &ledger.done)?;
    }
    write::tidy(lock, &job.out, job.running.keep_shards)?;
    log.line(&format!("done in {:.3} s", started.elapsed().as_secs_f64()));
    Ok(Outcome::new(job.out.clone(), manifest, &times, false))
}
