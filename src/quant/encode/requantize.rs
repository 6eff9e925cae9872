//! Quantizes a dense weight and decodes it again in one step, by the scheme of another stored weight: the values that a
//! quantized copy on disk would hold, without writing the copy.

use safetensors::Dtype;

use crate::quant::encode::fp8::{encode_block_fp8, to_e4m3};
use crate::quant::encode::int4::encode_int4;
use crate::quant::number::e4m3::E4M3;
use crate::quant::number::rounding::round;

/// How to quantize: the nearest code, under a scale derived from the largest magnitude.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RoundToNearest {
    /// e4m3 codes in blocks, `value = code * scale` in f32, as [`BlockFp8`](crate::quant::format::BlockFp8) decodes.
    BlockFp8 {
        /// Rows and columns of a block.
        block: [usize; 2],
        /// F32, BF16 or F16: the dtype that the scale is rounded to before the division.
        scale: Dtype,
    },
    /// Symmetric 4-bit integers in groups of columns, `value = code * scale` in the dtype, as compressed-tensors'
    /// `pack-quantized` decodes.
    Int4 {
        /// Columns of a group.
        group: usize,
        /// BF16, F16 or F32: the dtype of the scales and of the arithmetic.
        dtype: Dtype,
    },
}

impl RoundToNearest {
    /// The scheme in words.
    pub fn label(self) -> String {
        match self {
            RoundToNearest::BlockFp8 { block: [height, width], scale } => {
                format!("block FP8 ({height} x {width}, scales in {scale}), round to nearest")
            }
            RoundToNearest::Int4 { group, dtype } => {
                format!("INT4 (groups of {group}, in {dtype}), round to nearest")
            }
        }
    }

    /// Rows that are quantized together: a panel must begin at a multiple of this, and end at one unless it is the
    /// last.
    pub fn band(self) -> usize {
        match self {
            RoundToNearest::BlockFp8 { block, .. } => block[0],
            RoundToNearest::Int4 { .. } => 1,
        }
    }

    /// Bytes of the buffers that [`apply`](Self::apply) needs for this many values.
    pub fn scratch(self, values: usize) -> usize {
        values + values / 8
    }

    /// Quantizes `values` `[rows, columns]`, row-major, and replaces them with the decoded codes.
    ///
    /// # Panics
    /// If `values` is not a whole number of rows.
    pub fn apply(self, values: &mut [f32], columns: usize) {
        let rows = values.len() / columns.max(1);
        if values.is_empty() {
            return;
        }
        match self {
            RoundToNearest::BlockFp8 { block, scale } => {
                let grid = columns.div_ceil(block[1]);
                let (mut codes, mut scales) =
                    (vec![0u8; values.len()], vec![0f32; rows.div_ceil(block[0]) * grid]);
                encode_block_fp8(values, columns, block, &mut codes, &mut scales);
                let rounded = scale != Dtype::F32;
                round(scale, &mut scales);
                for (row, (values, codes)) in
                    values.chunks_exact_mut(columns).zip(codes.chunks_exact(columns)).enumerate()
                {
                    let scales = &scales[row / block[0] * grid..][..grid];
                    let blocks = values.chunks_mut(block[1]).zip(codes.chunks(block[1])).zip(scales);
                    for ((values, codes), &scale) in blocks {
                        for (value, &code) in values.iter_mut().zip(codes) {
                            let code = if rounded { to_e4m3(*value / scale) } else { code };
                            *value = E4M3[usize::from(code)] * scale;
                        }
                    }
                }
            }
            RoundToNearest::Int4 { group, dtype } => {
                let grid = columns.div_ceil(group);
                let (mut codes, mut scales) = (vec![0i8; values.len()], vec![0f32; rows * grid]);
                encode_int4(values, columns, group, dtype, &mut codes, &mut scales);
                let lines = values.chunks_exact_mut(columns).zip(codes.chunks_exact(columns));
                for ((values, codes), scales) in lines.zip(scales.chunks_exact(grid)) {
                    for ((values, codes), scale) in
                        values.chunks_mut(group).zip(codes.chunks(group)).zip(scales)
                    {
                        values.iter_mut().zip(codes).for_each(|(v, &code)| *v = f32::from(code) * scale);
                    }
                    round(dtype, values);
                }
            }
        }
    }
}
