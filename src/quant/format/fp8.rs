//! FP8 with one scale for the whole weight or one per row: `fp8` without a block size, and modelopt's FP8.
//!
//! `X.weight` F8_E4M3 or F8_E5M2 `[out, in]`; `X.weight_scale` (or `X.weight_scale_inv`, `X.scale`) with one number, or
//! `[out]` or `[out, 1]`, as F32, BF16 or F16. The value is `r32(f32(q) * f32(scale))` whichever the name, as in
//! transformers' `integrations/finegrained_fp8.py:Fp8Dequantize`. An `input_scale` is for activations and is not read.

use std::sync::Arc;

use crate::Result;
use crate::quant::declared::missing;
use crate::quant::number::code_type::{Codes, Kind};
use crate::quant::packing::scaled_codes::ScaledGrid;
use crate::quant::packing::scaled_codes::{Parts, Scales};
use crate::quant::weight::{Format, FoundWeight, SchemeKind, TensorInfo, Tensors};

/// What a scale covers, according to the config.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Per {
    Tensor,
    Row,
    /// `quant_method: "fp8"` does not say: a single number covers the tensor, one number per row covers its row.
    Either,
}

#[derive(Debug)]
struct Fp8 {
    label: &'static str,
    per: Per,
    kind: Kind,
    /// Whether values have the dtype of the scale; otherwise they are f32.
    of_scale: bool,
}

/// The format of `quant_method: "fp8"` without a `weight_block_size`.
pub(crate) fn without_blocks(kind: Kind) -> Box<dyn Format> {
    Box::new(Fp8 { label: "FP8 without blocks", per: Per::Either, kind, of_scale: false })
}

/// The same as another library declares it, with values in the dtype of the scale.
pub(crate) fn in_dtype_of_scale(label: &'static str, kind: Kind) -> Box<dyn Format> {
    Box::new(Fp8 { label, per: Per::Either, kind, of_scale: true })
}

/// modelopt's FP8: one scale for the whole weight, or one for each row.
pub(crate) fn of_modelopt(label: &'static str, by_row: bool) -> Result<Box<dyn Format>> {
    let per = if by_row { Per::Row } else { Per::Tensor };
    Ok(Box::new(Fp8 { label, per, kind: Kind::parse(None)?, of_scale: false }))
}

impl Format for Fp8 {
    fn kind(&self) -> SchemeKind {
        SchemeKind::Quantized
    }

    fn label(&self) -> String {
        self.label.to_owned()
    }

    fn weights(&self, lead: &TensorInfo, tensors: &dyn Tensors) -> Result<Vec<FoundWeight>> {
        let (Some(module), Some(codes)) = (lead.name.strip_suffix(".weight"), Codes::of_fp8(lead.dtype))
        else {
            return Ok(Vec::new());
        };
        let &[rows, columns] = lead.shape.as_slice() else { return Ok(Vec::new()) };
        self.kind.check(lead)?;
        let names = ["weight_scale", "weight_scale_inv", "scale"].map(|part| format!("{module}.{part}"));
        let scale = names.iter().find_map(|name| tensors.stored(name));
        let scale = scale.ok_or_else(|| missing(lead, &names[0]))?;
        let by_row = match self.per {
            Per::Tensor => false,
            Per::Row => true,
            Per::Either => scale.shape.iter().product::<usize>() != 1,
        };
        let cell = [if by_row { 1 } else { rows }, columns];
        let parts = Parts::of(lead.clone(), (Scales::Float, scale.clone()));
        let weight = ScaledGrid::new([rows, columns], cell, codes, parts)?;
        let weight = if self.of_scale { weight } else { weight.in_f32() };
        Ok(vec![FoundWeight { module: module.to_owned(), weight: Arc::new(weight), quantized: true }])
    }
}
