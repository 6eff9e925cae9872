//! Measures what is lost with the tensors that are left out.

use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::catalogue::Tensor;
use crate::checkpoint::module::Module;
use crate::commands::sanitize::plan::SanitizePlan;
use crate::commands::sanitize::record::Pruned;
use crate::delta::operand::Operand;
use crate::delta::record::{Side, TensorRecord};
use crate::delta::tensor_digests::digests as tensor_digests;
use crate::factorize::truncate::product_norm2;
use crate::lora::read::classify::{Extra, ExtraKind, PeftModule};
use crate::lora::read::{Factors, PeftAdapter};

/// Measures everything that `plan` leaves out.
///
/// # Errors
/// A tensor that cannot be read.
pub(crate) fn measure(
    adapter: &PeftAdapter,
    base: Option<&Checkpoint>,
    plan: &SanitizePlan<'_>,
) -> Result<Vec<Pruned>> {
    let mut lost = Vec::new();
    for extra in &plan.pruned {
        let own = base.and_then(|base| Some((base, counterpart(base, extra)?)));
        lost.push(whole(
            adapter,
            &extra.tensor,
            Some(extra.kind),
            own.as_ref().map(|(base, own)| (*base, own)),
        )?);
    }
    for tensor in &plan.lone {
        lost.push(whole(adapter, tensor, None, None)?);
    }
    for module in &plan.dropped {
        lost.push(product(adapter, module)?);
    }
    lost.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(lost)
}

/// The digests of the base's own tensors that whole weights are compared with.
///
/// # Errors
/// A tensor that cannot be read.
pub(crate) fn digests(base: &Checkpoint, plan: &SanitizePlan<'_>) -> Result<Vec<TensorRecord>> {
    let mut records = Vec::new();
    for own in plan.pruned.iter().filter_map(|extra| counterpart(base, extra)) {
        records
            .extend(tensor_digests(Operand { side: Side::Base, checkpoint: base, module: &own }, &|_| ())?);
    }
    records.sort();
    records.dedup();
    Ok(records)
}

/// The base's counterpart of `extra`, if it has the same shape.
fn counterpart(base: &Checkpoint, extra: &Extra) -> Option<Module> {
    if matches!(extra.kind, ExtraKind::LoraBias | ExtraKind::Magnitude | ExtraKind::Unknown) {
        return None;
    }
    let shape = &extra.tensor.stored.shape;
    let module = extra.target.strip_suffix(".weight").and_then(|name| base.module(name));
    if let Some(module) = module.filter(|module| module.shape()[..] == shape[..]) {
        return Some(module.clone());
    }
    let tensor = base.tensor(&extra.target).filter(|tensor| tensor.stored.shape == *shape)?;
    Module::flattened(tensor)
}

/// The norm of one tensor, and of its difference from the base's own.
fn whole(
    adapter: &PeftAdapter,
    tensor: &Tensor,
    kind: Option<ExtraKind>,
    own: Option<(&Checkpoint, &Module)>,
) -> Result<Pruned> {
    let (mut norm2, mut change2, mut own2) = (0.0, 0.0, 0.0);
    let mut base_values = Vec::new();
    adapter.panels(tensor, |rows, values| {
        norm2 += values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
        if let Some((base, module)) = own {
            base_values.resize(values.len(), 0.0);
            module.panel(base, rows, &mut base_values)?;
            let pairs = values.iter().zip(&base_values).map(|(new, old)| (f64::from(*new), f64::from(*old)));
            for (new, old) in pairs {
                change2 += (new - old).powi(2);
                own2 += old.powi(2);
            }
        }
        Ok(())
    })?;
    let change: Option<f64> = own.map(|_| f64::sqrt(change2));
    Ok(Pruned {
        name: tensor.name().to_owned(),
        kind,
        elements: tensor.stored.shape.iter().product(),
        norm: norm2.sqrt(),
        change,
        relative_change: change.filter(|_| own2 > 0.0).map(|change| change / own2.sqrt()),
    })
}

/// The norm of a whole module's product.
fn product(adapter: &PeftAdapter, module: &PeftModule) -> Result<Pruned> {
    let Factors { a, b } = adapter.factors(module)?;
    let [out, inner] = module.shape();
    let norm2 = product_norm2(&b, &a, [out, module.rank() * module.experts(), inner]);
    Ok(Pruned {
        name: module.name().to_owned(),
        kind: None,
        elements: a.len() + b.len(),
        norm: module.scale().abs() * norm2.sqrt(),
        change: None,
        relative_change: None,
    })
}
