//! The modules of a checkpoint, found among its tensors and arranged as the model has them: joined, split and turned.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::checkpoint::Shelf;
use crate::checkpoint::catalogue::Catalogue;
use crate::checkpoint::error_policy::Faults;
use crate::checkpoint::module::{Module, Single};
use crate::quant::expert::layout::expert_of;
use crate::quant::packing::row_concat::{RowConcat, RowStride};
use crate::quant::packing::row_part::RowPart;
use crate::quant::packing::transposed::Transposed;
use crate::quant::registry::Scheme;
use crate::quant::weight::{Dequantize, FoundWeight};
use crate::shared::Name;
use crate::storage::Storage;
use crate::{Error, Result};

/// Finds the modules among a checkpoint's tensors.
pub(crate) fn catalogue(
    scheme: &Scheme,
    tensors: &Catalogue,
    files: &[Box<dyn Storage>],
    faults: &mut Faults,
) -> Result<BTreeMap<Name, Module>> {
    let mut modules = BTreeMap::new();
    let shelf = Shelf { tensors, files };
    for lead in tensors.iter() {
        let path = files[lead.file.0].location();
        let weights = scheme.weights(&lead.stored, &shelf).map_err(|e| e.path(path));
        for found in faults.take(weights)?.into_iter().flatten() {
            let module = assemble(found, tensors).map_err(|e| e.path(path));
            let Some(module) = faults.take(module)? else { continue };
            faults.take(insert(&mut modules, module).map_err(|e| e.path(path).tensor(lead.name())))?;
        }
    }
    join_experts(scheme, &mut modules)?;
    Ok(modules)
}

/// Turns the single experts of a model whose adapters hold stacks into modules of stacks: that is how they pair, and
/// how an adapter names them.
fn join_experts(scheme: &Scheme, modules: &mut BTreeMap<Name, Module>) -> Result<()> {
    let experts = scheme.experts();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for (path, expert, _) in modules.keys().filter_map(|name| expert_of(name)) {
        let count = counts.entry(path.to_owned()).or_default();
        *count = (*count).max(expert + 1);
    }
    let place_of = |name: &str| experts.place_in_stack(name, |path| counts.get(path).copied().unwrap_or(0));
    let mut halves: BTreeMap<Name, [Option<Name>; 2]> = BTreeMap::new();
    for name in modules.keys() {
        match place_of(name) {
            None => {}
            Some((place, half)) => {
                halves.entry(place.into()).or_default()[half.unwrap_or(0)] = Some(name.clone());
            }
        }
    }
    for (place, names) in halves {
        let whole = place_of(names[0].as_deref().unwrap_or_default()).is_some_and(|(_, half)| half.is_none());
        let joined = match names {
            [Some(name), None] if whole => modules.remove(&name).map(|module| Module {
                name: place.clone(),
                singles: [Single { module: module.clone(), rows: RowStride::ALL, turned: false }].into(),
                ..module
            }),
            [Some(gate), Some(up)] => match (modules.remove(&gate), modules.remove(&up)) {
                (Some(gate), Some(up)) => {
                    let [first, second] = [0, 1].map(|half| experts.rows_of(half, gate.shape()[0]));
                    let weight = experts.join([Arc::clone(&gate.weight), Arc::clone(&up.weight)])?;
                    Some(joined(place.clone(), weight, [(gate, first), (up, second)]))
                }
                _ => None,
            },
            // A half without the other stays unchanged.
            _ => None,
        };
        if let Some(module) = joined
            && let Some(first) = modules.insert(place, module)
        {
            let what = format!("'{}' is stored both in a stack and singly", first.tensors[0].name());
            return Err(Error::input(what)
                .tensor(first.name)
                .hint("the files mix two exports of the model: keep one"));
        }
    }
    Ok(())
}

/// Turns the modules whose weights lie as `[in, out]`, where they are stored in a way that can be read by columns.
pub(crate) fn turn(modules: &mut BTreeMap<Name, Module>, is_turned: impl Fn(&str) -> bool) {
    for module in modules.values_mut().filter(|module| is_turned(&module.name)) {
        let Some(turned) = Transposed::of(Arc::clone(&module.weight)) else { continue };
        module.singles = [Single { module: module.clone(), rows: RowStride::ALL, turned: true }].into();
        module.weight = Arc::new(turned);
    }
}

/// Takes the matrices apart that hold the rows of several layers of the model, as `Wqkv` those of `q_proj`, `k_proj`
/// and `v_proj`: adapters name the layers. `layers` gives their names; where the rows do not divide, nothing is done.
pub(crate) fn split(
    modules: &mut BTreeMap<Name, Module>,
    layers: impl Fn(&str) -> Option<Vec<String>>,
) -> Result<()> {
    let wholes: Vec<(Name, Vec<String>)> =
        modules.keys().filter_map(|name| Some((name.clone(), layers(name)?))).collect();
    for (whole, layers) in wholes {
        let parts =
            modules.get(&whole).and_then(|whole| RowPart::split(&whole.weight, &whole.name, layers.len()));
        let Some((parts, module)) = parts.and_then(|parts| Some((parts, modules.remove(&whole)?))) else {
            continue;
        };
        for (name, part) in layers.into_iter().zip(parts) {
            insert(modules, Module { name: name.into(), weight: Arc::new(part), ..module.clone() })?;
        }
    }
    Ok(())
}

/// Joins the layers of a file that are one in the model, as the `gate_proj` and `up_proj` of a shared expert. `layer`
/// gives the name of that one for the first and the second of them.
pub(crate) fn join(
    modules: &mut BTreeMap<Name, Module>,
    layer: impl Fn(&str) -> Option<(String, usize)>,
) -> Result<()> {
    let mut halves: BTreeMap<String, [Option<Name>; 2]> = BTreeMap::new();
    for name in modules.keys() {
        if let Some((layer, half)) = layer(name) {
            halves.entry(layer).or_default()[half.min(1)] = Some(name.clone());
        }
    }
    for (name, halves) in halves {
        let [Some(first), Some(second)] = halves else { continue };
        let (Some(first), Some(second)) = (modules.remove(&first), modules.remove(&second)) else { continue };
        let weight = RowConcat::new([Arc::clone(&first.weight), Arc::clone(&second.weight)], false)?;
        let below = RowStride { first: first.shape()[0], step: 1 };
        let halves = [(first, RowStride::ALL), (second, below)];
        insert(modules, joined(name.into(), Arc::new(weight), halves))?;
    }
    Ok(())
}

/// A module whose weight is made of two modules of the files, each with its rows in it.
fn joined(name: Name, weight: Arc<dyn Dequantize>, halves: [(Module, RowStride); 2]) -> Module {
    let [(first, _), (second, _)] = &halves;
    Module {
        name,
        weight,
        tensors: first.tensors.iter().chain(second.tensors.iter()).cloned().collect(),
        quantized: first.quantized || second.quantized,
        singles: halves.map(|(module, rows)| Single { module, rows, turned: false }).into(),
    }
}

fn insert(modules: &mut BTreeMap<Name, Module>, module: Module) -> Result<()> {
    let (name, lead) = (module.name.clone(), module.tensors[0].name().to_owned());
    let Some(first) = modules.insert(name, module) else { return Ok(()) };
    let what = format!("this tensor and '{}' are weights of the same module", first.tensors[0].name());
    Err(Error::input(what).tensor(lead).hint("the files mix two exports of the model: keep one"))
}

fn assemble(found: FoundWeight, tensors: &Catalogue) -> Result<Module> {
    let FoundWeight { module: name, weight, quantized } = found;
    let stored = weight.tensors().iter().map(|stored| tensors.get(&stored.name).cloned());
    let tensors = stored.collect::<Option<_>>();
    let tensors = tensors.ok_or_else(|| Error::input("a tensor of this module is missing").tensor(&name))?;
    Ok(Module { name: name.into(), weight, tensors, quantized, singles: [].into() })
}
