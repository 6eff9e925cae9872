//! From two checkpoints to an adapter: pair, plan, read, factorize, make safe, assemble.

mod assemble;
mod attempt;
mod begin;
mod budget;
mod card;
mod command;
mod compare;
mod content;
mod delta;
mod digests;
mod finish;
mod finished;
mod gather;
mod life;
mod log;
mod options;
mod pair;
mod part;
mod parts;
mod plan;
mod progress;
mod renaming;
mod resume;
mod run;
mod select;
mod slab;
mod split;
mod status;
mod summary;
pub mod walk;
mod worker;

pub use assemble::{Assembled, Assembly, Missing, MissingPart, assemble};
pub(crate) use begin::differing_option;
pub use begin::simd_level;
pub use card::smallest_vllm_rank;
pub use content::{Content, Verification, verify};
pub(crate) use gather::changed;
pub use life::Life;
pub use options::{Deciding, Extraction, FactorType, NonFinite, RoundBase, Running};
pub use pair::{Leftover, Pair};
pub use part::{Part, PartChoice};
pub use parts::{PartOutcome, extract_part};
pub(crate) use plan::{CATALOGUE_ENTRY, OVERHEAD, THREAD};
pub use plan::{Inputs, Plan, PlannedLeftover, PlannedModule, kind};
pub use progress::{Progress, Silent};
pub use renaming::Renaming;
pub use resume::{CARD, LOG, MANIFEST, SPECTRA, STATE};
pub use select::Selection;
pub use split::Split;
pub use status::{AttemptState, AttemptStatus, RunState, Seen, Status, status};
pub use summary::{KindSummary, LeftOutGroup, Outcome};

pub(crate) use budget::Budget;
pub(crate) use delta::{Difference, Half, Recomputed, VISIT_SCRATCH, slice_rows};
pub(crate) use finish::source;
pub(crate) use pair::pair;
pub(crate) use plan::mapped;

use std::collections::BTreeMap;
use std::time::Instant;

use self::attempt::How;
pub use self::attempt::Work;
use self::begin::Begin;
use self::life::Living;
use self::log::Log;
use self::resume::Found;
use crate::Result;

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
    let (mut ledger, lock) = match resume::open(job, &begin, &inputs)? {
        Found::Open(ledger, lock) => (*ledger, lock),
        Found::Done(manifest, lock) => {
            finish::tidy(lock, &job.out, job.running.keep_shards)?;
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
    let living = Living::begin(&state, &plan, progress);
    let times = run::run(&inputs, job, &plan, &mut ledger, &log, &living);
    let times = living.end(times)?;
    progress.assembling();
    let manifest = finish::finish(&inputs, job, &plan, &begin, &ledger.done)?;
    if job.running.keep_shards {
        finish::keep_shards(&job.out, &ledger.done)?;
    }
    finish::tidy(lock, &job.out, job.running.keep_shards)?;
    log.line(&format!("done in {:.3} s", started.elapsed().as_secs_f64()));
    Ok(Outcome::new(job.out.clone(), manifest, &times, false))
}
