//! `adapter_config.json`: the values that every consumer accepts, written out.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::lora::tree::{BaseModules, PeftTargets};

/// The part of PEFT's `LoraConfig` that the portable adapter needs. `lora_alpha == r`, so that the scale is one and
/// multiplying it into `lora_B` costs no rounding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterConfig {
    /// Always `LORA`.
    pub peft_type: String,
    /// `CAUSAL_LM`, unless the model is of another kind.
    pub task_type: Option<String>,
    /// The base that the adapter is added to.
    pub base_model_name_or_path: Option<String>,
    /// The uniform rank.
    pub r: usize,
    /// Equal to `r`.
    pub lora_alpha: f64,
    /// Kinds of module, sorted.
    pub target_modules: BTreeSet<String>,
    /// Stacks of experts, for example `mlp.experts.down_proj`: parameters that PEFT adapts although they are not
    /// modules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_parameters: Option<BTreeSet<String>>,
    /// Always 0: the adapter is for inference.
    #[serde(default)]
    pub lora_dropout: f64,
    /// `none`, unless biases are kept.
    #[serde(default)]
    pub bias: String,
    /// False, because weights are `[out, in]`; sanitizing keeps the adapter's value.
    #[serde(default)]
    pub fan_in_fan_out: bool,
    /// Always true.
    #[serde(default)]
    pub inference_mode: bool,
    /// Null, unless whole weights are kept.
    #[serde(default)]
    pub modules_to_save: Option<Vec<String>>,
    /// Empty but for single experts of a model that PEFT knows with stacks, whose gate and up have twice the rank
    /// together.
    #[serde(default)]
    pub rank_pattern: BTreeMap<String, usize>,
    /// The same for `lora_alpha`.
    #[serde(default)]
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Always false.
    #[serde(default)]
    pub use_rslora: bool,
    /// Always false.
    #[serde(default)]
    pub use_dora: bool,
}

impl AdapterConfig {
    /// The portable config of rank `r` for an adapter of these modules, by their names in the model.
    pub fn for_modules<'a>(
        base: &str,
        r: usize,
        modules: impl Iterator<Item = &'a str>,
        tree: &BaseModules,
    ) -> AdapterConfig {
        let PeftTargets { modules, parameters, doubled, fused_layers } = PeftTargets::of(modules, tree);
        let mut config = AdapterConfig::portable(base, r, modules);
        config.target_parameters = (!parameters.is_empty()).then_some(parameters);
        if doubled {
            // PEFT's own pattern, but where layers outside of the experts are called so.
            let fused = if fused_layers { r".*\.experts\.gate_up_proj" } else { r".*\.gate_up_proj" };
            config.rank_pattern.insert(fused.to_owned(), 2 * r);
            config.alpha_pattern.insert(fused.to_owned(), 2.0 * config.lora_alpha);
        }
        config
    }

    /// The portable config of rank `r` for these kinds of module.
    pub fn portable(base: &str, r: usize, kinds: BTreeSet<String>) -> AdapterConfig {
        AdapterConfig {
            peft_type: "LORA".into(),
            task_type: Some("CAUSAL_LM".into()),
            base_model_name_or_path: Some(base.into()),
            r,
            lora_alpha: r as f64,
            target_modules: kinds,
            target_parameters: None,
            lora_dropout: 0.0,
            bias: "none".into(),
            fan_in_fan_out: false,
            inference_mode: true,
            modules_to_save: None,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            use_rslora: false,
            use_dora: false,
        }
    }
}

/// The config as JSON text. `lora_alpha` is written as an integer where it is one: old loaders parse it as `int`.
///
/// # Errors
/// A number that JSON cannot hold.
pub fn write_config(config: &AdapterConfig) -> serde_json::Result<String> {
    let mut value = serde_json::to_value(config)?;
    if config.lora_alpha.fract() == 0.0 {
        value["lora_alpha"] = serde_json::json!(config.lora_alpha as u64);
    }
    serde_json::to_string_pretty(&value).map(|text| text + "\n")
}
