//! What the program that an adapter is for does not take.

use crate::commands::extract::inputs::Inputs;
use crate::delta::pair::{Leftover, Pair, Pairing};
use crate::delta::record::Reason;
use crate::delta::select::Selection;
use crate::lora::loader::Loader;
use crate::lora::names::is_of_stack;
use crate::lora::tree::BaseModules;

/// Leaves out what the program of `--for` does not take, unless it is asked for by name. Where there is no such
/// program, notes say who would refuse what.
pub(super) fn leave_out(
    inputs: &Inputs,
    loader: Option<Loader>,
    selection: &Selection,
    pairing: &mut Pairing,
) {
    let base = BaseModules::of(&inputs.base);
    let Some(program) = loader else {
        pairing.notes.extend(refusals(&base, &pairing.pairs));
        return;
    };
    let refused = |pair: &Pair| !base.takes(program, &pair.name) && !selection.asks_for(&pair.name);
    let (left, kept): (Vec<Pair>, Vec<Pair>) =
        std::mem::take(&mut pairing.pairs).into_iter().partition(refused);
    pairing.pairs = kept;
    pairing.zeros.retain(|(name, _)| base.takes(program, name) || selection.asks_for(name));
    let Some(first) = left.first() else { return };
    pairing.notes.push(format!(
        "{program} takes no LoRA on {} modules of this model, which are left out: {}, for example '{}'",
        left.len(),
        what(&left),
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

/// Which programs refuse an adapter of all pairs in the form that PEFT has them.
fn refusals(base: &BaseModules, pairs: &[Pair]) -> Vec<String> {
    const SERVERS: [Loader; 3] = [Loader::Vllm, Loader::Sglang, Loader::LlamaCpp];
    let (stacks, others): (Vec<&Pair>, Vec<&Pair>) = pairs.iter().partition(|pair| is_of_stack(&pair.name));
    let refusing = |pairs: &[&Pair]| {
        let refuses = |loader: &&Loader| {
            let takes =
                |pair: &&Pair| base.takes(**loader, &pair.name) && !base.is_single_elsewhere(&pair.name);
            !pairs.iter().all(takes)
        };
        SERVERS.iter().filter(refuses).map(|loader| loader.name()).collect::<Vec<_>>()
    };
    let note = |what: &str, programs: Vec<&str>| {
        (!programs.is_empty()).then(|| {
            let programs = programs.join(", ");
            format!("{what}, which {programs} refuse: `--for` one of them makes an adapter for it")
        })
    };
    let stacks = note("experts are adapted in stacks, as PEFT has them", refusing(&stacks));
    let towers = note("layers of a tower or projector are adapted", refusing(&others));
    stacks.into_iter().chain(towers).collect()
}

/// What the modules are that a program does not take.
fn what(left: &[Pair]) -> &'static str {
    let stacks = left.iter().filter(|pair| is_of_stack(&pair.name)).count();
    match stacks {
        0 => "layers of a tower or projector",
        all if all == left.len() => "experts, which PEFT has in stacks",
        _ => "experts, which PEFT has in stacks, and layers of a tower or projector",
    }
}
