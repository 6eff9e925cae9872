//! From the config's declaration to the format: the registry of supported methods, and the error for all others.

use std::sync::Arc;

use crate::quant::declared::Declared;
use crate::quant::declared::unsupported;
use safetensors::Dtype;

use crate::quant::expert::layout::Experts;
use crate::quant::expert::stack;
use crate::quant::format::dense::Dense;
use crate::quant::format::{
    auto_round, bitsandbytes, block_fp8, compressed, gptq_awq, mlx, modelopt, mxfp4, quanto,
};
use crate::quant::recognize::recognized;
use crate::quant::weight::{Format, FoundWeight, SchemeKind, TensorInfo, Tensors};
use crate::{Error, Result};

/// Builds the format of a declared method.
type Build = fn(&Declared, &Experts) -> Result<Box<dyn Format>>;

/// The supported methods, by `quant_method`.
const REGISTRY: &[(&str, Build)] = &[
    ("fp8", |declared, _| block_fp8::from_config(declared)),
    ("mxfp8", |declared, _| block_fp8::from_config(declared)),
    ("compressed-tensors", |declared, _| compressed::from_config(declared)),
    ("bitsandbytes", |declared, _| bitsandbytes::from_config(declared)),
    ("modelopt", |declared, _| modelopt::from_config(declared)),
    ("gptq", |declared, _| gptq_awq::gptq(declared)),
    ("awq", |declared, _| gptq_awq::awq(declared)),
    ("auto-round", |declared, _| auto_round::from_config(declared)),
    ("intel/auto-round", |declared, _| auto_round::from_config(declared)),
    ("mlx", |declared, _| mlx::from_config(declared)),
    ("quanto", |declared, _| Ok(quanto::from_config(declared))),
    ("mxfp4", |_, experts| Ok(mxfp4::format(experts))),
];

/// How a checkpoint's weights are stored; dense by default.
#[derive(Debug, Default)]
pub struct Scheme {
    format: Option<Box<dyn Format>>,
    experts: Experts,
}

impl Scheme {
    /// The scheme of a checkpoint with this declaration; `None` means dense. Stacks of experts are laid out as those of
    /// an unknown model, see [`with_experts`](Self::with_experts).
    ///
    /// # Errors
    /// As [`with_experts`](Self::with_experts).
    pub fn from_config(declared: Option<&Declared>) -> Result<Scheme> {
        Scheme::with_experts(declared, Experts::default())
    }

    /// The same for a model whose experts have the layout `experts`.
    ///
    /// # Errors
    /// A method that is not supported is refused by name, with a hint.
    pub fn with_experts(declared: Option<&Declared>, experts: Experts) -> Result<Scheme> {
        let Some(declared) = declared else { return Ok(Scheme { format: None, experts }) };
        let method = declared.method().ok_or_else(|| {
            Error::input(format!("the quantization declared by {} has no quant_method", declared.origin))
                .hint("add its `quant_method`, or dequantize the model to bf16 and give that folder")
        })?;
        match REGISTRY.iter().find(|(name, _)| *name == method) {
            Some((_, build)) => Ok(Scheme { format: Some(build(declared, &experts)?), experts }),
            None => Err(unsupported(&method)),
        }
    }

    /// The scheme of a checkpoint whose files themselves say which format they have.
    pub fn of(format: Box<dyn Format>) -> Scheme {
        Scheme { format: Some(format), experts: Experts::default() }
    }

    /// How the model's experts are laid out.
    pub fn experts(&self) -> &Experts {
        &self.experts
    }

    /// What callers need to know of the scheme beyond its label.
    pub fn kind(&self) -> SchemeKind {
        self.format.as_ref().map_or(SchemeKind::Dense, |format| format.kind())
    }

    /// The scheme's name, for messages and tables.
    pub fn label(&self) -> String {
        self.format.as_ref().map_or_else(|| "dense".to_owned(), |format| format.label())
    }

    /// The weights whose first stored tensor is `lead`; empty for a norm, a bias, a scale, or a tensor without
    /// elements.
    ///
    /// # Errors
    /// A weight that is quantized by its dtype or name, but whose quantization is not declared or whose scale is
    /// missing.
    pub fn weights(&self, lead: &TensorInfo, tensors: &dyn Tensors) -> Result<Vec<FoundWeight>> {
        // There is nothing to decode, and the other dimension may be any number.
        if lead.shape.contains(&0) {
            return Ok(Vec::new());
        }
        if let Some(format) = &self.format {
            let found = format.weights(lead, tensors)?;
            if !found.is_empty() {
                return Ok(found);
            }
        }
        if let Some(found) = Dense::find(lead) {
            return Ok(vec![found]);
        }
        if self.experts.is_parameter(&lead.name)
            && let Some(weight) = Dense::new(lead)
        {
            let module = lead.name.to_string();
            return Ok(vec![FoundWeight { module, weight: Arc::new(weight), quantized: false }]);
        }
        let found = stack::weights(&self.experts, self.format.as_deref(), lead, tensors)?;
        if !found.is_empty() {
            return Ok(found);
        }
        if looks_quantized(lead) {
            return Err(self.unexplained(lead));
        }
        Ok(Vec::new())
    }

    fn unexplained(&self, lead: &TensorInfo) -> Error {
        let declared = match &self.format {
            Some(format) => format!("which the declared quantization, {}, does not cover", format.label()),
            None => "but nothing declares how it is quantized".to_owned(),
        };
        let known = recognized(&lead.name, lead.dtype);
        let looks = known.map_or_else(String::new, |known| format!(" (its name is that of {})", known.name));
        let what = format!("a weight is stored as {}{looks}, {declared}", lead.describe());
        Error::input(what).tensor(&lead.name).hint(
            "put the model's own config.json, with its quantization_config, beside the weights, or dequantize \
             the model to bf16 and give that folder",
        )
    }
}

/// Whether only a quantized weight can have this name and dtype. Names of expert stacks do not end in `.weight`.
pub(crate) fn looks_quantized(stored: &TensorInfo) -> bool {
    let packed = [".qweight", ".weight_packed", "_proj_blocks"].iter().any(|end| stored.name.ends_with(end));
    let stack = [".experts.gate_up_proj", ".experts.down_proj"].iter().any(|end| stored.name.ends_with(end));
    is_code(stored.dtype) && (packed || stack || stored.name.ends_with(".weight") && stored.shape.len() == 2)
}

/// Whether weights of this dtype are codes with scales: integers and the small floating-point numbers.
pub(crate) fn is_code(dtype: Dtype) -> bool {
    use Dtype::*;
    matches!(
        dtype,
        F4 | F6_E2M3
            | F6_E3M2
            | F8_E4M3
            | F8_E5M2
            | F8_E4M3FNUZ
            | F8_E5M2FNUZ
            | I8
            | U8
            | I16
            | U16
            | I32
            | U32
    )
}
