//! MXFP4 as in gpt-oss: experts of E2M1 in blocks of 32 with one exponent each, `X_blocks` U8
//! `[experts, out, in / 32, 16]` and `X_scales` U8 `[experts, out, in / 32]`.
//!
//! The value is `q * 2^(scale - 127)`, which bf16 represents exactly, as in transformers'
//! `integrations/mxfp4.py:convert_moe_packed_tensors` before it transposes: the dense stack is `[experts, in, out]`. A
//! scale of 255 is NaN here, as in the standard, and infinite there.

use std::ops::Range;
use std::sync::Arc;

use safetensors::Dtype;

use crate::quant::declared::missing;
use crate::quant::expert::layout::Experts;
use crate::quant::expert::slice::ExpertSlice;
use crate::quant::number::code_type::Codes;
use crate::quant::number::e8m0::e8m0;
use crate::quant::packing::scaled_codes::ScaledGrid;
use crate::quant::packing::scaled_codes::{Parts, Scales};
use crate::quant::weight::{
    Capabilities, Dequantize, Format, FoundWeight, SchemeKind, Segments, SegmentsF64, TensorInfo, Tensors,
};
use crate::{Error, Result};

/// Values per scale, and the bytes that hold them.
const BLOCK: usize = 32;
const BYTES: usize = 16;

#[derive(Debug)]
struct Mxfp4 {
    experts: Experts,
}

/// The format of `quant_method: "mxfp4"`.
pub(crate) fn format(experts: &Experts) -> Box<dyn Format> {
    Box::new(Mxfp4 { experts: experts.clone() })
}

impl Format for Mxfp4 {
    fn kind(&self) -> SchemeKind {
        SchemeKind::Quantized
    }

    fn label(&self) -> String {
        "MXFP4".to_owned()
    }

    fn weights(&self, lead: &TensorInfo, tensors: &dyn Tensors) -> Result<Vec<FoundWeight>> {
        let (Some(stem), Dtype::U8) = (lead.name.strip_suffix("_blocks"), lead.dtype) else {
            return Ok(Vec::new());
        };
        let disagree = |what: String| {
            Error::input(what).tensor(&lead.name).hint("the file is damaged: download or export it again")
        };
        let Some(stack) = self.experts.stack(stem) else {
            return Err(disagree("MXFP4 blocks that do not belong to a model's experts".to_owned()));
        };
        let &[experts, rows, groups, BYTES] = lead.shape.as_slice() else {
            let what = format!("MXFP4 blocks must be [experts, out, in / 32, 16], not {:?}", lead.shape);
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
        let flat =
            |stored: &TensorInfo, columns| TensorInfo { shape: [rows, columns].into(), ..stored.clone() };
        let parts = Parts::of(flat(lead, groups * BYTES), (Scales::E8m0, flat(scales, groups)));
        let slice: Arc<dyn Dequantize> =
            Arc::new(Blocks(ScaledGrid::new([rows, groups * BLOCK], [1, BLOCK], Codes::E2m1, parts)?));
        let dense = self.experts.turn(Arc::clone(&slice));
        let dense = dense.ok_or_else(|| disagree("MXFP4 blocks that cannot be transposed".to_owned()))?;
        let stored = [lead.clone(), scales.clone()];
        let slices = (0..experts).map(|index| {
            ExpertSlice::of_stack(Arc::clone(&slice), Arc::clone(&dense), stored.to_vec(), index)
        });
        self.experts.modules(&stack, slices, true)
    }
}

/// One expert's weight, which can also be read by columns.
#[derive(Debug)]
struct Blocks(ScaledGrid);

impl Segments for Blocks {
    fn segment(&self, row: usize, columns: Range<usize>, parts: &[&[u8]], out: &mut [f32]) {
        let groups = self.0.shape()[1] / BLOCK;
        let mut values = [0f32; BLOCK];
        for group in columns.start / BLOCK..columns.end.div_ceil(BLOCK) {
            let block = row * groups + group;
            Codes::E2m1.decode(&parts[0][block * BYTES..(block + 1) * BYTES], &mut values);
            let (first, scale) = (group * BLOCK, e8m0(parts[1][block]));
            let (start, end) = (columns.start.max(first), columns.end.min(first + BLOCK));
            let out = out[start - columns.start..end - columns.start].iter_mut();
            out.zip(&values[start - first..]).for_each(|(out, value)| *out = value * scale);
        }
    }

    fn in_f64(&self) -> Option<&dyn SegmentsF64> {
        None
    }
}

impl Dequantize for Blocks {
    fn shape(&self) -> [usize; 2] {
        self.0.shape()
    }

    fn tensors(&self) -> &[TensorInfo] {
        self.0.tensors()
    }

    fn spans(&self, rows: Range<usize>) -> Vec<Range<usize>> {
        self.0.spans(rows)
    }

    fn capabilities(&self) -> Capabilities<'_> {
        Capabilities { columns: Some(self), ..self.0.capabilities() }
    }

    fn dequantize(&self, rows: Range<usize>, parts: &[&[u8]], out: &mut [f32]) -> Result<()> {
        self.0.dequantize(rows, parts, out)
    }
}
