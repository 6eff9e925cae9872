//! Turns any LoRA adapter into one that a given program loads.
//!
//! The output has a uniform rank and `lora_alpha == r`: the scale is multiplied into `lora_B`, factors of a lower rank
//! are padded with zeros, and factors above the largest allowed rank are truncated to the best approximation of that
//! rank. Tensors that the program does not accept are left out and reported with the norm that is lost. If nothing was
//! left out or truncated, `scale · B·A` stays the same, except for one rounding of `lora_B` if the scale is not a power
//! of two.
//!
//! The steps: `plan` decides from headers alone what is kept, left out and filled in; `factors` computes one module's
//! new factors and their distance from the old ones; `job` keeps them in shards until every module is done; `write`
//! streams them to the output, the checksums last.

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

/// Checks an adapter against the rules of `consumers`, and writes nothing. `base`, if given, tells the model type, and
/// whether the head is the embedding.
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

/// Sanitizes, or continues a run that was stopped.
///
/// # Errors
/// An adapter that cannot be read, or that no plain LoRA can represent (DoRA, PiSSA's changed base, …); factors that
/// hold NaN or infinities; a rank, shape or budget that the user must decide; an output folder that holds something
/// else; a failing disk.
pub fn sanitize(job: &Sanitizing, progress: &dyn Progress) -> Result<Sanitized> {
    let adapter = PeftAdapter::open(&job.adapter)?;
    let base = job.base.as_deref().map(Checkpoint::open).transpose()?;
    let modules = base.as_ref().map(BaseModules::of);
    let judged = rules::judge(&adapter, modules.as_ref());
    // What the adapter is, is wrong for all; what its base is, for some: one program that loads the result is enough.
    let of_itself = rules::portable(&adapter, modules.as_ref());
    let concerns_all =
        |finding: &RuleFinding| job.consumers.iter().all(|consumer| finding.concerns(&[*consumer]));
    let concerns = |finding: &&RuleFinding| of_itself.contains(finding) || concerns_all(finding);
    if let Some(hopeless) = judged.iter().filter(concerns).find(|finding| finding.is_hopeless()) {
        return Err(Error::input(format!("{} {}, so it cannot be sanitized", hopeless.at, hopeless.why))
            .path(adapter.root())
            .hint(way_out(hopeless, of_itself.contains(hopeless))));
    }
    let found: Vec<RuleFinding> =
        judged.into_iter().filter(|finding| finding.concerns(&job.consumers)).collect();
    let plan = SanitizePlan::make(job, &adapter, base.as_ref(), modules.as_ref(), &found)?;
    let record = SanitizeJob::new(job, &adapter, base.as_ref(), &plan, &found)?.run(progress)?;
    let left = concerning(&PeftAdapter::open_folder(&job.out)?, modules.as_ref(), &job.consumers);
    match left.iter().find(|finding| finding.is_failure() && finding.mend != Fix::No) {
        None => Ok(record),
        Some(left) => {
            Err(Error::unexpected(format!("the output still breaks a rule: {left}")).path(&job.out))
        }
    }
}

/// What may be done about what no output of [`sanitize`] mends.
fn way_out(hopeless: &RuleFinding, is_of_adapter: bool) -> String {
    let is_another_method = hopeless.at.starts_with(CONFIG) || hopeless.at.contains("lora_magnitude_vector");
    if is_of_adapter && is_another_method {
        return "merge it into its base with PEFT, then extract a LoRA from the base and the result"
            .to_owned();
    }
    let others = Loader::ALL.into_iter().filter(|program| !hopeless.concerns(&[*program]));
    let others: Vec<&str> = others.map(Loader::name).collect();
    if is_of_adapter || others.is_empty() {
        return "export the adapter again".to_owned();
    }
    format!("sanitize it for other programs with --for: {}", others.join(", "))
}
