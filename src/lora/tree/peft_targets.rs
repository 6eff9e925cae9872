//! What an adapter's config must name for PEFT to wrap what the adapter holds, and no more.
//!
//! transformers 5 keeps the experts of most mixtures as stacks, whatever the files hold. For some types PEFT turns the
//! kinds of single experts (`gate_proj`, `up_proj`, `down_proj`) in `target_modules` into those stacks wherever it
//! meets them, so that dense layers and shared experts of the same kinds are not wrapped: these are named as
//! parameters. For others it turns the keys alone, and the stacks have to be named, with the rank of gate and up
//! together.

use std::collections::BTreeSet;

use crate::checkpoint::module_tree::table::ExpertConversion;
use crate::lora::names::{expert_of, expert_of_stack, is_parameter, kind_of, parameter_name};
use crate::lora::tree::base_modules::BaseModules;
use crate::lora::tree::targets::shortest;

/// The targets of one adapter.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PeftTargets {
    /// `target_modules`.
    pub modules: BTreeSet<String>,
    /// `target_parameters`.
    pub parameters: BTreeSet<String>,
    /// Whether the fused gate and up of experts have twice the rank, which PEFT is to be told.
    pub doubled: bool,
    /// Whether layers outside of the experts are called `gate_up_proj` too.
    pub fused_layers: bool,
}

impl PeftTargets {
    /// For modules by their names in the model.
    pub fn of<'a>(names: impl Iterator<Item = &'a str>, base: &BaseModules) -> PeftTargets {
        let (mut targets, mut layers, mut experts) =
            (PeftTargets::default(), BTreeSet::new(), BTreeSet::new());
        for name in names {
            match (expert_of_stack(name), expert_of(name)) {
                (Some((stack, _)), _) => {
                    targets.parameters.insert(from_owner(&parameter_name(stack)).to_owned());
                }
                (None, None) if is_parameter(name) => {
                    targets.parameters.insert(from_owner(name).to_owned());
                }
                (None, Some((path, _, kind))) => {
                    targets.modules.insert(kind.to_owned());
                    experts.insert(base.experts_in_model(name).unwrap_or_else(|| path.to_owned()));
                }
                (None, None) => drop(layers.insert(name.to_owned())),
            }
        }
        targets.fused_layers = layers.iter().any(|name| kind_of(name) == "gate_up_proj");
        let entries = entries(&layers, base);
        match base.expert_conversion() {
            Some(ExpertConversion::Config(family)) => {
                let moved = |name: &&String| family.kinds().contains(&kind_of(name));
                let (moved, stay): (Vec<_>, Vec<_>) = entries.iter().partition(moved);
                targets.modules.extend(stay.into_iter().cloned());
                targets.parameters.extend(moved.into_iter().map(|name| format!("{name}.weight")));
            }
            Some(ExpertConversion::Keys) if !experts.is_empty() => {
                targets.modules.extend(entries);
                targets.doubled = true;
                for path in &experts {
                    let path = from_owner(path);
                    targets
                        .parameters
                        .extend(["gate_up_proj", "down_proj"].map(|kind| format!("{path}.{kind}")));
                }
            }
            // A kind that is named for experts reaches every layer of that kind.
            _ => {
                let named = std::mem::take(&mut targets.modules);
                let entries = entries.into_iter().filter(|entry| !named.contains(kind_of(entry)));
                targets.modules.extend(entries);
                targets.modules.extend(named);
            }
        }
        targets
    }
}

/// The name of a stack, or of the module that holds it, from what `experts` belongs to on, or the last three parts:
/// whatever layer it is in.
fn from_owner(name: &str) -> &str {
    let inside = match name.find("experts") {
        Some(at) => name[..at].matches('.').count(),
        None => name.matches('.').count().saturating_sub(1),
    };
    name.match_indices('.')
        .nth(inside.saturating_sub(2))
        .filter(|_| inside > 1)
        .map_or(name, |(at, _)| &name[at + 1..])
}

fn entries(layers: &BTreeSet<String>, base: &BaseModules) -> BTreeSet<String> {
    let linear = |path: &str| {
        base.loaded(path).is_some_and(|module| crate::lora::names::place_of(&module.stored).by_default())
    };
    match base.paths() {
        Some(paths) => shortest(layers, paths, linear),
        None => shortest(layers, layers, linear),
    }
}

#[cfg(test)]
mod tests {
    use super::{PeftTargets, from_owner};
    use crate::lora::tree::BaseModules;

    fn targets(model_type: &str, names: &[&str]) -> [String; 2] {
        let targets = PeftTargets::of(names.iter().copied(), &BaseModules::of_type(model_type));
        assert_eq!(targets.doubled, model_type == "lfm2_moe");
        [targets.modules, targets.parameters].map(|set| set.into_iter().collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn experts_dense_layers_and_shared_experts() {
        let names = [
            "model.layers.0.mlp.gate_proj",
            "model.layers.1.self_attn.o_proj",
            "model.layers.1.mlp.experts.0.gate_proj",
            "model.layers.1.mlp.experts.0.down_proj",
            "model.layers.1.mlp.shared_experts.gate_proj",
        ];
        assert_eq!(targets("deepseek_v3", &names), ["down_proj gate_proj o_proj", "gate_proj.weight"]);
        assert_eq!(targets("llama", &names), ["down_proj gate_proj o_proj", ""]);
        let stacks = "mlp.experts.down_proj mlp.experts.gate_up_proj";
        assert_eq!(targets("lfm2_moe", &names), ["down_proj gate_proj o_proj", stacks]);
        assert_eq!(targets("mixtral", &["model.layers.0.block_sparse_moe.experts.0.w1"]), ["w1", ""]);
    }

    #[test]
    fn stacks_are_named_from_their_owner_on() {
        assert_eq!(from_owner("model.layers.0.mlp.experts.down_proj"), "mlp.experts.down_proj");
        assert_eq!(from_owner("model.layers.0.feed_forward.experts"), "feed_forward.experts");
        assert_eq!(from_owner("experts.down_proj"), "experts.down_proj");
        assert_eq!(from_owner("model.layers.0.mlp.input_linear.weight"), "mlp.input_linear.weight");
        let moa = "model.layers.0.self_attention.experts.output_linear.3";
        assert_eq!(targets("jetmoe", &[moa]), ["", "self_attention.experts.output_linear.weight"]);
        let dbrx =
            ["transformer.blocks.0.ffn.experts.mlp.v1", "transformer.blocks.0.norm_attn_norm.attn.Wqkv"];
        assert_eq!(targets("dbrx", &dbrx), ["Wqkv", "ffn.experts.mlp.v1"]);
        assert_eq!(targets("gpt_oss", &["l.0.mlp.experts.down_proj.3"]), ["", "mlp.experts.down_proj"]);
    }
}
