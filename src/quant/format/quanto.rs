//! optimum-quanto, which declares itself by a `quanto_qmap.json` beside the weights: `X.weight._data` I8 or FP8
//! `[out, in]` and `X.weight._scale` `[out, 1]`. The value is `rT(q * s)` with T the dtype of the scale.
//!
//! Codes of four and two bits are stored by groups, and nothing in the files says how wide a row of the weight is: they
//! are refused by name.

use std::sync::Arc;

use safetensors::Dtype;

use crate::Result;
use crate::quant::declared::{Declared, missing, unsupported};
use crate::quant::number::code_type::Codes;
use crate::quant::packing::scaled_codes::{Parts, ScaledGrid, Scales};
use crate::quant::weight::{Format, FoundWeight, SchemeKind, TensorInfo, Tensors};

#[derive(Debug)]
struct Quanto;

/// The format that a `quanto_qmap.json` declares. What it says of each module, the dtypes of the tensors say too.
pub(crate) fn from_config(_: &Declared) -> Box<dyn Format> {
    Box::new(Quanto)
}

impl Format for Quanto {
    fn kind(&self) -> SchemeKind {
        SchemeKind::Quantized
    }

    fn label(&self) -> String {
        "optimum-quanto".to_owned()
    }

    fn weights(&self, lead: &TensorInfo, tensors: &dyn Tensors) -> Result<Vec<FoundWeight>> {
        if lead.name.ends_with(".weight._data._data") {
            return Err(unsupported("optimum-quanto of four or two bits").tensor(&lead.name));
        }
        let Some(module) = lead.name.strip_suffix(".weight._data") else { return Ok(Vec::new()) };
        let &[rows, columns] = lead.shape.as_slice() else { return Ok(Vec::new()) };
        let codes = match lead.dtype {
            Dtype::I8 => Codes::Int8,
            dtype => Codes::of_fp8(dtype)
                .ok_or_else(|| unsupported(&format!("optimum-quanto ({dtype})")).tensor(&lead.name))?,
        };
        let name = format!("{module}.weight._scale");
        let scale = tensors.stored(&name).ok_or_else(|| missing(lead, &name))?;
        let whole = scale.shape.iter().product::<usize>() == 1;
        let parts = Parts::of(lead.clone(), (Scales::Float, scale.clone()));
        let weight = ScaledGrid::new([rows, columns], [if whole { rows } else { 1 }, columns], codes, parts)?;
        Ok(vec![FoundWeight { module: module.to_owned(), weight: Arc::new(weight), quantized: true }])
    }
}
