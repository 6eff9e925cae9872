//! NVFP4 of modelopt: `X.weight` U8 `[out, in / 2]` of E2M1, the lower nibble first, `X.weight_scale` F8_E4M3
//! `[out, in / 16]` and `X.weight_scale_2`, one F32.
//!
//! The value is `rbf(r32(q * r32(scale * scale_2)))`, as in modelopt's `qtensor/nvfp4_tensor.py:dequantize` for a bf16
//! model. The scale of the whole weight is multiplied, where compressed-tensors divides by its own; and code 8 is zero,
//! not minus zero.

use std::sync::Arc;

use safetensors::Dtype;

use crate::Result;
use crate::quant::declared::missing;
use crate::quant::declared::refuse_extra_terms;
use crate::quant::number::code_type::Codes;
use crate::quant::packing::scaled_codes::ScaledGrid;
use crate::quant::packing::scaled_codes::{Parts, Scales};
use crate::quant::weight::{Format, FoundWeight, SchemeKind, TensorInfo, Tensors};

/// Values per group scale; the standard allows no other size.
const GROUP: usize = 16;

/// modelopt's `quant_algo: "NVFP4"`.
#[derive(Debug)]
pub(crate) struct Nvfp4;

impl Format for Nvfp4 {
    fn kind(&self) -> SchemeKind {
        SchemeKind::Quantized
    }

    fn label(&self) -> String {
        "modelopt (NVFP4)".to_owned()
    }

    fn weights(&self, lead: &TensorInfo, tensors: &dyn Tensors) -> Result<Vec<FoundWeight>> {
        let (Some(module), Dtype::U8) = (lead.name.strip_suffix(".weight"), lead.dtype) else {
            return Ok(Vec::new());
        };
        let &[rows, bytes] = lead.shape.as_slice() else { return Ok(Vec::new()) };
        refuse_extra_terms(module, tensors)?;
        let part = |name: &str| {
            let name = format!("{module}.{name}");
            tensors.stored(&name).cloned().ok_or_else(|| missing(lead, &name))
        };
        let scale = (Scales::Times, part("weight_scale")?);
        let global = Some(part("weight_scale_2")?);
        let parts = Parts { weight: lead.clone(), scale, global, zeros: None, note: None, g_idx: None };
        let weight = ScaledGrid::new([rows, bytes * 2], [1, GROUP], Codes::E2m1, parts)?;
        Ok(vec![FoundWeight { module: module.to_owned(), weight: Arc::new(weight), quantized: true }])
    }
}
