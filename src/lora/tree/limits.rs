//! What PEFT cannot do with some modules of some models, whatever an adapter of them holds.

use crate::lora::names::kind_of;

/// Types of models with a state space: PEFT refuses an adapter that holds their `out_proj`.
const STATE_SPACE: [&str; 5] = ["falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"];

/// Types of models in which several layers have one attention block.
const SHARED: [&str; 2] = ["zamba", "zamba2"];

/// Whether PEFT refuses an adapter that holds `module` of a model of this type.
pub(crate) fn is_refused(model_type: Option<&str>, module: &str) -> bool {
    kind_of(module) == "out_proj" && model_type.is_some_and(|kind| STATE_SPACE.contains(&kind))
}

/// Whether several layers have the block that `module` is of. Each of them has layers of its own around the one weight,
/// which PEFT wraps one by one, while files, and so adapters, name the first alone: there alone an adapter acts, until
/// it is merged into the weight. Factors for the other layers too would be added to the weight as often. Where the type
/// is not known, the block's name tells: no other model has it.
pub(crate) fn is_of_shared_block(model_type: Option<&str>, module: &str) -> bool {
    let may_be = model_type.is_none_or(|kind| SHARED.contains(&kind));
    may_be && module.split('.').any(|part| matches!(part, "shared_transf" | "shared_transformer"))
}

#[cfg(test)]
mod tests {
    use super::{is_of_shared_block, is_refused};

    #[test]
    fn modules_by_the_type_of_their_model() {
        let of_block = "model.layers.2.shared_transf.self_attn.q_proj";
        let of_second = "model.layers.5.shared_transformer.feed_forward.down_proj";
        assert!(is_of_shared_block(Some("zamba"), of_block) && is_of_shared_block(Some("zamba2"), of_second));
        assert!(is_of_shared_block(None, of_block) && !is_of_shared_block(Some("llama"), of_block));
        assert!(!is_of_shared_block(Some("zamba"), "model.layers.2.mamba.in_proj"));
        assert!(is_refused(Some("mamba"), "backbone.layers.0.mixer.out_proj"));
        assert!(!is_refused(Some("zamba"), "model.layers.0.mamba.out_proj") && !is_refused(None, "out_proj"));
    }
}
