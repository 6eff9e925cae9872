//! Adapters as updates of the model's weights.

use std::collections::BTreeMap;

use crate::checkpoint::Checkpoint;
use crate::lora::read::{ExtraKind, PeftAdapter, PeftModule};
use crate::lora::tree::BaseModules;
use crate::model::{LowRank, Updates};
use crate::{Error, Result};

/// The variants of a model: by itself, then with each adapter.
pub(super) struct Adapters {
    adapters: Vec<PeftAdapter>,
    /// For each adapter, its module names by the model's names for them.
    modules: Vec<BTreeMap<String, String>>,
}

impl Adapters {
    pub fn open(specs: &[String], checkpoint: &Checkpoint) -> Result<Adapters> {
        let tree = BaseModules::of(checkpoint);
        let open = |spec: &String| Ok(PeftAdapter::open(spec)?.named_for(&tree)?.0);
        let adapters = specs.iter().map(open).collect::<Result<Vec<_>>>()?;
        adapters.iter().try_for_each(refuse_more_than_lora)?;
        let modules = adapters.iter().map(|adapter| paired(adapter, checkpoint)).collect::<Result<_>>()?;
        Ok(Adapters { adapters, modules })
    }

    /// Number of tensors in all adapters.
    pub fn tensors(&self) -> usize {
        self.adapters.iter().map(|adapter| adapter.tensors().len()).sum()
    }

    /// Bytes of one module's factors in all adapters, at most.
    pub fn bytes(&self) -> u64 {
        let size = |module: &PeftModule| (4 * module.rank() * (module.shape()[0] + module.shape()[1])) as u64;
        // Factors are widened after reading, which briefly takes twice the size.
        self.adapters.iter().map(|adapter| 2 * adapter.modules().map(size).max().unwrap_or(0)).sum()
    }
}

impl Updates for Adapters {
    fn variants(&self) -> usize {
        self.adapters.len() + 1
    }

    fn update(&self, variant: usize, module: &str) -> Result<Option<LowRank>> {
        let Some(index) = variant.checked_sub(1) else { return Ok(None) };
        let (adapter, names) = (&self.adapters[index], &self.modules[index]);
        let Some(found) = names.get(module).and_then(|name| adapter.module(name)) else { return Ok(None) };
        let factors = adapter.factors(found)?;
        let (rank, scale) = (found.rank(), found.scale() as f32);
        Ok(Some(LowRank { a: factors.a, b: factors.b, rank, scale }))
    }
}

/// Refuses an adapter that changes weights by other means than `B·A`.
fn refuse_more_than_lora(adapter: &PeftAdapter) -> Result<()> {
    let hint = "merge it into the model (`trephine merge`) and evaluate that checkpoint";
    let refuse = |what: String| Error::input(what).path(adapter.root()).hint(hint);
    if adapter.config().is("use_dora") {
        return Err(refuse("the adapter uses DoRA, whose weights are not a base plus B·A".into()));
    }
    if let Some(init) = adapter.config().init_that_changes_the_base() {
        return Err(refuse(format!(
            "the adapter's init_lora_weights '{init}' changes the base's own weights"
        )));
    }
    if let Some(stack) = adapter.modules().find(|module| module.experts() > 1) {
        return Err(refuse("the adapter changes a stack of fused experts".into()).tensor(stack.name()));
    }
    if let Some(extra) = adapter.extras().iter().find(|extra| extra.kind != ExtraKind::BaseCopy) {
        return Err(refuse(format!("the adapter contains more than factors ({})", extra.kind.words()))
            .tensor(extra.tensor.name()));
    }
    match adapter.problems().first() {
        None => Ok(()),
        Some(problem) => Err(Error::input(format!("the adapter is damaged: {problem}"))
            .path(adapter.root())
            .hint("`trephine sanitize` says more and may repair it")),
    }
}

/// The model's name for each of an adapter's modules.
fn paired(adapter: &PeftAdapter, checkpoint: &Checkpoint) -> Result<BTreeMap<String, String>> {
    let mut names = BTreeMap::new();
    for module in adapter.modules() {
        let name = module.name();
        let found =
            if checkpoint.module(name).is_some() { Some(name.to_owned()) } else { by_end(name, checkpoint) };
        let Some(found) = found else {
            return Err(Error::input("the adapter changes a module that the model does not have")
                .tensor(name)
                .path(adapter.root())
                .hint("give the model that the adapter was made for"));
        };
        names.insert(found, name.to_owned());
    }
    Ok(names)
}

/// The only module whose name ends like `name` from `layers.` on: a vision-language model nests its layers deeper.
fn by_end(name: &str, checkpoint: &Checkpoint) -> Option<String> {
    let end = &name[name.find("layers.")?..];
    let ends = |module: &&str| module.strip_suffix(end).is_some_and(|before| before.ends_with('.'));
    let mut found = checkpoint.modules().map(crate::checkpoint::Module::name).filter(ends);
    let first = found.next()?.to_owned();
    found.next().is_none().then_some(first)
}
