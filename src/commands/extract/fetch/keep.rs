//! What is read more than once, kept so that it is fetched only once.

use crate::Result;
use crate::checkpoint::module::Module;
use crate::commands::extract::inputs::Inputs;
use crate::commands::extract::plan::PlannedModule;
use crate::commands::extract::units::Attempt;
use crate::storage::{Keeper, Kept};

/// Keeps what the plan says of a module's stored bytes, until the result is dropped.
///
/// # Errors
/// A scratch folder that cannot be written to.
pub(crate) fn keep(inputs: &Inputs, attempt: &Attempt<'_>) -> Result<Vec<Box<dyn Keeper>>> {
    let module = attempt.module;
    let (holding, kept) = match attempt.in_bytes() {
        true => (module.holding, module.kept),
        false => (module.in_f32, module.kept_in_f32),
    };
    let Some(kept) = kept else { return Ok(Vec::new()) };
    let delta = holding.reads_again(attempt.in_bytes());
    let base = delta.then_some((&inputs.base, &*module.name));
    let again = delta || inputs.served.is_some() || inputs.dense.is_some();
    let tuned = again.then_some((&inputs.tuned, &*module.pair.tuned));
    let others =
        [&inputs.served, &inputs.dense].map(|other| other.as_ref().map(|open| (open, &*module.name)));
    let mut keepers = Vec::new();
    for (checkpoint, name) in [base, tuned].into_iter().chain(others).flatten() {
        let stored: Option<&Module> = checkpoint.module(name);
        if let Some(stored) = stored.filter(|_| checkpoint.is_remote()) {
            keepers.extend(checkpoint.keep(stored, kept)?);
        }
    }
    Ok(keepers)
}

/// Keeps both sides of a module that is read twice without its delta being held, as verification does: in memory
/// where the delta would have had as much, otherwise where the plan or the scratch folder has room.
///
/// # Errors
/// No room for it.
pub(crate) fn keep_both(inputs: &Inputs, module: &PlannedModule) -> Result<Vec<Box<dyn Keeper>>> {
    if module.link_bytes == 0 {
        return Ok(Vec::new());
    }
    let [rows, columns] = module.shape.map(|n| n as u64);
    let has_room = match module.in_f32.held {
        true => module.link_bytes <= 4 * rows * columns,
        false => module.kept_in_f32 == Some(Kept::Memory),
    };
    let kept = if has_room { Kept::Memory } else { Kept::Scratch };
    let mut keepers = Vec::new();
    for (checkpoint, name) in [(&inputs.base, &module.name), (&inputs.tuned, &module.pair.tuned)] {
        if let Some(stored) = checkpoint.module(name).filter(|_| checkpoint.is_remote()) {
            keepers.extend(checkpoint.keep(stored, kept)?);
        }
    }
    Ok(keepers)
}
