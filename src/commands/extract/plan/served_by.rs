//! What the program that an adapter is for does not take.

use crate::commands::extract::inputs::Inputs;
use crate::delta::pair::{Leftover, Pair, Pairing};
use crate::delta::record::Reason;
use crate::delta::select::Selection;
use crate::lora::loader::Loader;
use crate::lora::tree::BaseModules;

/// Leaves out the stacks of experts that the program of `--for` does not take, unless they are asked for by name. Where
/// there is no such program, a note says who would refuse them.
pub(super) fn leave_out(
    inputs: &Inputs,
    loader: Option<Loader>,
    selection: &Selection,
    pairing: &mut Pairing,
) {
    let base = BaseModules::of(&inputs.base);
    let Some(program) = loader else {
        let in_peft_alone =
            |pair: &Pair| !base.takes(Loader::Vllm, &pair.name) || base.is_single_elsewhere(&pair.name);
        if pairing.pairs.iter().any(in_peft_alone) {
            pairing.notes.push(
                "experts are adapted in stacks, as PEFT has them; vLLM and SGLang refuse stacks of this model: --for vllm \
                 makes an adapter for vLLM"
                    .to_owned(),
            );
        }
        return;
    };
    let refused = |pair: &Pair| !base.takes(program, &pair.name) && !selection.asks_for(&pair.name);
    let (left, kept): (Vec<Pair>, Vec<Pair>) =
        std::mem::take(&mut pairing.pairs).into_iter().partition(refused);
    pairing.pairs = kept;
    pairing.zeros.retain(|(name, _)| base.takes(program, name) || selection.asks_for(name));
    let Some(first) = left.first() else { return };
    pairing.notes.push(format!(
        "{program} takes no stacks of experts of this model: {} modules are left out, for example '{}'",
        left.len(),
        first.name
    ));
    pairing.leftovers.extend(left.into_iter().map(|pair| Leftover {
        name: pair.name.as_str().into(),
        reason: Reason::NotSelected,
        base: Some(pair.name.into()),
        tuned: Some(pair.tuned.into()),
        shape: pair.shape.into(),
        from_row: 0,
    }));
    pairing.leftovers.sort_by(|a, b| a.name.cmp(&b.name));
}
