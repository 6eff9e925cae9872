//! What a person should know of the names that an adapter gets, and of what PEFT does with its modules.

use std::collections::BTreeSet;

use crate::checkpoint::module_tree::table::expert_conversion;
use crate::checkpoint::module_tree::{ExpertConversion, Origin};
use crate::checkpoint::{Checkpoint, Module};
use crate::lora::names::expert_of;
use crate::lora::tree::limits::{is_of_shared_block, is_refused};

/// What to say of the names that the adapter gets, where they are not those of the files or may have to be others.
pub(super) fn naming(base: &Checkpoint) -> Option<String> {
    let (tree, raw) = (base.tree(), base.config().raw()?);
    let renamed = |module: &Module| tree.module_of(module.name()) != module.name();
    match tree.origin() {
        Origin::Table(class) if base.modules().any(renamed) => Some(format!(
            "modules are named as in transformers' {class}, where the files name them otherwise"
        )),
        Origin::Unknown if ["text_config", "vision_config"].iter().any(|key| raw.get(key).is_some()) => Some(
            "this model is not in the table of module names: modules are named as in the files".to_owned(),
        ),
        _ => None,
    }
}

/// What to say of modules that PEFT does not take as they are: `paired` are in the adapter, `unselected` are not.
pub(super) fn of_peft<'a>(
    base: &Checkpoint,
    paired: &BTreeSet<&str>,
    unselected: impl Iterator<Item = &'a str>,
) -> Vec<String> {
    let refused = left_out(base, unselected);
    let notes = [
        refused_class(base),
        twice(base, paired),
        refused,
        experts_without_effect(base, paired),
        shared(base, paired),
    ];
    notes.into_iter().flatten().collect()
}

/// What to say where PEFT takes no adapter at all.
fn refused_class(base: &Checkpoint) -> Option<String> {
    base.tree().is_refused_by_peft().then(|| {
        "PEFT does not wrap models of this class: the adapter is for `trephine merge` and for other programs".to_owned()
    })
}

/// What is left out since PEFT would refuse the whole adapter for it.
fn left_out<'a>(base: &Checkpoint, mut unselected: impl Iterator<Item = &'a str>) -> Option<String> {
    let kind = base.config().model_type();
    unselected.any(|name| is_refused(kind, name)).then(|| {
        let kind = kind.unwrap_or_default();
        format!(
            "PEFT refuses adapters with out_proj in models of type '{kind}': left out; --include out_proj takes it, for \
             other programs"
        )
    })
}

/// What to say of single experts that PEFT does not take.
fn experts_without_effect(base: &Checkpoint, paired: &BTreeSet<&str>) -> Option<String> {
    let kind = base
        .config()
        .model_type()
        .filter(|kind| expert_conversion(kind) == Some(ExpertConversion::Nothing))?;
    paired.iter().any(|name| expert_of(name).is_some()).then(|| {
        format!("PEFT does not take adapters of single experts in models of type '{kind}': they have no effect there")
    })
}

/// What to say of a block that several layers have.
fn shared(base: &Checkpoint, paired: &BTreeSet<&str>) -> Option<String> {
    let kind = Some(base.config().model_type().unwrap_or_default());
    let first = paired.iter().find(|name| is_of_shared_block(kind, name))?;
    Some(format!(
        "'{first}' and others are of a block that several layers share: PEFT applies them in the first of these layers \
         alone until the adapter is merged, so merge it, with `trephine merge` or PEFT's merge_and_unload"
    ))
}

/// What to say where both the embedding and a head that is the same weight are adapted.
fn twice(base: &Checkpoint, paired: &BTreeSet<&str>) -> Option<String> {
    let embedding = base.input_embedding()?.name();
    let head = paired.iter().find(|name| {
        **name != embedding && base.module(name).is_some_and(|module| module.name() == embedding)
    })?;
    paired.contains(embedding).then(|| {
        format!(
            "'{head}' and '{embedding}' are one weight in the base: PEFT adds both adapters to it, and the sum is not the \
             tuned weight; leave one of them out, with --exclude"
        )
    })
}
