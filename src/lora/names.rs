//! The names that PEFT gives to the factors of a module, and the modules that go together.

use serde::{Deserialize, Serialize};

use crate::checkpoint::module_tree::kinds::{ModuleKind, kind_of_module};
pub use crate::quant::expert::layout::expert_of;
use crate::shared::number_in_name;

/// What a module is to a LoRA. It decides the names and the orientation of its factors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Place {
    /// A linear layer: `lora_A.weight` `[r, in]`, `lora_B.weight` `[out, r]`.
    Linear,
    /// An input embedding `[vocab, dim]`: `lora_embedding_A` `[r, vocab]`, `lora_embedding_B` `[dim, r]`.
    Embedding,
    /// The output head, a linear layer `[vocab, dim]` that is only extracted when asked for.
    Head,
    /// The router of a mixture of experts: a linear layer, but of the programs that load adapters only vLLM is known to
    /// accept a LoRA on it, so it is extracted only when asked for.
    Router,
    /// One expert of a stack `[experts, .., ..]`: its factors are a part of the stack's own.
    Stacked,
    /// A table that is looked up, but for the input embedding: of positions, of token types, of a codebook.
    Positions,
    /// A matrix of a module that no LoRA wraps, as a norm's.
    Parameter,
}

impl Place {
    /// Whether it is extracted when no `--include` is given.
    pub fn by_default(self) -> bool {
        matches!(self, Place::Linear | Place::Stacked)
    }

    /// Whether its rows are tokens.
    pub fn is_vocabulary(self) -> bool {
        matches!(self, Place::Embedding | Place::Head)
    }
}

/// The kind of a module: the last part of its name, for example `q_proj`. An expert of a stack has the stack's kind,
/// for example `down_proj`.
pub fn kind_of(module: &str) -> &str {
    let name = expert_of_stack(module).map_or(module, |(stack, _)| stack);
    name.rsplit('.').next().unwrap_or(name)
}

/// The kind of a module for tables, where experts are kinds of their own, for example `experts.gate_proj`.
pub fn group_of(module: &str) -> String {
    let kind = kind_of(module);
    if experts_of(module).is_some() { format!("experts.{kind}") } else { kind.to_owned() }
}

/// The path of a layer's experts, up to and including `experts`, if `module` is a weight of one of them.
pub fn experts_of(module: &str) -> Option<&str> {
    if let Some((stack, _)) = expert_of_stack(module) {
        return stack.rsplit_once('.').map(|(path, _)| path);
    }
    if is_parameter(module) {
        return module.rsplit_once(".mlp.").map(|(path, _)| path);
    }
    expert_of(module).map(|(path, _, _)| path)
}

/// What `module` (its name without `.weight`) is, by the names of the modules of transformers' models, and else by the
/// names that published architectures use.
pub fn place_of(module: &str) -> Place {
    let mut parts = module.rsplit('.');
    let (kind, owner) = (kind_of(module), parts.nth(1));
    if expert_of_stack(module).is_some() {
        return Place::Stacked;
    }
    if matches!(kind, "gate" | "router" | "shared_expert_gate") || owner == Some("router") {
        return Place::Router;
    }
    match kind_of_module(module, None) {
        Some(ModuleKind::Embedding) => return Place::Embedding,
        Some(ModuleKind::Table) => return Place::Positions,
        Some(ModuleKind::Head) => return Place::Head,
        Some(ModuleKind::Parameter) => return Place::Parameter,
        Some(ModuleKind::Conv1d | ModuleKind::Linear) => return Place::Linear,
        None => {}
    }
    match kind {
        "output_layer" => Place::Head,
        "output" if !module.contains('.') || module.ends_with("model.output") => Place::Head,
        _ if kind.contains("position_embedding") || kind.contains("token_type_embedding") => Place::Positions,
        _ => Place::Linear,
    }
}

/// The stack and the index of a module that is one expert of it, for example `model.layers.0.mlp.experts.down_proj` and
/// 7.
pub fn expert_of_stack(module: &str) -> Option<(&str, usize)> {
    let (stack, index) = module.rsplit_once('.')?;
    let index = number_in_name(index)?;
    let owned = parameter_of(stack).is_some_and(|parameter| [EXPERTS, SHARED].contains(&parameter.owner));
    (owned || is_lone_stack(stack)).then_some((stack, index))
}

/// What holds the stacks of a layer's experts.
const EXPERTS: &str = "experts";

/// More experts than any layer has: a larger number in a name is a mistake, or made to fill the memory.
pub(crate) const MOST_EXPERTS: usize = 65_536;

/// What holds those of the experts that every token passes, where they are stacks too: in Inkling.
const SHARED: &str = "shared_experts";

/// A parameter that PEFT wraps by itself, without a linear layer around it.
struct Parameter {
    /// The end of the path of the module that has it.
    owner: &'static str,
    /// Its own name.
    kind: &'static str,
    /// How many parameters of its owner PEFT wraps after it: each wrapper is the `base_layer` of the next one.
    depth: usize,
}

/// The parameters of experts that are not linear layers, in the order in which models define them: `up_proj` stands for
/// `gate_up_proj` in experts without a gate. DBRX has matrices in which the experts lie one below the other.
static PARAMETERS: [Parameter; 9] = [
    Parameter { owner: EXPERTS, kind: "gate_up_proj", depth: 1 },
    Parameter { owner: EXPERTS, kind: "up_proj", depth: 1 },
    Parameter { owner: EXPERTS, kind: "down_proj", depth: 0 },
    Parameter { owner: SHARED, kind: "gate_proj", depth: 2 },
    Parameter { owner: SHARED, kind: "up_proj", depth: 1 },
    Parameter { owner: SHARED, kind: "down_proj", depth: 0 },
    Parameter { owner: "experts.mlp", kind: "w1", depth: 2 },
    Parameter { owner: "experts.mlp", kind: "v1", depth: 1 },
    Parameter { owner: "experts.mlp", kind: "w2", depth: 0 },
];

/// Stacks that are the `weight` of a module of their own, as in JetMoE: PEFT keeps their factors under its name.
static LONE_STACKS: [&str; 2] = ["input_linear", "output_linear"];

fn is_lone_stack(stack: &str) -> bool {
    LONE_STACKS.iter().any(|kind| ends_with_part(stack, kind))
}

/// Whether a name is `end`, or ends with a dot and `end`.
fn ends_with_part(name: &str, end: &str) -> bool {
    name.strip_suffix(end).is_some_and(|head| head.is_empty() || head.ends_with('.'))
}

fn parameter_of(name: &str) -> Option<&'static Parameter> {
    let (owner, kind) = name.rsplit_once('.')?;
    PARAMETERS.iter().find(|parameter| parameter.kind == kind && ends_with_part(owner, parameter.owner))
}

/// Whether `module` is a matrix that is a parameter of the model and no linear layer: DBRX's experts.
pub(crate) fn is_parameter(module: &str) -> bool {
    parameter_of(module).is_some_and(|parameter| ![EXPERTS, SHARED].contains(&parameter.owner))
}

/// Whether PEFT has `module` as a parameter, not as a layer: an expert of a stack, or such a matrix.
pub(crate) fn is_of_stack(module: &str) -> bool {
    expert_of_stack(module).is_some() || is_parameter(module)
}

/// What PEFT's `target_parameters` calls a stack of experts, or a matrix that is a parameter.
pub(crate) fn parameter_name(stack: &str) -> String {
    if is_lone_stack(stack) { format!("{stack}.weight") } else { stack.to_owned() }
}

/// The module name under which PEFT keeps the factors of a stack, or of a matrix that is a parameter.
fn wrapper_of(stack: &str) -> String {
    match (parameter_of(stack), stack.rsplit_once('.')) {
        (Some(parameter), Some((owner, _))) => format!("{owner}{}", ".base_layer".repeat(parameter.depth)),
        _ => stack.to_owned(),
    }
}

/// The stacks and parameters whose factors PEFT may keep under this module name (`….experts.base_layer`, `….experts`):
/// the path of what has it, and its kind. Which of several it is, the config tells or the base.
pub(crate) fn wrapped_by(module: &str) -> impl Iterator<Item = (&str, &'static str)> {
    let owner = module.trim_end_matches(".base_layer");
    let depth = (module.len() - owner.len()) / ".base_layer".len();
    let fits = move |p: &&Parameter| p.depth == depth && ends_with_part(owner, p.owner);
    let lone = move |kind: &&&str| depth == 0 && ends_with_part(owner, kind);
    let path = move |kind: &str| owner.strip_suffix(kind).unwrap_or(owner).trim_end_matches('.');
    let owned = PARAMETERS.iter().filter(fits).map(move |p| (owner, p.kind));
    owned.chain(LONE_STACKS.iter().filter(lone).map(move |kind| (path(kind), *kind)))
}

/// The names of one module's two tensors in an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    /// `lora_A`, or `lora_embedding_A`.
    pub a: String,
    /// `lora_B`, or `lora_embedding_B`.
    pub b: String,
}

impl Keys {
    /// PEFT's names for `module`, as named in the base. All experts of a stack share one pair of tensors.
    pub fn of(module: &str, place: Place) -> Keys {
        let stem = format!("base_model.model.{module}");
        match place {
            Place::Embedding => {
                Keys { a: format!("{stem}.lora_embedding_A"), b: format!("{stem}.lora_embedding_B") }
            }
            Place::Stacked => {
                let stack = expert_of_stack(module).map_or(module, |(stack, _)| stack);
                let stem = format!("base_model.model.{}", wrapper_of(stack));
                Keys { a: format!("{stem}.lora_A.weight"), b: format!("{stem}.lora_B.weight") }
            }
            _ if is_parameter(module) => {
                let stem = format!("base_model.model.{}", wrapper_of(module));
                Keys { a: format!("{stem}.lora_A.weight"), b: format!("{stem}.lora_B.weight") }
            }
            _ => Keys { a: format!("{stem}.lora_A.weight"), b: format!("{stem}.lora_B.weight") },
        }
    }
}

/// The modules that servers fuse with `module` into one product (`q`, `k`, `v`; `gate`, `up`), without `module` itself.
/// Some loaders fail if an adapter holds only a part of such a set.
pub fn fused_siblings(module: &str) -> Vec<String> {
    const FUSED: [&[&str]; 2] = [&["q_proj", "k_proj", "v_proj"], &["gate_proj", "up_proj"]];
    // Stacks of experts have no siblings but each other.
    if expert_of_stack(module).is_some() {
        return Vec::new();
    }
    let kind = kind_of(module);
    let stem = &module[..module.len() - kind.len()];
    FUSED
        .iter()
        .filter(|set| set.contains(&kind))
        .flat_map(|set| set.iter())
        .filter(|&&other| other != kind)
        .map(|other| format!("{stem}{other}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_follow_published_names() {
        for (name, place) in [
            ("model.layers.0.self_attn.q_proj", Place::Linear),
            ("model.layers.0.mlp.gate_proj", Place::Linear),
            ("model.layers.0.mlp.gate", Place::Router),
            ("model.layers.0.mlp.router", Place::Router),
            ("model.layers.0.mlp.experts.3.gate_proj", Place::Linear),
            ("model.layers.0.mlp.experts.gate_up_proj.3", Place::Stacked),
            ("model.layers.0.mlp.experts.gate_up_proj", Place::Linear),
            ("model.layers.0.block_sparse_moe.gate", Place::Router),
            ("model.layers.0.mlp.shared_expert_gate", Place::Router),
            ("model.embed_tokens", Place::Embedding),
            ("transformer.wpe", Place::Positions),
            ("bert.embeddings.position_embeddings", Place::Positions),
            ("lm_head", Place::Head),
            ("model.layers.3.attention.output", Place::Linear),
            // Gemma 3n and 4, T5, DeBERTa, CLIP, Whisper, BERT, ModernBERT, Chameleon, Granite-MoE.
            ("model.embed_tokens_per_layer", Place::Positions),
            ("shared", Place::Embedding),
            ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias", Place::Positions),
            ("vision_tower.embeddings.position_embedding", Place::Positions),
            ("text_model.embeddings.token_embedding", Place::Embedding),
            ("encoder.layer.0.attention.self.distance_embedding", Place::Positions),
            ("proj_out", Place::Head),
            ("model.visual.blocks.0.attn.proj_out", Place::Linear),
            ("cls.predictions.decoder", Place::Head),
            ("decoder", Place::Head),
            ("model.layers.0.self_attn.q_norm", Place::Parameter),
            ("model.layers.0.block_sparse_moe.router.layer", Place::Router),
            ("image_embedder.row_embedder", Place::Positions),
        ] {
            assert_eq!(place_of(name), place, "{name}");
        }
    }

    #[test]
    fn keys_are_pefts() {
        let linear = Keys::of("model.layers.0.self_attn.q_proj", Place::Linear);
        assert_eq!(linear.a, "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight");
        assert_eq!(linear.b, "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight");
        let inner = Keys::of("model.layers.0.mlp.experts.gate_up_proj.7", Place::Stacked);
        assert_eq!(inner.a, "base_model.model.model.layers.0.mlp.experts.base_layer.lora_A.weight");
        for (module, place, want) in [
            ("l.0.mixer.experts.up_proj.7", Place::Stacked, "l.0.mixer.experts.base_layer"),
            ("l.0.mixer.experts.down_proj.7", Place::Stacked, "l.0.mixer.experts"),
            (
                "l.0.mlp.shared_experts.gate_proj.1",
                Place::Stacked,
                "l.0.mlp.shared_experts.base_layer.base_layer",
            ),
            ("l.0.mlp.shared_experts.down_proj.1", Place::Stacked, "l.0.mlp.shared_experts"),
            ("l.0.mlp.input_linear.7", Place::Stacked, "l.0.mlp.input_linear"),
            ("b.0.ffn.experts.mlp.w1", Place::Linear, "b.0.ffn.experts.mlp.base_layer.base_layer"),
            ("b.0.ffn.experts.mlp.v1", Place::Linear, "b.0.ffn.experts.mlp.base_layer"),
            ("b.0.ffn.experts.mlp.w2", Place::Linear, "b.0.ffn.experts.mlp"),
        ] {
            assert_eq!(place_of(module), place, "{module}");
            assert_eq!(Keys::of(module, place).a, format!("base_model.model.{want}.lora_A.weight"));
            let (stack, kind) = (expert_of_stack(module).map_or(module, |(stack, _)| stack), kind_of(module));
            let known =
                wrapped_by(want).any(|(path, found)| format!("{path}.{found}") == stack && found == kind);
            assert!(known, "{want}: {:?}", wrapped_by(want).collect::<Vec<_>>());
        }
        assert_eq!(parameter_name("l.0.mlp.input_linear"), "l.0.mlp.input_linear.weight");
        assert_eq!(wrapped_by("l.0.self_attn.q_proj").count(), 0);
        let outer = Keys::of("model.layers.0.mlp.experts.down_proj.7", Place::Stacked);
        assert_eq!(outer.b, "base_model.model.model.layers.0.mlp.experts.lora_B.weight");
        let table = Keys::of("model.embed_tokens", Place::Embedding);
        assert_eq!(table.a, "base_model.model.model.embed_tokens.lora_embedding_A");
    }

    #[test]
    fn experts_are_grouped_by_themselves() {
        assert_eq!(group_of("l.0.mlp.experts.11.gate_proj"), "experts.gate_proj");
        assert_eq!(group_of("l.0.mlp.experts.down_proj.11"), "experts.down_proj");
        assert_eq!(group_of("l.0.mlp.shared_expert.gate_proj"), "gate_proj");
        assert_eq!(experts_of("l.0.mlp.experts.11.gate_proj"), Some("l.0.mlp.experts"));
        assert_eq!(experts_of("l.0.mlp.experts.down_proj.11"), Some("l.0.mlp.experts"));
        assert_eq!(experts_of("l.0.mlp.gate"), None);
        assert_eq!(kind_of("merger.mlp.2"), "2");
    }

    #[test]
    fn fused_sets_are_complete_and_local() {
        assert_eq!(fused_siblings("l.0.attn.k_proj"), ["l.0.attn.q_proj", "l.0.attn.v_proj"]);
        assert_eq!(fused_siblings("l.0.mlp.up_proj"), ["l.0.mlp.gate_proj"]);
        assert!(fused_siblings("l.0.mlp.down_proj").is_empty());
    }

    #[test]
    fn an_expert_has_a_number() {
        assert_eq!(expert_of("l.0.mlp.experts.12.up_proj"), Some(("l.0.mlp.experts", 12, "up_proj")));
        for name in
            ["l.0.mlp.experts", "l.0.mlp.up_proj", "l.0.mlp.shared_experts.up_proj", "x.experts.up_proj.1"]
        {
            assert_eq!(expert_of(name), None, "{name}");
        }
    }
}
