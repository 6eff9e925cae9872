//! MXFP4 as gpt-oss has it: experts of E2M1 in blocks of 32 under an exponent each, `X_blocks` U8 `[experts, out, in / 32, 16]` and
//! `X_scales` U8 `[experts, out, in / 32]`.
//!
//! The value is `q * 2^(scale - 127)`, which every bf16 model holds exactly: transformers' `integrations/mxfp4.py:
//! convert_moe_packed_tensors`, before it transposes. A scale of 255 is NaN here, as the standard has it, and infinite there.

use std::sync::Arc;

use safetensors::Dtype;

use super::codes::Codes;
use super::experts::Experts;
use super::grid::{Parts, Scales};
use super::scheme::missing;
use super::slice::Slice;
use super::{Dequantize, Format, Found, ScaledGrid, Stored, Tensors};
use crate::{Error, Result};

/// Values under one scale, and the bytes that hold them.
const BLOCK: usize = 32;
const BYTES: usize = 16;

#[derive(Debug)]
struct Mxfp4 {
    experts: Experts,
}

/// The format of `quant_method: "mxfp4"`.
pub(super) fn format(experts: &Experts) -> Box<dyn Format> {
    Box::new(Mxfp4 { experts: experts.clone() })
}

impl Format for Mxfp4 {
    fn label(&self) -> String {
        "MXFP4".to_owned()
    }

    fn weights(&self, lead: &Stored, tensors: &dyn Tensors) -> Result<Vec<Found>> {
        let (Some(stem), Dtype::U8) = (lead.name.strip_suffix("_blocks"), lead.dtype) else {
            return Ok(Vec::new());
        };
        let disagree = |what: String| {
            Error::input(what).tensor(&lead.name).hint("the file is damaged: download or export it again")
        };
        let Some(stack) = self.experts.stack(stem) else {
            return Err(disagree("blocks of MXFP4 that are not a model's experts".to_owned()));
        };
        let &[experts, rows, groups, BYTES] = lead.shape.as_slice() else {
            let what = format!("blocks of MXFP4 are [experts, out, in / 32, 16], not {:?}", lead.shape);
            return Err(disagree(what));
        };
        let name = format!("{stem}_scales");
        let scales = tensors.stored(&name).ok_or_else(|| missing(lead, &name))?;
        if scales.dtype != Dtype::U8 || scales.shape != [experts, rows, groups] {
            return Err(disagree(format!(
                "blocks {:?} need scales U8 {:?}; '{name}' is {}",
                lead.shape,
                [experts, rows, groups],
                scales.describe()
            )));
        }
        let flat = |stored: &Stored, columns| Stored { shape: vec![rows, columns], ..stored.clone() };
        let parts = Parts {
            weight: flat(lead, groups * BYTES),
            scale: (Scales::E8m0, flat(scales, groups)),
            global: None,
            zeros: None,
            note: None,
            g_idx: None,
        };
        let one: Arc<dyn Dequantize> =
            Arc::new(ScaledGrid::new([rows, groups * BLOCK], [1, BLOCK], Codes::E2m1, parts)?);
        let stored = [lead.clone(), scales.clone()];
        let slices = (0..experts).map(|index| Slice::of_stack(Arc::clone(&one), stored.to_vec(), index));
        self.experts.modules(&stack, slices, true)
    }
}
