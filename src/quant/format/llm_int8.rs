//! LLM.int8 of bitsandbytes: `X.weight` I8 `[out, in]` and `X.SCB` F32 `[out]`, the largest magnitude of each row.
//!
//! The value is `r32(r32(q * SCB) * (1 / 127))`, as in bitsandbytes' `_ops.py:int8_vectorwise_dequant`.

use std::ops::Range;

use safetensors::Dtype;

use crate::quant::declared::{missing, unsupported};
use crate::quant::format::dense::widen;
use crate::quant::number::code_type::Codes;
use crate::quant::weight::{Capabilities, Dequantize, Saturation, TensorInfo, Tensors};
use crate::{Error, Result};

/// bitsandbytes' own reciprocal of 127.
const STEP: f32 = 7.874_016e-3;

/// An LLM.int8 weight.
#[derive(Clone, Debug)]
pub(crate) struct LlmInt8 {
    shape: [usize; 2],
    /// Codes, scales, and `weight_format` if it is stored.
    tensors: Vec<TensorInfo>,
}

impl LlmInt8 {
    /// The weight with the codes `lead`.
    ///
    /// # Errors
    /// `SCB` is missing or has another shape; `weight_format` names a tiled layout instead of rows.
    pub(crate) fn new(lead: &TensorInfo, module: &str, tensors: &dyn Tensors) -> Result<LlmInt8> {
        let name = format!("{module}.weight_format");
        let format = tensors.stored(&name);
        if format.is_some() {
            let layout = tensors.content(&name)?;
            if layout.iter().any(|&byte| byte != 0) {
                return Err(unsupported("LLM.int8 in tiles (weight_format other than 0)").tensor(name));
            }
        }
        let name = format!("{module}.SCB");
        let scale = tensors.stored(&name).ok_or_else(|| missing(lead, &name))?;
        let shape = [lead.shape[0], lead.shape[1]];
        if scale.dtype != Dtype::F32 || scale.shape.iter().product::<usize>() != shape[0] {
            let what = format!(
                "a weight of shape {shape:?} needs a scale F32 [{}]; '{name}' is {}",
                shape[0],
                scale.describe()
            );
            return Err(Error::input(what).tensor(&lead.name).hint("export the checkpoint again"));
        }
        let parts = [Some(lead), Some(scale), format];
        Ok(LlmInt8 { shape, tensors: parts.into_iter().flatten().cloned().collect() })
    }
}

impl Saturation for LlmInt8 {
    fn count(&self, _: Range<usize>, parts: &[&[u8]]) -> Option<(u64, u32)> {
        Some((Codes::Int8.saturated(parts[0], self.shape[1]), 8))
    }
}

impl Dequantize for LlmInt8 {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn spans(&self, rows: Range<usize>) -> Vec<Range<usize>> {
        let mut spans =
            vec![rows.start * self.shape[1]..rows.end * self.shape[1], rows.start * 4..rows.end * 4];
        spans.resize(self.tensors.len(), 0..0);
        spans
    }

    fn capabilities(&self) -> Capabilities<'_> {
        Capabilities {
            needs_all_bytes: false,
            block: Some([1, self.shape[1]]),
            round_to_nearest: None,
            columns: None,
            double: None,
            saturation: Some(self),
            slice: None,
        }
    }

    fn dequantize(&self, rows: Range<usize>, parts: &[&[u8]], out: &mut [f32]) -> Result<()> {
        let columns = self.shape[1];
        assert_eq!(out.len(), rows.len() * columns, "the panel's values");
        let mut scales = vec![0f32; rows.len()];
        widen(Dtype::F32, parts[1], &mut scales);
        let lines = parts[0].chunks_exact(columns).zip(out.chunks_exact_mut(columns));
        for ((codes, out), scale) in lines.zip(scales) {
            out.iter_mut().zip(codes).for_each(|(out, &q)| *out = f32::from(q as i8) * scale * STEP);
        }
        Ok(())
    }
}
