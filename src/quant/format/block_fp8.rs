//! Fine-grained (block) FP8, as in Qwen3-*-FP8 and DeepSeek-V3: `X.weight` F8_E4M3 or F8_E5M2 `[out, in]`, with one
//! scale per block in `X.weight_scale_inv` `[ceil(out / height), ceil(in / width)]`.
//!
//! The value is `r32(f32(q) * f32(scale))`: despite its name, the scale is multiplied. This is what DeepSeek-V3's
//! `inference/kernel.py:weight_dequant`, compressed-tensors' `FP8BlockDequantizer` and transformers' `Fp8Dequantize`
//! compute.

use crate::quant::number::e8m0::e8m0;
use std::ops::Range;
use std::sync::Arc;

use safetensors::Dtype;
use serde_json::Value;

use crate::quant::declared::Declared;
use crate::quant::declared::unsupported;
use crate::quant::encode::requantize::RoundToNearest;
use crate::quant::format::dense::widen;
use crate::quant::format::fp8;
use crate::quant::number::code_type::{Codes, Kind};
use crate::quant::number::e4m3::e4m3;
use crate::quant::number::e5m2::e5m2;
use crate::quant::weight::{
    Capabilities, Dequantize, Format, FoundWeight, Saturation, SchemeKind, Segments, SegmentsF64, TensorInfo,
    Tensors,
};
use crate::simd::{Loop, widest};
use crate::{Error, Result};

/// How a block's scale applies to its codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Semantics {
    Multiply,
    /// One exporter stores reciprocals under the same name and declares `weight_scale_semantics: "inverse"`.
    Divide,
}

/// What the config declares. The block size is taken from the config only, since shapes do not determine it: 576 rows
/// with 5 rows of scales give no whole quotient, and 192 rows with 2 give the wrong one.
#[derive(Clone, Copy, Debug)]
struct Fp8 {
    height: usize,
    width: usize,
    semantics: Semantics,
    kind: Kind,
}

/// The format of `quant_method: "fp8"`; without a `weight_block_size`, the one of `fp8.rs`.
///
/// # Errors
/// A `fmt` other than e4m3 and e5m2, and reciprocal scales without a `weight_block_size`, are refused by name. A block
/// size that is not two positive numbers, or unknown scale semantics, is bad input.
pub(crate) fn from_config(declared: &Declared) -> Result<Box<dyn Format>> {
    let bad = |what: String| {
        Error::input(format!("{}: {what}", declared.origin)).hint("correct the quantization_config")
    };
    let kind = Kind::parse(declared.text("fmt"))?;
    let Some(size) = declared.raw.get("weight_block_size").filter(|size| !size.is_null()) else {
        return match declared.raw.get("weight_scale_semantics") {
            None | Some(Value::Null) => Ok(fp8::without_blocks(kind)),
            Some(_) => Err(unsupported("inverse FP8 scales without a weight_block_size")),
        };
    };
    let side =
        |i| size.get(i).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0);
    let (Some(height), Some(width), None) = (side(0), side(1), size.get(2)) else {
        return Err(bad(format!("weight_block_size is {size}, not two positive numbers")));
    };
    let semantics = match declared.raw.get("weight_scale_semantics") {
        None | Some(Value::Null) => Semantics::Multiply,
        Some(Value::String(word)) if word == "inverse" => Semantics::Divide,
        Some(other) => return Err(bad(format!("unknown weight_scale_semantics: {other}"))),
    };
    Ok(Box::new(Fp8 { height, width, semantics, kind }))
}

impl Format for Fp8 {
    fn kind(&self) -> SchemeKind {
        match self.semantics {
            Semantics::Multiply => SchemeKind::BlockFp8 { rows: self.height, columns: self.width },
            Semantics::Divide => SchemeKind::Quantized,
        }
    }

    fn label(&self) -> String {
        let inverse = if self.semantics == Semantics::Divide { ", inverse scales" } else { "" };
        format!("block FP8 ({} x {}{inverse})", self.height, self.width)
    }

    fn weights(&self, lead: &TensorInfo, tensors: &dyn Tensors) -> Result<Vec<FoundWeight>> {
        let (Some(module), Some(_)) = (lead.name.strip_suffix(".weight"), Codes::of_fp8(lead.dtype)) else {
            return Ok(Vec::new());
        };
        if lead.shape.len() != 2 {
            return Ok(Vec::new());
        }
        self.kind.check(lead)?;
        let names = ["weight_scale_inv", "scale", "qscale_weight"].map(|part| format!("{module}.{part}"));
        let scale = names.iter().find_map(|name| tensors.stored(name)).ok_or_else(|| {
            Error::input(format!("a weight is stored as {} without its scale, '{}'", lead.describe(), names[0]))
                .tensor(&lead.name)
                .hint("the scale is missing from the files or from the index: download or export the checkpoint again")
        })?;
        let weight = Arc::new(BlockFp8::new(*self, lead, scale)?);
        Ok(vec![FoundWeight { module: module.to_owned(), weight, quantized: true }])
    }
}

/// A block FP8 weight `[out, in]` and its scales.
#[derive(Clone, Debug)]
pub struct BlockFp8 {
    format: Fp8,
    tensors: [TensorInfo; 2],
    shape: [usize; 2],
}

impl BlockFp8 {
    fn new(format: Fp8, weight: &TensorInfo, scale: &TensorInfo) -> Result<BlockFp8> {
        let shape = [weight.shape[0], weight.shape[1]];
        let grid = [shape[0].div_ceil(format.height), shape[1].div_ceil(format.width)];
        let known = matches!(scale.dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16 | Dtype::F8_E8M0 | Dtype::U8);
        if !known || scale.shape != grid {
            let asked = format!(
                "a weight of shape {shape:?} in blocks of {} x {} needs a scale of shape {grid:?} and dtype F32, BF16, F16, \
                 F8_E8M0 or U8; '{}' is {}",
                format.height,
                format.width,
                scale.name,
                scale.describe()
            );
            return Err(Error::input(asked).tensor(&weight.name).hint(
                "weight_block_size in the config and the stored scales must agree: check that the config \
                 belongs to this checkpoint",
            ));
        }
        Ok(BlockFp8 { format, tensors: [weight.clone(), scale.clone()], shape })
    }

    fn grid_width(&self) -> usize {
        self.shape[1].div_ceil(self.format.width)
    }

    /// The rows of scales that cover `rows`.
    fn block_rows(&self, rows: &Range<usize>) -> Range<usize> {
        if rows.is_empty() {
            return 0..0;
        }
        rows.start / self.format.height..rows.end.div_ceil(self.format.height)
    }

    /// Decodes one row: `width` codes per scale, the last block possibly shorter.
    fn line(&self, codes: &[u8], scales: &[f32], width: usize, out: &mut [f32]) {
        let (dtype, semantics) = (self.tensors[0].dtype, self.format.semantics);
        widest(Line { dtype, semantics, codes, scales, width, out });
    }

    /// Known where the scale is a float that multiplies, under codes E4M3.
    fn round_to_nearest(&self) -> Option<RoundToNearest> {
        let scale = self.tensors[1].dtype;
        let known =
            matches!(scale, Dtype::F32 | Dtype::BF16 | Dtype::F16) && self.tensors[0].dtype == Dtype::F8_E4M3;
        let block = [self.format.height, self.format.width];
        (known && self.format.semantics == Semantics::Multiply)
            .then_some(RoundToNearest::BlockFp8 { block, scale })
    }

    fn scales(&self, bytes: &[u8]) -> Vec<f32> {
        match self.tensors[1].dtype {
            Dtype::F8_E8M0 | Dtype::U8 => bytes.iter().map(|&code| e8m0(code)).collect(),
            dtype => {
                let mut scales = vec![0f32; bytes.len() * 8 / dtype.bitsize()];
                widen(dtype, bytes, &mut scales);
                scales
            }
        }
    }
}

impl Segments for BlockFp8 {
    fn segment(&self, row: usize, columns: Range<usize>, parts: &[&[u8]], out: &mut [f32]) {
        let (width, size) = (self.format.width, self.tensors[1].dtype.bitsize() / 8);
        let codes = &parts[0][row * self.shape[1]..][..self.shape[1]];
        let scales = &parts[1][row / self.format.height * self.grid_width() * size..];
        let (mut start, mut rest) = (columns.start, out);
        while start < columns.end {
            let end = ((start / width + 1) * width).min(columns.end);
            let (now, later) = rest.split_at_mut(end - start);
            let scale = self.scales(&scales[start / width * size..][..size]);
            let codes = &codes[start..end];
            self.line(codes, &scale, end - start, now);
            (start, rest) = (end, later);
        }
    }

    fn in_f64(&self) -> Option<&dyn SegmentsF64> {
        None
    }
}

impl Saturation for BlockFp8 {
    fn count(&self, _: Range<usize>, parts: &[&[u8]]) -> Option<(u64, u32)> {
        let codes = Codes::of_fp8(self.tensors[0].dtype)?;
        Some((codes.saturated(parts[0], self.shape[1]), codes.bits()))
    }
}

impl Dequantize for BlockFp8 {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn spans(&self, rows: Range<usize>) -> Vec<Range<usize>> {
        let blocks = self.block_rows(&rows);
        let row = self.grid_width() * self.tensors[1].dtype.bitsize() / 8;
        vec![rows.start * self.shape[1]..rows.end * self.shape[1], blocks.start * row..blocks.end * row]
    }

    fn capabilities(&self) -> Capabilities<'_> {
        Capabilities {
            needs_all_bytes: false,
            block: Some([self.format.height, self.format.width]),
            round_to_nearest: self.round_to_nearest(),
            columns: Some(self),
            double: None,
            saturation: Some(self),
            slice: None,
        }
    }

    fn dequantize(&self, rows: Range<usize>, parts: &[&[u8]], out: &mut [f32]) -> Result<()> {
        let (columns, grid) = (self.shape[1], self.grid_width());
        let blocks = self.block_rows(&rows);
        let scales = self.scales(parts[1]);
        assert_eq!(out.len(), rows.len() * columns, "the panel's values");
        assert_eq!((parts[0].len(), scales.len()), (out.len(), blocks.len() * grid), "the panel's bytes");
        if out.is_empty() {
            return Ok(());
        }
        let lines = parts[0].chunks_exact(columns).zip(out.chunks_exact_mut(columns));
        for (row, (codes, out)) in rows.zip(lines) {
            let block = row / self.format.height - blocks.start;
            let scales = &scales[block * grid..][..grid];
            self.line(codes, scales, self.format.width, out);
        }
        Ok(())
    }
}

/// [`BlockFp8::line`].
struct Line<'a> {
    dtype: Dtype,
    semantics: Semantics,
    codes: &'a [u8],
    scales: &'a [f32],
    width: usize,
    out: &'a mut [f32],
}

impl Loop for Line<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let blocks = self.codes.chunks(self.width).zip(self.out.chunks_mut(self.width));
        for ((codes, out), &scale) in blocks.zip(self.scales) {
            let pairs = out.iter_mut().zip(codes);
            match (self.dtype, self.semantics) {
                (Dtype::F8_E5M2, Semantics::Multiply) => pairs.for_each(|(out, &q)| *out = e5m2(q) * scale),
                (Dtype::F8_E5M2, Semantics::Divide) => pairs.for_each(|(out, &q)| *out = e5m2(q) / scale),
                (_, Semantics::Multiply) => pairs.for_each(|(out, &q)| *out = e4m3(q) * scale),
                (_, Semantics::Divide) => pairs.for_each(|(out, &q)| *out = e4m3(q) / scale),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::e8m0;

    #[test]
    fn exponents() {
        assert_eq!(e8m0(127), 1.0);
        assert_eq!(e8m0(0), 2f32.powi(-127));
        assert_eq!(e8m0(1), 2f32.powi(-126));
        assert_eq!(e8m0(254), 2f32.powi(127));
        assert!(e8m0(255).is_nan());
    }
}
