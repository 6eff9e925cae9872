//! Measures how much a tensor that the adapter cannot hold has changed.

use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::module::Module;
use crate::commands::extract::inputs::Inputs;
use crate::delta::difference::{Difference, Keep, Survey};
use crate::delta::operand::Operand;
use crate::delta::options::{NonFinite, RoundBase};
use crate::delta::pair::Leftover;
use crate::delta::record::{LeftOut, Reason, Side, TensorRecord};

/// Compares `leftover` if both checkpoints have it and its values can be decoded.
///
/// # Errors
/// Errors of reading. Values that are not finite are not an error here: they are left out of the sums.
pub fn compare(
    inputs: &Inputs,
    leftover: &Leftover,
    read: &(dyn Fn(u64) + Sync),
) -> Result<(LeftOut, Vec<TensorRecord>)> {
    let mut left_out = leftover.blank();
    let (Some(base), Some(tuned)) = (&leftover.base, &leftover.tuned) else {
        return Ok((left_out, Vec::new()));
    };
    if leftover.reason == Reason::ShapeDiffers {
        return Ok((left_out, Vec::new()));
    }
    let matrices = matrix(&inputs.base, base).zip(matrix(&inputs.tuned, tuned));
    let Some((base, tuned)) = matrices.filter(|(b, t)| b.shape() == t.shape()) else {
        return Ok((left_out, Vec::new()));
    };
    let operand = |side, checkpoint, module| Operand { side, checkpoint, module };
    let base = operand(Side::Base, &inputs.base, &base);
    let tuned = operand(Side::Tuned, &inputs.tuned, &tuned);
    let rows = base.module.shape()[0];
    let difference = Difference::new(base, tuned, rows, RoundBase::None, NonFinite::Zero)?;
    let Survey { norm2, base_norm2, tensors, .. } = difference.survey(Keep::Sums, read)?;
    left_out.change_norm = Some(norm2.sqrt()).filter(|norm| norm.is_finite());
    left_out.relative_change = match (norm2, base_norm2) {
        (0.0, _) => Some(0.0),
        (_, base) if base > 0.0 && base.is_finite() => Some((norm2 / base).sqrt()),
        _ => None,
    };
    Ok((left_out, tensors))
}

/// A module, or any other dense tensor seen as a matrix.
fn matrix(checkpoint: &Checkpoint, name: &str) -> Option<Module> {
    let dense = || checkpoint.tensor(name).and_then(Module::flattened);
    checkpoint.module(name).cloned().or_else(dense)
}
