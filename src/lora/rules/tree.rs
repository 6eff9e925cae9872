//! The rules on an adapter's names, against the modules of its base.

use crate::checkpoint::module_tree::{ExpertConversion, Origin};
use crate::lora::names::{Place, expert_of, kind_of};
use crate::lora::read::config::{PeftConfig, Targets};
use crate::lora::read::{PeftAdapter, PeftModule};
use crate::lora::rules::Loader::{self, Peft};
use crate::lora::rules::settings::is_target_parameter;
use crate::lora::rules::{Effect, Fix, Report};
use crate::lora::tree::BaseModules;
use crate::lora::tree::limits::is_of_shared_block;

pub(crate) fn check(adapter: &PeftAdapter, base: &BaseModules, report: &mut Report) {
    if base.modules().is_empty() {
        return;
    }
    for module in adapter.modules() {
        if let Some(why) = misfit(base, module) {
            report.add(&Loader::ALL, module.name(), why, Effect::Refused, Fix::No);
        }
        match standing(adapter.config(), base, module) {
            Standing::Wrapped => {}
            Standing::Elsewhere(name) => {
                let why = format!("is '{name}' in the model that PEFT wraps");
                report.add(&[Peft], module.name(), why, Effect::NoEffect, Fix::Yes);
            }
            Standing::Unwrapped(why) => {
                report.add(&[Peft], module.name(), why, Effect::NoEffect, Fix::Yes);
            }
            Standing::Absent => {
                let why = "is no module of the base";
                report.add(&Loader::ALL, module.name(), why, Effect::NoEffect, Fix::ByPruning);
            }
        }
    }
    strays(adapter, base, report);
}

/// Reports what PEFT cannot do with any adapter of such a base, however it is written.
pub(crate) fn limits(adapter: &PeftAdapter, base: Option<&BaseModules>, report: &mut Report) {
    if base.is_some_and(BaseModules::is_refused_by_peft) {
        let why = "is for a model that PEFT does not wrap: its class does not tell where its embedding is";
        report.add(&[Peft], "adapter_config.json", why, Effect::Refused, Fix::No);
    }
    let model_type = base.and_then(BaseModules::model_type);
    let mut shared = adapter.modules().filter(|module| is_of_shared_block(model_type, module.name()));
    if let Some(first) = shared.next() {
        let why = format!(
            "and {} more are of a block that layers share: until they are merged, PEFT applies them in the first of \
             these layers alone",
            shared.count()
        );
        report.add(&[Peft], first.name(), why, Effect::NoEffect, Fix::No);
    }
}

/// What is wrong with the shape of a module, which must be that of the base's weight.
fn misfit(base: &BaseModules, module: &PeftModule) -> Option<String> {
    if module.experts() > 1 {
        return None;
    }
    let weight = base.resolve(module.name())?;
    let [out, inner] = weight.shape;
    let asked = if module.place() == Place::Embedding { [inner, out] } else { [out, inner] };
    if module.shape() == asked {
        return None;
    }
    let swapped = module.shape() == [asked[1], asked[0]];
    let looks =
        if swapped { ": lora_A and lora_B are swapped, or the weight is stored transposed" } else { "" };
    Some(format!(
        "gives a change of shape {:?}, but the base's weight needs {asked:?}{looks}",
        module.shape()
    ))
}

/// What a module of an adapter is in the base, for PEFT.
enum Standing {
    /// PEFT wraps it.
    Wrapped,
    /// The base has it, under this name.
    Elsewhere(String),
    /// The base has it, and PEFT does not wrap it.
    Unwrapped(&'static str),
    /// The base does not have it.
    Absent,
}

fn standing(config: &PeftConfig, base: &BaseModules, module: &PeftModule) -> Standing {
    let name = module.name();
    let Some(known) = base.resolve(name) else {
        return match base.stored_name_of_wrapper(name) {
            None => Standing::Absent,
            Some(_) if base.key_name_of(name) != name => Standing::Elsewhere(base.key_name_of(name)),
            Some(_) => Standing::Wrapped,
        };
    };
    if base.expert_conversion() == Some(ExpertConversion::Nothing) && expert_of(name).is_some() {
        return Standing::Unwrapped("is one of a stack of experts that PEFT does not make of single keys");
    }
    if base.key_of(known) != name && base.origin() != Some(&Origin::Unknown) {
        return Standing::Elsewhere(base.key_of(known));
    }
    let by_parameter = || is_target_parameter(config, &known.loaded);
    match (base.expert_conversion(), expert_of(name)) {
        // PEFT takes these kinds out of target_modules, wherever they are.
        (Some(ExpertConversion::Config(family)), None)
            if family.kinds().contains(&kind_of(name)) && !by_parameter() =>
        {
            Standing::Unwrapped(
                "is of a kind that PEFT takes for experts' in this model, and in no entry of target_parameters",
            )
        }
        (Some(ExpertConversion::Keys), Some((path, ..)))
            if !is_target_parameter(config, base.experts_in_model(name).as_deref().unwrap_or(path)) =>
        {
            Standing::Unwrapped(
                "is part of a stack in the model that PEFT wraps, which is in no entry of target_parameters",
            )
        }
        _ => Standing::Wrapped,
    }
}

/// Targets that PEFT finds on what it cannot wrap: it refuses the adapter then.
fn strays(adapter: &PeftAdapter, base: &BaseModules, report: &mut Report) {
    let (Targets::Names(names), Some(paths)) = (adapter.config().targets(), base.paths()) else { return };
    for target in names {
        let ends = |path: &&String| {
            path.as_str() == target
                || path.strip_suffix(target.as_str()).is_some_and(|head| head.ends_with('.'))
        };
        let stray =
            paths.iter().filter(ends).find(|path| base.loaded(path).is_none() && !is_expert_container(path));
        if let Some(path) = stray.filter(|path| adapter.module(path).is_none()) {
            let why = format!("has '{target}', which also names '{path}': no linear layer");
            report.add(&[Peft], "adapter_config.json: target_modules", why, Effect::Refused, Fix::Yes);
        }
    }
}

/// What holds the tensors of experts that are no modules of the model.
fn is_expert_container(path: &str) -> bool {
    path.split('.').any(|part| part == "experts")
}

/// The modules that a loader takes, and those that it does not, of an adapter whose base is known.
pub fn matches(consumer: Loader, adapter: &PeftAdapter, base: &BaseModules) -> (Vec<String>, Vec<String>) {
    let takes = |module: &&PeftModule| match standing(adapter.config(), base, module) {
        Standing::Wrapped => true,
        Standing::Elsewhere(_) | Standing::Unwrapped(_) => consumer != Peft,
        Standing::Absent => false,
    };
    let (taken, left): (Vec<_>, Vec<_>) = adapter.modules().partition(takes);
    [taken, left].map(|modules| modules.into_iter().map(|module| module.name().to_owned()).collect()).into()
}
