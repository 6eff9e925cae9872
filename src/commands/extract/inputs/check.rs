//! Refuses inputs that make no sense together, before any work.

use std::path::Path;

use crate::checkpoint::{Checkpoint, Module};
use crate::commands::extract::inputs::Inputs;
use crate::commands::extract::options::Allowances;
use crate::delta::pair::Pairing;
use crate::delta::record::Reason;
use crate::delta::select::Selection;
use crate::shared::Name;
use crate::{Error, Result};

/// The number of names in an error.
const NAMED: usize = 3;

/// Refuses a checkpoint given twice, and a quantized tuned checkpoint on a dense base, which is mostly a swap. Returns
/// what is odd, but no reason to stop.
///
/// # Errors
/// [`Kind::Decide`](crate::Kind::Decide), with what to do.
pub fn sense(inputs: &Inputs, allow: Allowances) -> Result<Vec<String>> {
    let Inputs { base, tuned, .. } = inputs;
    if !allow.same && same_place(base.root(), tuned.root()) {
        return Err(Error::decide(
            "base and tuned are the same checkpoint: there is no difference to extract",
        )
        .path(tuned.root())
        .hint("give --base the model that the tuned one was trained from"));
    }
    let mut notes = Vec::new();
    let quantized = |checkpoint: &Checkpoint| checkpoint.modules().any(Module::is_quantized);
    match (quantized(base), quantized(tuned)) {
        (false, true) if !allow.quantized_tuned => {
            let scheme = tuned.scheme().label();
            return Err(Error::decide(format!(
                "the tuned checkpoint is quantized ({scheme}) and the base is not: are they swapped?"
            ))
            .path(tuned.root())
            .hint(
                "the base is the model before the fine-tune; if the fine-tune exists only quantized, \
                 --allow-quantized-tuned continues, and its quantization error becomes part of the adapter",
            ));
        }
        (_, true) => notes.push(
            "the tuned checkpoint is quantized: its quantization error becomes part of the adapter"
                .to_owned(),
        ),
        _ => {}
    }
    if base.config().raw().is_none() {
        notes.push(
            "the base has no config.json: modules are named as in its files, and the adapter's task_type is assumed \
             to be CAUSAL_LM"
                .to_owned(),
        );
    }
    Ok(notes)
}

fn same_place(a: &Path, b: &Path) -> bool {
    a == b || matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// Refuses selected modules that only one of the two checkpoints has, or that have different shapes.
///
/// # Errors
/// [`Kind::Decide`](crate::Kind::Decide), with the first of their names.
pub fn partners(inputs: &Inputs, selection: &Selection, pairing: &Pairing, allow: Allowances) -> Result<()> {
    if allow.missing {
        return Ok(());
    }
    let is_module = |checkpoint: &Checkpoint, name: &Option<Name>| {
        name.as_deref().is_some_and(|name| checkpoint.module(name).is_some() && selection.takes(name))
    };
    let lost: Vec<_> = pairing
        .leftovers
        .iter()
        .filter(|left| matches!(left.reason, Reason::NoPartner | Reason::ShapeDiffers))
        .filter(|left| is_module(&inputs.base, &left.base) || is_module(&inputs.tuned, &left.tuned))
        .collect();
    let Some(first) = lost.first() else { return Ok(()) };
    let only = match (&first.base, &first.tuned) {
        (Some(_), None) => "is only in the base",
        (None, Some(_)) => "is only in the tuned checkpoint",
        _ => "has another shape in the tuned checkpoint",
    };
    let what = match lost.len() {
        1 => format!("a selected module has no partner: '{}' {only}", first.name),
        count => {
            let names: Vec<&str> = lost.iter().take(NAMED).map(|left| left.name.as_str()).collect();
            let more = if count > NAMED { ", ..." } else { "" };
            format!(
                "{count} selected modules have no partner: {}{more}; '{}' {only}",
                names.join(", "),
                first.name
            )
        }
    };
    Err(Error::decide(what).path(inputs.tuned.root()).hint(
        "check that the tuned checkpoint is complete and was trained from this base; --allow-missing continues without \
         these modules, --exclude leaves them out by name",
    ))
}
