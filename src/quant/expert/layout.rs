//! Mixtures of experts: which stored tensors are stacks of experts `[experts, .., ..]`, how they are laid out, and what
//! an expert's weights are called. The layout follows from `model_type`, as in the tables of transformers and PEFT.
//!
//! - Qwen2/3-MoE, DeepSeek, GLM-4 and related models: modules `experts.7.gate_proj`, `.up_proj`, `.down_proj`; stacks
//!   `[E, 2I, H]`, gate above up, and `[E, H, I]`.
//! - Mixtral, MiniMax, Phi-MoE: modules `experts.7.w1`, `.w3`, `.w2`; stacks as above.
//! - gpt-oss: modules `experts.gate_up_proj.7`, `experts.down_proj.7`; stacks `[E, H, 2I]`, gate and up interleaved,
//!   and `[E, I, H]`; in MXFP4 `[E, 2I, H]` and `[E, H, I]`.
//! - Qwen3-VL-MoE, Qwen3.5-MoE, Qwen3-Omni, InternS1-Pro and others whose files hold stacks: modules as for gpt-oss;
//!   stacks `[E, 2I, H]` and `[E, H, I]`, or both transposed: the dimension that equals `hidden_size` tells which.
//!
//! A module's name depends on what adapters for the model hold, not on how a checkpoint stores it, so a stack pairs
//! with single experts. Llama 4's stacks are not modules: PEFT takes them for their transpose, and no program serves an
//! adapter of them. PEFT and vLLM expect three 2-D projections per expert for the first two families above, and one
//! pair of factors per stack for the others.

use std::sync::Arc;

use crate::quant::expert::slice::ExpertSlice;
use crate::quant::packing::row_concat::{RowConcat, RowStride};
use crate::quant::packing::transposed::Transposed;
use crate::quant::weight::{Dequantize, FoundWeight};
use crate::{Error, Result};

/// What adapters for a model hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExpertForm {
    /// Factors for each projection of each expert.
    Single,
    /// Factors for a whole stack of experts.
    #[default]
    Stacked,
}

/// What the two stacks of experts are called in files. In transformers' models they are `gate_up_proj` and `down_proj`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Spelling {
    /// As in the model.
    #[default]
    Usual,
    /// `block_sparse_moe.input_linear` and `.output_linear`.
    Granite,
    /// `experts.fc1` and `.fc2`.
    Aria,
}

/// How the experts of one model type are laid out.
#[derive(Clone, Debug, Default)]
pub struct Experts {
    form: ExpertForm,
    /// Whether single experts are known to belong to stacks.
    joins: bool,
    /// Stacks are `[in, out]` where shapes do not tell.
    turned: bool,
    /// The rows of gate and up alternate.
    interleaved: bool,
    /// As in Mixtral: other names for a single expert's projections, under another path.
    mixtral: bool,
    /// What the two stacks are called in files.
    spelling: Spelling,
    /// No stack is a module.
    none: bool,
    hidden: Option<usize>,
}

/// Models whose single experts are named as in Qwen2-MoE, from transformers' `conversion_mapping.py`.
const SINGLE: &[&str] = &[
    "qwen2_moe",
    "qwen3_moe",
    "qwen3_next",
    "afmoe",
    "cohere2_moe",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "dots1",
    "ernie4_5_moe",
    "exaone_moe",
    "flex_olmo",
    "glm4_moe",
    "glm4_moe_lite",
    "glm4v_moe",
    "glm_moe_dsa",
    "hunyuan_v1_moe",
    "longcat_flash",
    "mellum",
    "olmoe",
    "solar_open",
];
/// The same, but not of their language models by themselves: adapters hold what PEFT knows for the whole.
const SINGLE_AS_A_WHOLE: &[&str] =
    &["axk1", "axk2", "deepseek_ocr2", "hy_v3", "jamba", "kimi_k25", "laguna", "mimo_v2_flash"];
const MIXTRAL_AS_A_WHOLE: &[&str] = &["kimi_linear", "lfm2_moe", "minimax_m3_vl"];
const MIXTRAL: &[&str] = &["mixtral", "minimax", "minimax_m2", "phimoe"];
/// Models for which vLLM loads adapters of stacks (`is_3d_moe_weight`).
/// And Qwen4-Exp, of which PEFT takes nothing else inside a model that sees.
const STACKED: &[&str] = &[
    "gpt_oss",
    "qwen3_vl_moe",
    "qwen3_5_moe",
    "qwen3_omni_moe",
    "qwen3_omni_moe_thinker",
    "interns1_pro",
    "qwen4_exp",
];

/// One of the two tensors of a stack of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Projection {
    GateUp,
    Down,
}

impl Projection {
    fn name(self) -> &'static str {
        match self {
            Projection::GateUp => "gate_up_proj",
            Projection::Down => "down_proj",
        }
    }
}

/// The parsed name of a stack of experts.
#[derive(Clone, Debug)]
pub(crate) struct Stack {
    /// The path up to and including `experts`.
    path: String,
    projection: Projection,
}

impl Experts {
    /// The layout of models of these types (the model's and its text model's) with this `hidden_size`.
    pub fn of(model_types: &[&str], hidden: Option<usize>) -> Experts {
        let is =
            |list: &[&str]| model_types.iter().any(|name| list.contains(&name.trim_end_matches("_text")));
        let whole = |list: &[&str]| model_types.iter().any(|name| list.contains(name));
        let mixtral = is(MIXTRAL) || whole(MIXTRAL_AS_A_WHOLE);
        let form = if mixtral || is(SINGLE) || whole(SINGLE_AS_A_WHOLE) {
            ExpertForm::Single
        } else {
            ExpertForm::Stacked
        };
        Experts {
            form,
            joins: is(STACKED),
            turned: is(&["gpt_oss"]),
            interleaved: is(&["gpt_oss"]),
            mixtral,
            spelling: match () {
                () if is(&["granitemoe", "granitemoeshared", "granitemoehybrid"]) => Spelling::Granite,
                () if is(&["aria"]) => Spelling::Aria,
                () => Spelling::Usual,
            },
            none: is(&["llama4"]),
            hidden,
        }
    }

    /// What adapters for the model hold.
    pub fn form(&self) -> ExpertForm {
        self.form
    }

    /// The stack that a tensor belongs to, by its name without the suffix that a format appends.
    pub(crate) fn stack(&self, stem: &str) -> Option<Stack> {
        let (path, last) = stem.rsplit_once('.')?;
        let inside = path == "experts" || path.ends_with(".experts");
        let at = |names: [&str; 2]| names.iter().position(|name| *name == last);
        let usual = at(["gate_up_proj", "down_proj"]).filter(|_| inside);
        let (path, at) = match self.spelling {
            _ if usual.is_some() => (path.to_owned(), usual?),
            Spelling::Usual => return None,
            Spelling::Aria => (path.to_owned(), at(["fc1", "fc2"]).filter(|_| inside)?),
            // The module that holds them is called `experts` in transformers alone.
            Spelling::Granite => {
                let path = path.ends_with("block_sparse_moe").then(|| format!("{path}.experts"))?;
                (path, at(["input_linear", "output_linear"])?)
            }
        };
        let projection = [Projection::GateUp, Projection::Down][at];
        (!self.none).then_some(Stack { path, projection })
    }

    /// Whether a stack with slices of this shape is `[in, out]`: determined by its own shape, else by that of its
    /// `sibling`.
    pub(crate) fn is_turned(&self, stack: &Stack, shape: [usize; 2], sibling: Option<[usize; 2]>) -> bool {
        let tells = |projection, [rows, columns]: [usize; 2]| {
            let (first, second) = (Some(rows) == self.hidden, Some(columns) == self.hidden);
            // The hidden size is the input of one tensor and the output of the other.
            (first != second).then_some((projection == Projection::GateUp) == first)
        };
        let other = match stack.projection {
            Projection::GateUp => Projection::Down,
            Projection::Down => Projection::GateUp,
        };
        let by_sibling = || sibling.and_then(|shape| tells(other, shape));
        tells(stack.projection, shape).or_else(by_sibling).unwrap_or(self.turned)
    }

    /// The modules of a stack whose slices are `slices`, in the order of the experts.
    ///
    /// # Errors
    /// A fused weight with an odd number of rows.
    pub(crate) fn modules(
        &self,
        stack: &Stack,
        slices: impl Iterator<Item = ExpertSlice>,
        quantized: bool,
    ) -> Result<Vec<FoundWeight>> {
        let mut found = Vec::new();
        for (index, slice) in slices.enumerate() {
            let rows = slice.shape()[0];
            let mut add =
                |module, weight| found.push(FoundWeight { module, weight: Arc::new(weight), quantized });
            match (self.form, stack.projection) {
                (ExpertForm::Stacked, projection) => {
                    add(format!("{}.{}.{index}", stack.path, projection.name()), slice);
                }
                (ExpertForm::Single, Projection::Down) => add(self.single(&stack.path, index, 2), slice),
                (ExpertForm::Single, Projection::GateUp) if rows % 2 == 0 => {
                    add(self.single(&stack.path, index, 0), slice.clone().rows(0..rows / 2));
                    add(self.single(&stack.path, index, 1), slice.rows(rows / 2..rows));
                }
                (ExpertForm::Single, Projection::GateUp) => {
                    let what = format!("{rows} rows is not a whole number of pairs of gate and up");
                    return Err(Error::input(what).tensor(&slice.tensors()[0].name));
                }
            }
        }
        Ok(found)
    }

    /// The module name of one expert's gate (0), up (1) or down (2) projection.
    pub fn single(&self, path: &str, index: usize, projection: usize) -> String {
        if !self.mixtral {
            return format!("{path}.{index}.{}", ["gate_proj", "up_proj", "down_proj"][projection]);
        }
        let stem = path.strip_suffix("mlp.experts").map(|stem| format!("{stem}block_sparse_moe.experts"));
        format!("{}.{index}.{}", stem.as_deref().unwrap_or(path), ["w1", "w3", "w2"][projection])
    }

    /// The place of a single expert's projection in a stack, for models whose adapters hold stacks: the stack's module,
    /// and which half of it the projection is if it is only a half.
    pub fn place_in_stack(&self, module: &str) -> Option<(String, Option<usize>)> {
        let (rest, last) = module.rsplit_once('.').filter(|_| self.joins)?;
        let (path, index) = rest.rsplit_once('.')?;
        if !(path == "experts" || path.ends_with(".experts")) || index.parse::<usize>().is_err() {
            return None;
        }
        match last {
            "gate_proj" | "w1" => Some((format!("{path}.gate_up_proj.{index}"), Some(0))),
            "up_proj" | "w3" => Some((format!("{path}.gate_up_proj.{index}"), Some(1))),
            "gate_up_proj" => Some((format!("{path}.gate_up_proj.{index}"), None)),
            "down_proj" | "w2" => Some((format!("{path}.down_proj.{index}"), None)),
            _ => None,
        }
    }

    /// Joins one expert's gate and up into the rows of a stack's module.
    ///
    /// # Errors
    /// The two shapes differ.
    pub fn join(&self, gate_and_up: [Arc<dyn Dequantize>; 2]) -> Result<Arc<dyn Dequantize>> {
        Ok(Arc::new(RowConcat::new(gate_and_up, self.interleaved)?))
    }

    /// Which rows of the joined weight are those of gate (0) or up (1), where each has `rows` of them.
    pub fn rows_of(&self, half: usize, rows: usize) -> RowStride {
        if self.interleaved {
            RowStride { first: half, step: 2 }
        } else {
            RowStride { first: half * rows, step: 1 }
        }
    }

    /// The transpose of one slice, if its format can be read by columns.
    pub(crate) fn turn(&self, slice: Arc<dyn Dequantize>) -> Option<Arc<dyn Dequantize>> {
        Some(Arc::new(Transposed::of(slice)?))
    }
}

#[cfg(test)]
mod tests {
    use super::{ExpertForm, Experts, Projection};

    #[test]
    fn shapes_tell_how_a_stack_lies_else_its_sibling_else_the_model() {
        let experts = |name, hidden| Experts::of(&[name], hidden);
        let turned = |experts: &Experts, name: &str, shape, sibling| {
            experts.is_turned(&experts.stack(&format!("a.experts.{name}")).unwrap(), shape, sibling)
        };
        let vl = experts("qwen3_vl_moe", Some(64));
        assert!(turned(&vl, "gate_up_proj", [64, 48], None));
        assert!(!turned(&vl, "gate_up_proj", [48, 64], None));
        assert!(turned(&vl, "down_proj", [24, 64], None));
        assert!(!turned(&vl, "down_proj", [64, 24], None));
        assert!(turned(&vl, "gate_up_proj", [64, 64], Some([32, 64])), "square: the other one tells");
        assert!(!turned(&vl, "gate_up_proj", [64, 64], None));
        assert!(turned(&experts("gpt_oss", Some(64)), "down_proj", [64, 64], None));
        assert!(experts("llama4_text", None).stack("a.experts.down_proj").is_none());
        let granite = experts("granitemoehybrid", Some(64));
        let stack = granite.stack("l.0.block_sparse_moe.output_linear").unwrap();
        assert_eq!((&*stack.path, stack.projection), ("l.0.block_sparse_moe.experts", Projection::Down));
        assert!(granite.stack("l.0.shared_mlp.input_linear").is_none());
        let stack = experts("aria_text", None).stack("l.0.mlp.experts.fc1").unwrap();
        assert_eq!((&*stack.path, stack.projection), ("l.0.mlp.experts", Projection::GateUp));
    }

    #[test]
    fn forms_and_names_go_by_the_model() {
        let form = |name| Experts::of(&[name], None).form();
        assert_eq!(form("qwen3_moe"), ExpertForm::Single);
        assert_eq!(form("mixtral"), ExpertForm::Single);
        assert_eq!(form("qwen3_vl_moe_text"), ExpertForm::Stacked);
        assert_eq!(form("a_new_one"), ExpertForm::Stacked);
        assert_eq!([form("jamba"), form("minimax_m3_vl")], [ExpertForm::Single; 2]);
        assert_eq!(form("minimax_m3_vl_text"), ExpertForm::Stacked);
        let mixtral = Experts::of(&["mixtral"], None);
        assert_eq!(
            mixtral.single("model.layers.0.mlp.experts", 3, 1),
            "model.layers.0.block_sparse_moe.experts.3.w3"
        );
        let oss = Experts::of(&["gpt_oss"], None);
        let half = |name: &str| oss.place_in_stack(&format!("l.0.mlp.experts.{name}"));
        assert_eq!(half("3.up_proj"), Some(("l.0.mlp.experts.gate_up_proj.3".into(), Some(1))));
        assert_eq!(half("3.down_proj"), Some(("l.0.mlp.experts.down_proj.3".into(), None)));
        assert_eq!(half("x.down_proj"), None);
        assert_eq!(mixtral.place_in_stack("experts.0.w1"), None);
    }
}
