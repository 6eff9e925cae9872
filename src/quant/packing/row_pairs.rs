//! Four-bit integers of which a byte holds two of one column: `[out / 2, in]`, row `2 o` in the lower nibble and row
//! `2 o + 1` in the upper one, as two's complements. One scale for each group of columns; the value is `r32(q * s)`.

use std::ops::Range;

use safetensors::Dtype;

use crate::quant::format::dense::widen;
use crate::quant::weight::{Capabilities, Dequantize, TensorInfo};
use crate::{Error, Result};

/// A weight in that layout, and its scales `[out, in / group]`.
#[derive(Debug)]
pub(crate) struct RowPairs {
    shape: [usize; 2],
    group: usize,
    tensors: [TensorInfo; 2],
}

impl RowPairs {
    /// The weight with the codes `lead`.
    ///
    /// # Errors
    /// Scales of another shape or dtype.
    pub(crate) fn new(lead: &TensorInfo, scale: &TensorInfo, group: usize) -> Result<RowPairs> {
        let shape = [lead.shape[0] * 2, lead.shape[1]];
        let asked = [shape[0], shape[1].div_ceil(group)];
        let numeric = matches!(scale.dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16);
        if !numeric || scale.shape != asked {
            let what = format!(
                "codes {:?} in groups of {group} need scales {asked:?}; '{}' is {}",
                lead.shape,
                scale.name,
                scale.describe()
            );
            return Err(Error::input(what)
                .tensor(&lead.name)
                .hint("the config and the stored tensors must agree: check that the config belongs to this checkpoint"));
        }
        Ok(RowPairs { shape, group, tensors: [lead.clone(), scale.clone()] })
    }
}

impl Dequantize for RowPairs {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn spans(&self, rows: Range<usize>) -> Vec<Range<usize>> {
        let columns = self.shape[1];
        let scale = self.tensors[1].shape[1] * self.tensors[1].dtype.bitsize() / 8;
        let codes =
            if rows.is_empty() { 0..0 } else { rows.start / 2 * columns..rows.end.div_ceil(2) * columns };
        vec![codes, rows.start * scale..rows.end * scale]
    }

    fn capabilities(&self) -> Capabilities<'_> {
        Capabilities { block: Some([1, self.group]), ..Capabilities::DECODING_ONLY }
    }

    fn dequantize(&self, rows: Range<usize>, parts: &[&[u8]], out: &mut [f32]) -> Result<()> {
        let (columns, groups) = (self.shape[1], self.tensors[1].shape[1]);
        assert_eq!(out.len(), rows.len() * columns, "the panel's values");
        let mut scales = vec![0f32; rows.len() * groups];
        widen(self.tensors[1].dtype, parts[1], &mut scales);
        let first = rows.start / 2;
        for ((row, out), scales) in
            rows.zip(out.chunks_exact_mut(columns.max(1))).zip(scales.chunks_exact(groups.max(1)))
        {
            let codes = &parts[0][(row / 2 - first) * columns..][..columns];
            // The nibble's sign, by an arithmetic shift from the top of a byte.
            let value = |byte: u8| f32::from((byte << (if row % 2 == 0 { 4 } else { 0 })) as i8 >> 4);
            for ((out, codes), scale) in out.chunks_mut(self.group).zip(codes.chunks(self.group)).zip(scales)
            {
                out.iter_mut().zip(codes).for_each(|(out, code)| *out = value(*code) * scale);
            }
        }
        Ok(())
    }
}
