//! Which weights of the base an adapter changes, and which rows of which product go where.

use std::collections::{BTreeMap, BTreeSet};

use crate::checkpoint::Checkpoint;
use crate::checkpoint::catalogue::Tensor;
use crate::checkpoint::module::Module;
use crate::commands::convert::lora_update::{Addend, Addends};
use crate::lora::names::{Place, wrapped_by};
use crate::lora::read::PeftAdapter;
use crate::lora::read::classify::{ExtraKind, PeftModule};
use crate::quant::packing::row_concat::RowStride;
use crate::{Error, Result};

/// What an adapter changes.
#[derive(Debug, Default)]
pub(crate) struct Matched {
    /// Modules of the base, each expert of a stack by itself.
    pub changed: BTreeSet<String>,
    /// What is added to each weight that is written.
    pub addends: Addends,
}

/// The modules that the adapter changes, each of them one of the base.
///
/// # Errors
/// Modules that the base does not have, or whose shape is another one.
pub(crate) fn changed(base: &Checkpoint, adapter: &PeftAdapter) -> Result<Matched> {
    let (mut matched, mut missing) = (Matched::default(), Vec::new());
    for module in adapter.modules() {
        let known = match base.module(module.name()) {
            Some(weight) => {
                fits(module, weight, adapter)?;
                matched.whole(module, weight);
                true
            }
            None => matched.stack(base, module, adapter)?,
        };
        if !known {
            missing.push(module.name());
        }
    }
    if missing.is_empty() {
        return Ok(matched);
    }
    let some = missing.iter().take(3).map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ");
    let more = if missing.len() > 3 { format!(" and {} more", missing.len() - 3) } else { String::new() };
    let what = format!("the base does not have {} of the adapter's modules: {some}{more}", missing.len());
    Err(Error::input(what).path(adapter.root()).hint(
        "the adapter belongs to another base, or its names have another prefix: merging would have no effect on these modules",
    ))
}

impl Matched {
    /// A module that is one weight.
    fn whole(&mut self, module: &PeftModule, weight: &Module) {
        self.changed.insert(module.name().to_owned());
        self.within(module, 0, module.name(), weight);
    }

    /// A module that holds the factors of all experts of a stack, or of a matrix that is a parameter. Whether the base
    /// has it.
    fn stack(&mut self, base: &Checkpoint, module: &PeftModule, adapter: &PeftAdapter) -> Result<bool> {
        for (path, kind) in wrapped_by(module.name()) {
            let parameter = format!("{path}.{kind}");
            if let Some(weight) = base.module(&parameter) {
                fits(module, weight, adapter)?;
                self.within(module, 0, &parameter, weight);
                self.changed.insert(parameter);
                return Ok(true);
            }
            if self.experts(base, module, (path, kind), adapter)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The experts of one stack. Whether the base has them.
    fn experts(
        &mut self,
        base: &Checkpoint,
        module: &PeftModule,
        (path, kind): (&str, &str),
        adapter: &PeftAdapter,
    ) -> Result<bool> {
        for expert in 0..module.experts() {
            let name = format!("{path}.{kind}.{expert}");
            let known = match base.module(&name) {
                Some(weight) => {
                    fits(module, weight, adapter)?;
                    self.within(module, expert, &name, weight);
                    self.changed.insert(name);
                    true
                }
                None => self.projections(base, module, (path, kind, expert), adapter)?,
            };
            if !known {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What is added where `weight`, called `name`, is written: by itself, in the larger one that it is a slice of, or
    /// as what the base stores singly of it.
    fn within(&mut self, module: &PeftModule, expert: usize, name: &str, weight: &Module) {
        let mut add = |written: &str, rows, from, turned| {
            let addend = Addend { module: module.name().to_owned(), expert, rows, from, turned };
            self.addends.entry(written.to_owned()).or_default().push(addend);
        };
        if weight.singles().is_empty() {
            add(name, 0..weight.shape()[0], RowStride::ALL, false);
        }
        for single in weight.singles() {
            // A part of a stack of its own: gate and up may lie apart.
            match single.module.stack().zip(single.module.rows_in_stack()) {
                Some(((stack, _), rows)) => add(stack.name(), rows, single.rows, single.turned),
                None => add(single.module.name(), 0..single.module.shape()[0], single.rows, single.turned),
            }
        }
        if let (Some((stack, _)), Some(rows)) = (weight.stack(), weight.rows_in_stack()) {
            add(stack.name(), rows, RowStride::ALL, weight.is_turned_in_stack());
        }
    }

    /// One expert of a model whose modules are single projections: gate and up are the halves of what the adapter
    /// fuses.
    fn projections(
        &mut self,
        base: &Checkpoint,
        module: &PeftModule,
        (path, kind, expert): (&str, &str, usize),
        adapter: &PeftAdapter,
    ) -> Result<bool> {
        let experts = base.scheme().experts();
        let parts: &[usize] = match kind {
            "down_proj" => &[2],
            "gate_up_proj" => &[0, 1],
            _ => return Ok(false),
        };
        let [out, inner] = module.shape();
        let rows = out / parts.len();
        for (half, projection) in parts.iter().enumerate() {
            let name = experts.single(path, expert, *projection);
            let Some(weight) = base.module(&name) else { return Ok(false) };
            if weight.shape() != [rows, inner] || rows * parts.len() != out {
                return Err(misfit(module, [rows * parts.len(), weight.shape()[1]], adapter));
            }
            self.changed.insert(name.clone());
            let from = RowStride { first: half * rows, step: 1 };
            let addend =
                Addend { module: module.name().to_owned(), expert, rows: 0..rows, from, turned: false };
            self.addends.entry(name).or_default().push(addend);
        }
        Ok(true)
    }
}

fn fits(module: &PeftModule, weight: &Module, adapter: &PeftAdapter) -> Result<()> {
    let [rows, columns] = weight.shape();
    let asked = if module.place() == Place::Embedding { [columns, rows] } else { [rows, columns] };
    if module.shape() == asked { Ok(()) } else { Err(misfit(module, asked, adapter)) }
}

fn misfit(module: &PeftModule, asked: [usize; 2], adapter: &PeftAdapter) -> Error {
    let what = format!(
        "the adapter's factors give a change of shape {:?}, but the base's weight needs {asked:?}",
        module.shape()
    );
    Error::input(what)
        .tensor(module.name())
        .path(adapter.root())
        .hint("the adapter belongs to another base, which its config names")
}

/// The head, where it is the embedding and the adapter changes one of them alone.
pub(crate) fn untie(
    base: &Checkpoint,
    changed: &BTreeSet<String>,
    replaced: &BTreeMap<String, Tensor>,
) -> Option<String> {
    let embedding = base.input_embedding()?.name();
    // The base finds a head that is not stored under the name of its embedding.
    let is_tied = |name: &str| base.module(name).is_some_and(|module| module.name() == embedding);
    let head = changed.iter().find(|name| *name != embedding && is_tied(name));
    let other = || {
        let whole = |module: &str| replaced.contains_key(&format!("{module}.weight"));
        let own = base.tree().head();
        let touched = changed.contains(embedding) || whole(embedding) || whole(own);
        (touched && is_tied(own)).then(|| own.to_owned())
    };
    head.cloned().or_else(other)
}

/// Whether the config must no longer tie the head to the embedding, where the files hold a head of its own: the adapter
/// changes one of the two, and a loader that ties them would drop the stored head.
pub(crate) fn unties(
    base: &Checkpoint,
    changed: &BTreeSet<String>,
    replaced: &BTreeMap<String, Tensor>,
) -> bool {
    let Some(embedding) = base.input_embedding().map(Module::name) else { return false };
    let head = base.tree().head();
    let stored = base.module(head).is_some_and(|module| module.name() == head && head != embedding);
    let touches =
        |module: &str| changed.contains(module) || replaced.contains_key(&format!("{module}.weight"));
    base.config().tie_word_embeddings() && stored && (touches(head) || touches(embedding))
}

/// Parameters that the adapter holds whole, by the base's names.
///
/// # Errors
/// One that the base does not have, or has in another shape or quantized.
pub(crate) fn replaced(base: &Checkpoint, adapter: &PeftAdapter) -> Result<BTreeMap<String, Tensor>> {
    let whole = |kind: &ExtraKind| matches!(kind, ExtraKind::Norm | ExtraKind::Bias | ExtraKind::FullWeight);
    let mut replaced = BTreeMap::new();
    for extra in adapter.extras().iter().filter(|extra| whole(&extra.kind)) {
        let refuse = |what: String| Error::input(what).tensor(&extra.target).path(adapter.root());
        let stored = base.tensor(&extra.target);
        let quantized = base
            .module(extra.target.strip_suffix(".weight").unwrap_or_default())
            .is_some_and(|module| module.is_quantized());
        match stored {
            Some(stored) if stored.stored.shape == extra.tensor.stored.shape && !quantized => {
                replaced.insert(extra.target.clone(), extra.tensor.clone());
            }
            Some(stored) => {
                let what = format!(
                    "the adapter holds a whole parameter as {}, but the base has it as {}",
                    extra.tensor.stored.describe(),
                    stored.stored.describe()
                );
                return Err(refuse(what).hint(vocabulary_hint(&extra.tensor, stored)));
            }
            None if is_tied_head(base, &extra.target, &extra.tensor) => {
                replaced.insert(extra.target.clone(), extra.tensor.clone());
            }
            None => {
                let what = "the adapter holds a whole parameter that the base does not have".to_owned();
                return Err(
                    refuse(what).hint("`trephine sanitize` prunes such parameters and reports what is lost")
                );
            }
        }
    }
    Ok(replaced)
}

/// Whether a whole parameter is the head of a model whose files have none, since the embedding is its head.
fn is_tied_head(base: &Checkpoint, target: &str, tensor: &Tensor) -> bool {
    let head = target.strip_suffix(".weight").unwrap_or_default();
    let embedding = base.module(head).filter(|module| module.name() != head);
    embedding.is_some_and(|embedding| tensor.stored.shape == embedding.shape())
}

/// What helps where a parameter has another shape: a vocabulary that was enlarged for the training is the usual case.
fn vocabulary_hint(whole: &Tensor, stored: &Tensor) -> String {
    match (whole.stored.shape.as_slice(), stored.stored.shape.as_slice()) {
        ([tokens, dim], [known, same]) if dim == same && tokens != known => format!(
            "the adapter was trained with {tokens} tokens and the base has {known}: resize the base's embeddings to \
             {tokens} with transformers, save it, and give that folder"
        ),
        _ => "`trephine sanitize` prunes such parameters and reports what is lost".to_owned(),
    }
}
