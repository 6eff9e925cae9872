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
//! with single experts. Where only PEFT takes a stack, it is adapted as PEFT wraps it: Llama 4's as they lie,
//! `[E, H, 2I]` and `[E, I, H]`; JetMoE's `input_linear` and `output_linear`; Nemotron-H's experts, which have no gate,
//! as two stacks of single ones; Ernie 4.5-VL's, whose first half is for text and whose second is for images, as two
//! pairs of stacks; Step-3.7's gate and up, two stacks of the files, as one. DBRX's three matrices, in which the
//! experts lie one below the other, are weights of their own. PEFT and vLLM expect three 2-D projections per expert for
//! the first two families above, and one pair of factors per stack for the others.

use std::sync::Arc;

use crate::quant::expert::slice::ExpertSlice;
use crate::quant::packing::row_concat::{RowConcat, RowStride};
use crate::quant::packing::transposed::Transposed;
use crate::quant::weight::{Dequantize, FoundWeight};
use crate::shared::number_in_name;
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
    /// `input_linear.weight` and `output_linear.weight`, also of the attention's experts, in the model too.
    JetMoe,
    /// `moe.gate_proj.weight`, `moe.up_proj.weight` and `moe.down_proj.weight`: three stacks.
    Step,
    /// `experts.up_proj` and `.down_proj`, in the model too: experts without a gate.
    Gateless,
    /// As in the model, and `shared_experts.gate_proj`, `.up_proj` and `.down_proj` too.
    WithShared,
}

/// How a layer's single experts are spread over the stacks of the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Spread {
    /// One stack has all.
    #[default]
    One,
    /// The first half is the text's, `text_moe.experts`, the second the image's, `vision_moe.experts`.
    TextAndVision,
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
    /// As in Mixtral: other names for a single expert's projections.
    mixtral: bool,
    /// Whether what holds such experts is called `ffn`, and not `block_sparse_moe`.
    ffn: bool,
    /// What the two stacks are called in files.
    spelling: Spelling,
    /// Whether a stack is wrapped as it lies in the files, even if that is `[in, out]`.
    as_stored: bool,
    /// Whether experts are matrices in which they lie one below the other.
    parameters: bool,
    /// How a layer's single experts are spread over the model's stacks.
    spread: Spread,
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
const MIXTRAL_AS_A_WHOLE: &[&str] = &["deepseek_v4", "kimi_linear", "lfm2_moe", "minimax_m3_vl"];
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

/// The parsed name of a stack of experts.
#[derive(Clone, Debug)]
pub(crate) struct Stack {
    /// The path up to and including `experts`.
    path: String,
    projection: Projection,
    /// What its modules are called: of a stack of the model `{path}.{name}.7`, of one that is a part of such a stack
    /// `{path}.7.{name}`.
    name: &'static str,
    is_part: bool,
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
            joins: is(STACKED) || is(&["nemotron_h", "ernie4_5_vl_moe", "step3p7"]),
            turned: is(&["gpt_oss"]),
            interleaved: is(&["gpt_oss"]),
            mixtral,
            ffn: is(&["deepseek_v4"]),
            spelling: match () {
                () if is(&["granitemoe", "granitemoeshared", "granitemoehybrid"]) => Spelling::Granite,
                () if is(&["aria"]) => Spelling::Aria,
                () if is(&["jetmoe"]) => Spelling::JetMoe,
                () if is(&["step3p7"]) => Spelling::Step,
                () if is(&["nemotron_h"]) => Spelling::Gateless,
                // Inside the model with towers the files have their rows in another order.
                () if whole(&["inkling_text"]) && !whole(&["inkling_mm_model"]) => Spelling::WithShared,
                () => Spelling::Usual,
            },
            as_stored: is(&["llama4", "jetmoe", "nemotron_h"]),
            parameters: is(&["dbrx"]),
            spread: if is(&["ernie4_5_vl_moe"]) { Spread::TextAndVision } else { Spread::One },
            hidden,
        }
    }

    /// What adapters for the model hold.
    pub fn form(&self) -> ExpertForm {
        self.form
    }

    /// The stack that a tensor belongs to, by its name without the suffix that a format appends.
    pub(crate) fn stack(&self, stem: &str) -> Option<Stack> {
        const USUAL: [&str; 2] = ["gate_up_proj", "down_proj"];
        const LINEAR: [&str; 2] = ["input_linear", "output_linear"];
        const APART: [&str; 3] = ["down_proj", "gate_proj", "up_proj"];
        let (path, last) = stem.rsplit_once('.')?;
        let inside = path == "experts" || path.ends_with(".experts");
        let at = |names: &[&str]| names.iter().position(|name| *name == last);
        let usual = at(&USUAL).filter(|_| inside);
        let (path, at, names) = match self.spelling {
            Spelling::Gateless => {
                (path.to_owned(), at(&["up_proj", "down_proj"]).filter(|_| inside)?, ["up_proj", "down_proj"])
            }
            _ if usual.is_some() => (path.to_owned(), usual?, USUAL),
            Spelling::WithShared => {
                let at = at(&APART).filter(|_| path.ends_with(".shared_experts"))?;
                let projection = if at == 0 { Projection::Down } else { Projection::GateUp };
                return Some(Stack { path: path.to_owned(), projection, name: APART[at], is_part: false });
            }
            Spelling::Usual => return None,
            Spelling::Aria => (path.to_owned(), at(&["fc1", "fc2"]).filter(|_| inside)?, USUAL),
            Spelling::JetMoe => (path.to_owned(), at(&LINEAR)?, LINEAR),
            // The module that holds them is called `experts` in transformers alone.
            Spelling::Granite => {
                let path = path.ends_with("block_sparse_moe").then(|| format!("{path}.experts"))?;
                (path, at(&LINEAR)?, USUAL)
            }
            Spelling::Step => {
                let path = (path == "moe" || path.ends_with(".moe")).then(|| format!("{path}.experts"))?;
                let at = at(&APART)?;
                let projection = if at == 0 { Projection::Down } else { Projection::GateUp };
                return Some(Stack { path, projection, name: APART[at], is_part: at > 0 });
            }
        };
        let projection = [Projection::GateUp, Projection::Down][at];
        Some(Stack { path, projection, name: names[at], is_part: false })
    }

    /// Whether a matrix of this name is a weight though it is a parameter and no linear layer: DBRX's experts.
    pub(crate) fn is_parameter(&self, name: &str) -> bool {
        self.parameters
            && ["w1", "v1", "w2"].iter().any(|kind| name.ends_with(&format!(".experts.mlp.{kind}")))
    }

    /// Whether a stack with slices of this shape is `[in, out]`: determined by its own shape, else by that of its
    /// `sibling`.
    pub(crate) fn is_turned(&self, stack: &Stack, shape: [usize; 2], sibling: Option<[usize; 2]>) -> bool {
        let tells = |projection, [rows, columns]: [usize; 2]| {
            let (first, second) = (Some(rows) == self.hidden, Some(columns) == self.hidden);
            // The hidden size is the input of one tensor and the output of the other.
            (first != second).then_some((projection == Projection::GateUp) == first)
        };
        if self.as_stored {
            return false;
        }
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
                (ExpertForm::Stacked, _) if stack.is_part => {
                    add(format!("{}.{index}.{}", stack.path, stack.name), slice);
                }
                (ExpertForm::Stacked, _) => add(format!("{}.{}.{index}", stack.path, stack.name), slice),
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
        let owner = if self.ffn { "ffn" } else { "block_sparse_moe" };
        let stem = path.strip_suffix("mlp.experts").map(|stem| format!("{stem}{owner}.experts"));
        format!("{}.{index}.{}", stem.as_deref().unwrap_or(path), ["w1", "w3", "w2"][projection])
    }

    /// The place of a single expert's projection in a stack, for models whose adapters hold stacks: the stack's module,
    /// and which half of it the projection is if it is only a half. `count` tells how many experts there are under a
    /// path.
    pub fn place_in_stack(
        &self,
        module: &str,
        count: impl Fn(&str) -> usize,
    ) -> Option<(String, Option<usize>)> {
        let (path, index, last) = expert_of(module).filter(|_| self.joins)?;
        let half = count(path).div_ceil(2);
        let (path, index) = match self.spread {
            Spread::One => (path.to_owned(), index),
            Spread::TextAndVision => {
                let (owner, index) =
                    if index < half { ("text_moe", index) } else { ("vision_moe", index - half) };
                (format!("{}{owner}.experts", path.strip_suffix("experts").unwrap_or(path)), index)
            }
        };
        match last {
            "up_proj" if self.spelling == Spelling::Gateless => {
                Some((format!("{path}.up_proj.{index}"), None))
            }
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

/// The parts of a module that is a projection of one expert, for example `model.layers.0.mlp.experts.7.up_proj`: the
/// path of the layer's experts (`model.layers.0.mlp.experts`), the expert's number, and the projection.
pub fn expert_of(module: &str) -> Option<(&str, usize, &str)> {
    let (rest, projection) = module.rsplit_once('.')?;
    let (layer, expert) = rest.rsplit_once('.')?;
    let inside = layer == "experts" || layer.ends_with(".experts");
    Some((layer, number_in_name(expert).filter(|_| inside)?, projection))
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
        assert!(!turned(&experts("llama4_text", Some(64)), "down_proj", [24, 64], None), "as PEFT has it");
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
        let deepseek = Experts::of(&["deepseek_v4"], None);
        assert_eq!(deepseek.single("model.layers.0.mlp.experts", 0, 2), "model.layers.0.ffn.experts.0.w2");
        let oss = Experts::of(&["gpt_oss"], None);
        let half = |name: &str| oss.place_in_stack(&format!("l.0.mlp.experts.{name}"), |_| 4);
        assert_eq!(half("3.up_proj"), Some(("l.0.mlp.experts.gate_up_proj.3".into(), Some(1))));
        assert_eq!(half("3.down_proj"), Some(("l.0.mlp.experts.down_proj.3".into(), None)));
        assert_eq!(half("x.down_proj"), None);
        assert_eq!(mixtral.place_in_stack("experts.0.w1", |_| 1), None);
        let ernie = Experts::of(&["ernie4_5_vl_moe"], None);
        let place = |name: &str| ernie.place_in_stack(&format!("l.0.mlp.experts.{name}"), |_| 4).unwrap();
        assert_eq!(place("1.up_proj"), ("l.0.mlp.text_moe.experts.gate_up_proj.1".into(), Some(1)));
        assert_eq!(place("2.down_proj"), ("l.0.mlp.vision_moe.experts.down_proj.0".into(), None));
        let nemotron = Experts::of(&["nemotron_h"], None);
        assert_eq!(
            nemotron.place_in_stack("l.0.mixer.experts.5.up_proj", |_| 8),
            Some(("l.0.mixer.experts.up_proj.5".into(), None))
        );
        let stack = nemotron.stack("l.0.mixer.experts.up_proj").unwrap();
        assert_eq!((&*stack.path, stack.name), ("l.0.mixer.experts", "up_proj"));
        let step = Experts::of(&["step3p7"], None);
        let stack = step.stack("model.layers.3.moe.up_proj").unwrap();
        assert_eq!(
            (&*stack.path, stack.name, stack.is_part),
            ("model.layers.3.moe.experts", "up_proj", true)
        );
        assert!(Experts::of(&["jetmoe"], None).stack("l.0.self_attention.experts.output_linear").is_some());
    }
}
