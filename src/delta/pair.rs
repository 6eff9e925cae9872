//! Pairing: which tensor of the tuned checkpoint belongs to which tensor of the base, and what is left over.

use std::collections::{BTreeMap, BTreeSet};

use crate::checkpoint::Checkpoint;
use crate::delta::prefix_map::Renaming;
use crate::delta::record::{LeftOut, Reason, Side};
use crate::delta::remarks;
use crate::delta::select::Selection;
use crate::lora::names::{Place, experts_of, fused_siblings, kind_of, place_of};
use crate::lora::tree::limits::is_refused;
use crate::shared::{Name, Shape};
use crate::{Error, Result};

/// A module that both checkpoints have and that was selected.
#[derive(Clone, Debug)]
pub struct Pair {
    /// Its name in the base, which is its name in the adapter.
    pub name: String,
    /// Its name in the tuned checkpoint.
    pub tuned: String,
    /// Its place in the model, as LoRA sees it.
    pub place: Place,
    /// `[out, in]` in the base.
    pub shape: [usize; 2],
    /// Rows that both have; fewer than `shape[0]` only where a vocabulary was trimmed.
    pub rows: usize,
}

/// A tensor or module that the adapter will not contain, with its names in both checkpoints for a comparison.
#[derive(Clone, Debug)]
pub struct Leftover {
    /// Its name: in the base if the base has it, otherwise in the tuned checkpoint.
    pub name: Name,
    /// Why it is left out.
    pub reason: Reason,
    /// Its name in the base.
    pub base: Option<Name>,
    /// Its name in the tuned checkpoint.
    pub tuned: Option<Name>,
    /// Its shape.
    pub shape: Shape,
    /// The first row that is left over.
    pub from_row: usize,
}

impl Leftover {
    /// Its record before the comparison of values.
    pub fn blank(&self) -> LeftOut {
        LeftOut {
            name: self.name.clone(),
            reason: self.reason,
            only_in: self.only_in(),
            shape: self.shape.clone(),
            elements: self.shape.iter().map(|&n| n as u64).product(),
            relative_change: None,
            change_norm: None,
        }
    }

    /// The checkpoint that has it, if only one does.
    pub fn only_in(&self) -> Option<Side> {
        match (&self.base, &self.tuned) {
            (Some(_), None) => Some(Side::Base),
            (None, Some(_)) => Some(Side::Tuned),
            _ => None,
        }
    }
}

/// The result of pairing.
#[derive(Clone, Debug, Default)]
pub struct Pairing {
    /// Modules to extract, in the order of the base's names.
    pub pairs: Vec<Pair>,
    /// Modules that get zero factors because servers fuse them with extracted ones: name and `[out, in]`.
    pub zeros: Vec<(String, [usize; 2])>,
    /// Tensors and modules that the adapter will not contain.
    pub leftovers: Vec<Leftover>,
    /// Notes for the user.
    pub notes: Vec<String>,
}

/// Pairs `base` with `tuned`.
///
/// # Errors
/// Checkpoints of different architectures, or that share no selected module; vocabularies that differ,
/// unless `trim_vocab`.
pub fn pair(
    base: &Checkpoint,
    tuned: &Checkpoint,
    selection: &Selection,
    trim_vocab: bool,
) -> Result<Pairing> {
    same_architecture(base, tuned)?;
    let mut pairing = Pairing::default();
    let names = Renaming::detect(base, tuned);
    if let Some((b, t)) = names.modules.iter().next() {
        pairing.notes.push(format!(
            "base and tuned are stored in different layouts: names are paired by the model's modules, for example '{b}' with '{t}'"
        ));
    }
    if names.base != names.tuned {
        let (b, t) = (&names.base, &names.tuned);
        pairing
            .notes
            .push(format!("names are paired by prefix: '{b}' in the base is '{t}' in the tuned checkpoint"));
    }
    pairing.notes.extend(remarks::naming(base));
    vocabulary(base, tuned, &names, trim_vocab, &mut pairing.notes)?;
    let (mut taken, modules) = (BTreeSet::new(), base_names(base, selection));
    pairing
        .notes
        .extend(selection.idle(&modules).iter().map(|idle| format!("{idle} matches no module of the base")));
    for name in &modules {
        pair_module(base, tuned, &names, selection, name, &mut taken, &mut pairing);
    }
    others(base, tuned, &names, &mut taken, &mut pairing);
    let paired: BTreeSet<&str> = pairing.pairs.iter().map(|pair| pair.name.as_str()).collect();
    let unselected = pairing.leftovers.iter().filter(|leftover| leftover.reason == Reason::NotSelected);
    pairing.notes.extend(remarks::of_peft(base, &paired, unselected.map(|leftover| &*leftover.name)));
    pairing.zeros = complete_fused(base, &pairing.pairs);
    pairing.leftovers.sort_by(|a, b| a.name.cmp(&b.name));
    belong_together(base, tuned, selection, &pairing)?;
    Ok(pairing)
}

/// The base's modules, and the head if it is selected but tied to the embedding.
fn base_names(base: &Checkpoint, selection: &Selection) -> BTreeSet<Name> {
    let mut names: BTreeSet<Name> = base.modules().map(|module| module.shared_name().clone()).collect();
    let head = base.tree().head();
    if selection.takes(head) && base.module(head).is_some() {
        names.insert(head.into());
    }
    names
}

fn pair_module(
    base: &Checkpoint,
    tuned: &Checkpoint,
    names: &Renaming,
    selection: &Selection,
    name: &Name,
    taken: &mut BTreeSet<Name>,
    pairing: &mut Pairing,
) {
    let Some(module) = base.module(name) else { return };
    let shape = module.shape();
    let place = place_of(name);
    let partner = names.candidates(name).into_iter().find_map(|candidate| {
        let module = tuned.module(&candidate)?;
        // A head that is tied to the embedding is found under another name than its own.
        let own = module.name() == candidate;
        Some((if own { module.shared_name().clone() } else { candidate.into() }, module.shape()))
    });
    let mut leave = |reason, tuned: Option<Name>, from_row| {
        let shape = [shape[0] - from_row, shape[1]].into();
        let (name, base) = (name.clone(), Some(name.clone()));
        pairing.leftovers.push(Leftover { name, reason, base, tuned, shape, from_row });
    };
    let Some((tuned_name, tuned_shape)) = partner else { return leave(alone(base, name), None, 0) };
    taken.insert(tuned_name.clone());
    if shape.contains(&0) {
        return leave(Reason::NotLinear, Some(tuned_name), 0);
    }
    let trimmed = place.is_vocabulary() && tuned_shape[1] == shape[1];
    if tuned_shape != shape && !trimmed {
        return leave(Reason::ShapeDiffers, Some(tuned_name), 0);
    }
    if base.tree().reordered_layers_of(name).is_some() {
        return leave(Reason::Reordered, Some(tuned_name), 0);
    }
    if !selection.takes(name) || is_refused(base.config().model_type(), name) && !selection.asks_for(name) {
        return leave(Reason::NotSelected, Some(tuned_name), 0);
    }
    let rows = shape[0].min(tuned_shape[0]);
    if rows < shape[0] {
        leave(Reason::TrimmedVocabulary, None, rows);
    }
    if rows < tuned_shape[0] {
        let (reason, shape) = (Reason::TrimmedVocabulary, [tuned_shape[0] - rows, shape[1]].into());
        let (name, tuned) = (tuned_name.clone(), Some(tuned_name.clone()));
        pairing.leftovers.push(Leftover { name, reason, base: None, tuned, shape, from_row: rows });
    }
    pairing.pairs.push(Pair { name: name.to_string(), tuned: tuned_name.into(), place, shape, rows });
}

/// Adds the tensors that are not modules of the base: norms, biases, stacks of experts, and those that only the tuned
/// checkpoint has.
fn others(
    base: &Checkpoint,
    tuned: &Checkpoint,
    names: &Renaming,
    taken: &mut BTreeSet<Name>,
    pairing: &mut Pairing,
) {
    for tensor in base.others() {
        let name = &tensor.stored.name;
        let partner = names.candidates(name).into_iter().find_map(|n| tuned.tensor(&n));
        let reason = match partner {
            None => Reason::NoPartner,
            Some(partner) if partner.stored.shape != tensor.stored.shape => Reason::ShapeDiffers,
            Some(_) => Reason::NotLinear,
        };
        let partner = partner.map(|p| p.stored.name.clone());
        taken.extend(partner.clone());
        let (name, base, shape) = (name.clone(), Some(name.clone()), tensor.stored.shape.clone());
        pairing.leftovers.push(Leftover { name, reason, base, tuned: partner, shape, from_row: 0 });
    }
    let lone = |name: &Name, shape: Shape| Leftover {
        name: name.clone(),
        reason: alone(tuned, name),
        base: None,
        tuned: Some(name.clone()),
        shape,
        from_row: 0,
    };
    for module in tuned.modules().filter(|module| !taken.contains(module.name())) {
        let name = module.shared_name();
        let tied_copy = place_of(name) == Place::Head && tuned.config().tie_word_embeddings();
        if !tied_copy {
            pairing.leftovers.push(lone(name, module.shape().into()));
        }
    }
    for tensor in tuned.others().filter(|tensor| !taken.contains(&tensor.stored.name)) {
        pairing.leftovers.push(lone(&tensor.stored.name, tensor.stored.shape.clone()));
    }
}

/// Why the module `name` of `checkpoint` has no partner: of a layer that published files have within a matrix, with its
/// rows in another order, one side may have the layer and the other that matrix.
fn alone(checkpoint: &Checkpoint, name: &str) -> Reason {
    let tree = checkpoint.tree();
    let reordered =
        tree.reordered_layers_of(name).is_some() || tree.is_reordered_layer(&tree.module_of(name));
    if reordered { Reason::Reordered } else { Reason::NoPartner }
}

/// The modules that need zero factors. Servers fuse `q`, `k`, `v`, and `gate`, `up`, and all experts of a layer, so
/// where one is extracted, the others get zeros.
fn complete_fused(base: &Checkpoint, pairs: &[Pair]) -> Vec<(String, [usize; 2])> {
    let extracted: BTreeSet<&str> = pairs.iter().map(|pair| pair.name.as_str()).collect();
    let siblings = pairs.iter().flat_map(|pair| fused_siblings(&pair.name));
    let siblings =
        siblings.filter_map(|sibling| base.module(&sibling).map(|module| (sibling, module.shape())));
    let layers: BTreeSet<&str> = pairs.iter().filter_map(|pair| experts_of(&pair.name)).collect();
    let experts = base.modules().filter(|m| experts_of(m.name()).is_some_and(|path| layers.contains(path)));
    let experts = experts.map(|module| (module.name().to_owned(), module.shape()));
    let mut missing: BTreeMap<String, [usize; 2]> = siblings.chain(experts).collect();
    missing.retain(|name, _| !extracted.contains(name.as_str()));
    missing.into_iter().collect()
}

/// Refuses different architectures by `model_type`, not by `architectures`: a head for another task does not change the
/// layers. A text model inside a multimodal one counts by its own type.
fn same_architecture(base: &Checkpoint, tuned: &Checkpoint) -> Result<()> {
    let types = |checkpoint: &Checkpoint| -> Vec<String> {
        let config = checkpoint.config();
        let known = [config.model_type(), config.text_model_type()];
        known.into_iter().flatten().map(|t| t.trim_end_matches("_text").to_owned()).collect()
    };
    let (b, t) = (types(base), types(tuned));
    if b.is_empty() || t.is_empty() || b.iter().any(|one| t.contains(one)) {
        return Ok(());
    }
    let what =
        format!("base and tuned do not belong together: their model_type is '{}' and '{}'", b[0], t[0]);
    Err(Error::input(what).path(tuned.root()).hint("give the model that the tuned one was trained from"))
}

/// Reports vocabularies that differ, before any work is done.
fn vocabulary(
    base: &Checkpoint,
    tuned: &Checkpoint,
    names: &Renaming,
    trim: bool,
    notes: &mut Vec<String>,
) -> Result<()> {
    for module in base.modules().filter(|module| place_of(module.name()).is_vocabulary()) {
        let name = module.name();
        let partner = names.candidates(name).into_iter().find_map(|n| tuned.module(&n));
        let Some(partner) = partner else { continue };
        let (ours, theirs) = (module.shape(), partner.shape());
        if ours[0] == theirs[0] || ours[1] != theirs[1] {
            continue;
        }
        let what = format!(
            "the vocabularies differ: {} rows in the base, {} in the tuned checkpoint",
            ours[0], theirs[0]
        );
        if !trim {
            let hint =
                "--trim-vocab continues with the common rows; the others are reported as not represented";
            return Err(Error::decide(what).tensor(name).path(tuned.root()).hint(hint));
        }
        notes.push(format!("{what}: continuing with the common rows of {name}"));
    }
    Ok(())
}

/// Refuses checkpoints of which most selected modules do not pair: they were given by mistake.
fn belong_together(
    base: &Checkpoint,
    tuned: &Checkpoint,
    selection: &Selection,
    pairing: &Pairing,
) -> Result<()> {
    let selected = |leftover: &&Leftover| {
        leftover.base.as_deref().is_some_and(|name| base.module(name).is_some() && selection.takes(name))
    };
    let lost: Vec<&Leftover> = pairing.leftovers.iter().filter(selected).collect();
    let of_shape = lost.iter().find(|l| l.reason == Reason::ShapeDiffers);
    if pairing.pairs.is_empty() && lost.is_empty() {
        return Err(Error::decide("no module of the base is selected")
            .path(base.root())
            .hint(hint_of_names(base)));
    }
    if pairing.pairs.len() >= lost.len() {
        return Ok(());
    }
    let what = format!(
        "base and tuned do not belong together: {} of {} selected modules have no partner of the same shape",
        lost.len(),
        lost.len() + pairing.pairs.len()
    );
    let name = of_shape.or(lost.first()).map(|l| l.name.to_string()).unwrap_or_default();
    Err(Error::input(what)
        .tensor(name)
        .path(tuned.root())
        .hint("give the model that the tuned one was trained from"))
}

fn hint_of_names(base: &Checkpoint) -> String {
    let kinds: BTreeSet<&str> = base.modules().map(|module| kind_of(module.name())).collect();
    let kinds: Vec<&str> = kinds.into_iter().take(12).collect();
    format!("the base has modules of these kinds: {}", kinds.join(", "))
}
