//! Any LoRA adapter, made into one that a given program loads.
//!
//! What is written has one rank and `lora_alpha == r`: the scale is multiplied into `lora_B`, factors of a lower rank are filled up
//! with zeros, and with a largest rank those above it are cut down to the best approximation of that rank. What the program
//! does not take is left out, and told with the norm that is lost. Where nothing had to be left out or cut down,
//! `scale · B·A` is what it was, but for one rounding of `lora_B` where the scale is no power of two.
//!
//! The order of the work: `plan` decides from headers alone what is kept, left out and filled in; `factors` computes one
//! module's new factors and how far they are from the old, which `job` keeps in shards until every module is done; `write` streams
//! them out, and the checksums last.

pub(crate) mod factors;
pub(crate) mod job;
pub(crate) mod options;
pub(crate) mod plan;
pub(crate) mod pruned_norms;
pub(crate) mod record;
pub(crate) mod write;
pub use self::options::Sanitizing;
pub use self::record::{Completed, Pruned, Refitted, Sanitized};
pub use self::write::RECORD;

use crate::checkpoint::Checkpoint;
use crate::commands::sanitize::job::SanitizeJob;
use crate::commands::sanitize::plan::SanitizePlan;
use crate::lora::read::PeftAdapter;
use crate::lora::rules::{Fix, Loader, RuleFinding};
use crate::lora::tree::BaseModules;
use crate::lora::{CONFIG, rules};
use crate::run::progress::Progress;
use crate::{Error, Result};

/// Holds an adapter against the rules of `consumers`, and writes nothing. `base` tells the model's kind, where it is given.
///
/// # Errors
/// The adapter or the base cannot be read.
pub fn check(adapter: &str, base: Option<&str>, consumers: &[Loader]) -> Result<Vec<RuleFinding>> {
    let adapter = PeftAdapter::open(adapter)?;
    let base = base.map(Checkpoint::open).transpose()?;
    Ok(concerning(&adapter, base.as_ref().map(BaseModules::of).as_ref(), consumers))
}

fn concerning(adapter: &PeftAdapter, base: Option<&BaseModules>, consumers: &[Loader]) -> Vec<RuleFinding> {
    let mut found = rules::judge(adapter, base);
    found.retain(|finding| finding.concerns(consumers));
    found
}

/// Sanitizes, or continues what was stopped.
///
/// # Errors
/// An adapter that cannot be read, or that no plain LoRA can stand for (DoRA, PiSSA's changed base, …); factors that hold NaN
/// or infinities; a rank, shape or budget that the user must decide; a folder that holds something else; a failing disk.
pub fn sanitize(job: &Sanitizing, progress: &dyn Progress) -> Result<Sanitized> {
    let adapter = PeftAdapter::open(&job.adapter)?;
    let base = job.base.as_deref().map(Checkpoint::open).transpose()?;
    let modules = base.as_ref().map(BaseModules::of);
    let judged = rules::judge(&adapter, modules.as_ref());
    if let Some(hopeless) = judged.iter().find(|finding| finding.mend == Fix::No) {
        let is_another_method =
            hopeless.at.starts_with(CONFIG) || hopeless.at.contains("lora_magnitude_vector");
        return Err(Error::input(format!("{} {}, so it cannot be sanitized", hopeless.at, hopeless.why))
            .path(adapter.root())
            .hint(if is_another_method {
                "let PEFT merge it into its base, and extract a LoRA from the two"
            } else {
                "export the adapter again"
            }));
    }
    let found: Vec<RuleFinding> =
        judged.into_iter().filter(|finding| finding.concerns(&job.consumers)).collect();
    let plan = SanitizePlan::make(job, &adapter, base.as_ref(), modules.as_ref(), &found)?;
    let record = SanitizeJob::new(job, &adapter, base.as_ref(), &plan, &found)?.run(progress)?;
    let left = concerning(&PeftAdapter::open_folder(&job.out)?, modules.as_ref(), &job.consumers);
    match left.iter().find(|finding| finding.is_failure()) {
        None => Ok(record),
        Some(left) => {
            Err(Error::unexpected(format!("what was written still breaks a rule: {left}")).path(&job.out))
        }
    }
}
