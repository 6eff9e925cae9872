//! Which norm stands before which linear weight, and by what factor the two checkpoints' norms differ.

use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::module::Module;
use crate::lora::names::kind_of;

/// Linear weights that read the output of the norm before the attention.
const ATTENTION: [&str; 13] = [
    "q_proj",
    "k_proj",
    "v_proj",
    "qkv_proj",
    "q_a_proj",
    "kv_a_proj_with_mqa",
    "in_proj_qkvz",
    "in_proj_ba",
    "in_proj_qkv",
    "in_proj_z",
    "in_proj_a",
    "in_proj_b",
    "query_key_value",
];

/// Linear weights that read the output of the norm before the feed-forward part, and the routers of its experts.
const FEED_FORWARD: [&str; 8] =
    ["gate_proj", "up_proj", "gate_up_proj", "w1", "w3", "gate", "router", "shared_expert_gate"];

/// Models whose norms multiply by one plus the stored weight.
const ONE_MORE: [&str; 10] = [
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "qwen3_next",
    "qwen3_5",
    "qwen3_5_text",
    "qwen3_5_moe",
    "qwen3_5_moe_text",
    "recurrent_gemma",
];

/// The norm whose output the weight `module` multiplies, by the base's names; `None` where that is not known.
///
/// A layer without a norm before its attention, as OLMo 2's, has its other norms behind the parts that they are named
/// after; one with a norm before the feed-forward part by that name, as Gemma 2's, has the other two behind theirs.
pub(crate) fn norm_before(module: &str, base: &Checkpoint) -> Option<String> {
    let has = |norm: &str| base.tensor(&format!("{norm}.weight")).is_some();
    let kind = kind_of(module);
    let within = |parts: &[&str]| parts.iter().find_map(|part| module.rfind(part).map(|at| &module[..at]));
    if let Some(layer) = within(&[".self_attn.", ".linear_attn."]) {
        let norm = format!("{layer}.input_layernorm");
        return (ATTENTION.contains(&kind) && has(&norm)).then_some(norm);
    }
    let layer = within(&[".mlp.", ".block_sparse_moe.", ".feed_forward."])?;
    if !FEED_FORWARD.contains(&kind)
        || !has(&format!("{layer}.input_layernorm"))
        || has(&format!("{layer}.pre_feedforward_layernorm_2"))
    {
        return None;
    }
    let norms =
        ["pre_feedforward_layernorm", "post_attention_layernorm"].map(|norm| format!("{layer}.{norm}"));
    norms.into_iter().find(|norm| has(norm))
}

/// The weights of one norm on both sides, as the model multiplies by them.
pub(crate) struct NormPair {
    pub(crate) base: Vec<f32>,
    pub(crate) tuned: Vec<f32>,
    /// Whether it adds a bias, which a factor of the weight alone does not bring along.
    pub(crate) biased: bool,
}

impl NormPair {
    /// Reads the norm that the base calls `base_name` and the tuned checkpoint `tuned_name`, without `.weight`; `None`
    /// where one of them has no dense vector of that name, or both differ in length.
    ///
    /// # Errors
    /// A tensor that cannot be read.
    pub(crate) fn read(
        base: &Checkpoint,
        tuned: &Checkpoint,
        base_name: &str,
        tuned_name: &str,
    ) -> Result<Option<NormPair>> {
        let more = |checkpoint: &Checkpoint| {
            let config = checkpoint.config();
            let kinds = [config.text_model_type(), config.model_type()];
            let adds = kinds.into_iter().flatten().any(|kind| ONE_MORE.contains(&kind));
            f32::from(u8::from(adds))
        };
        let read = |checkpoint: &Checkpoint, name: &str| -> Result<Option<Vec<f32>>> {
            let tensor = checkpoint.tensor(&format!("{name}.weight")).filter(|t| t.stored.shape.len() == 1);
            let Some(module) = tensor.and_then(Module::lines) else { return Ok(None) };
            let mut values = vec![0.0; module.shape()[1]];
            module.panel(checkpoint, 0..1, &mut values)?;
            values.iter_mut().for_each(|value| *value += more(checkpoint));
            Ok(Some(values))
        };
        let biased = base.tensor(&format!("{base_name}.bias")).is_some();
        let (base, tuned) = (read(base, base_name)?, read(tuned, tuned_name)?);
        Ok(base.zip(tuned).filter(|(b, t)| b.len() == t.len()).map(|(base, tuned)| NormPair {
            base,
            tuned,
            biased,
        }))
    }

    /// `||n_t - n_b|| / ||n_b||`.
    pub(crate) fn change(&self) -> f64 {
        let square =
            |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>();
        let difference = square(&mut self.tuned.iter().zip(&self.base).map(|(t, b)| t - b));
        let norm = square(&mut self.base.iter().copied());
        if difference == 0.0 { 0.0 } else { (difference / norm).sqrt() }
    }

    /// The same, with 1 where a factor is missing.
    pub(crate) fn partial_ratio(&self) -> Vec<f32> {
        let one = |(&base, &tuned): (&f32, &f32)| {
            Some(tuned / base).filter(|ratio| ratio.is_finite()).unwrap_or(1.0)
        };
        self.base.iter().zip(&self.tuned).map(one).collect()
    }

    /// `n_t / n_b` for each input; `None` where the base's norm has a zero and the tuned one's has not, or a value is
    /// not finite: then no factor brings the one to the other.
    pub(crate) fn ratio(&self) -> Option<Vec<f32>> {
        let one = |(&base, &tuned): (&f32, &f32)| match (base, tuned) {
            (base, tuned) if base == tuned => Some(1.0),
            (0.0, _) => None,
            (base, tuned) => Some(tuned / base).filter(|ratio| ratio.is_finite()),
        };
        self.base.iter().zip(&self.tuned).map(one).collect()
    }
}
