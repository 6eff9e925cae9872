//! Codes with a grid of scales, `(q - z) * s`: the common form of every integer and FP8 scheme with one scale per
//! tensor, row, group of columns or block.
//!
//! The arithmetic is that of compressed-tensors' `quantization/lifecycle/forward_helpers.py:_dequantize`, in the dtype
//! of the scale: `rT(rT(q - z) * s)` with T the scale's dtype. The difference is exact in each of them (an integer of
//! at most 9 bits).

use crate::quant::number::rounding::round;
use std::ops::Range;

use safetensors::Dtype;

use crate::quant::encode::requantize::RoundToNearest;
use crate::quant::format::dense::widen;
use crate::quant::number::code_type::Codes;
use crate::quant::number::e4m3::E4M3;
use crate::quant::number::e8m0::e8m0;
use crate::quant::weight::{Capabilities, Dequantize, Saturation, TensorInfo};
use crate::simd::{Loop, widest};
use crate::{Error, Result};

/// The most rows of a cell that are quantized at once: a scale for a whole weight would need all of it in memory.
const TALLEST: usize = 128;

/// How the scales are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scales {
    /// F32, BF16 or F16.
    Float,
    /// U8 or F8_E8M0: an exponent only.
    E8m0,
    /// F8_E4M3, divided in f32 by one F32 for the whole weight.
    Over,
    /// F8_E4M3, multiplied in f32 by one F32 for the whole weight.
    Times,
    /// U8: E4M3, without a scale for the whole.
    E4m3,
    /// F8_E4M3; the codes are multiplied in f32 by the inverse of one F32 for the whole weight first.
    Inverse,
    /// U8: unsigned, five bits of exponent (bias 15) and three of mantissa. 0xFF is NaN.
    UnsignedE5m3,
}

/// How the zero points are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Zeros {
    /// I8, one per scale.
    Int8,
    /// I32 words `[ceil(rows * bits / 32), groups]`, each with the zero points of `32 / bits` consecutive rows, the
    /// lowest first; stored with the same offset as the codes.
    Packed(usize),
    /// I32 words `[ceil(rows * bits / 32), groups]` with the zero points of consecutive rows in one stream, the lowest
    /// bits first, that may cross words; stored with the same offset as the codes.
    Stream(usize),
}

/// The stored tensors of a [`ScaledGrid`].
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    pub weight: TensorInfo,
    pub scale: (Scales, TensorInfo),
    /// One F32, for [`Scales::Over`] and [`Scales::Times`].
    pub global: Option<TensorInfo>,
    pub zeros: Option<(Zeros, TensorInfo)>,
    /// The tensor that held the shape: read when the weight was opened, but still a part of it.
    pub note: Option<TensorInfo>,
    /// I32 `[in]`: the column of scales for each column of the weight.
    pub g_idx: Option<TensorInfo>,
}

impl Parts {
    /// Codes and scales, and nothing else.
    pub(crate) fn of(weight: TensorInfo, scale: (Scales, TensorInfo)) -> Parts {
        Parts { weight, scale, global: None, zeros: None, note: None, g_idx: None }
    }
}

/// A weight `[out, in]` of codes with one scale per cell of `height` by `width`.
#[derive(Clone, Debug)]
pub struct ScaledGrid {
    shape: [usize; 2],
    cell: [usize; 2],
    codes: Codes,
    scales: Scales,
    /// The dtype that values are rounded to.
    dtype: Dtype,
    zeros: Option<Zeros>,
    noted: bool,
    ordered: bool,
    tensors: Vec<TensorInfo>,
}

impl ScaledGrid {
    /// A weight of `shape` with cells of `cell` (rows, columns).
    ///
    /// # Errors
    /// A tensor whose dtype or shape does not match the cells; the error names both.
    pub(crate) fn new(shape: [usize; 2], cell: [usize; 2], codes: Codes, parts: Parts) -> Result<ScaledGrid> {
        let Parts { weight, scale: (scales, scale), global, zeros, note, g_idx } = parts;
        let grid = [shape[0].div_ceil(cell[0]), shape[1].div_ceil(cell[1])];
        let single = grid == [1, 1] && scale.shape.iter().product::<usize>() == 1;
        let rows = grid[1] == 1 && scale.shape == [grid[0]];
        let (dtypes, asked) = match scales {
            Scales::Float => ([Dtype::F32, Dtype::BF16, Dtype::F16], "F32, BF16 or F16"),
            Scales::E8m0 => ([Dtype::U8, Dtype::U8, Dtype::F8_E8M0], "U8 or F8_E8M0"),
            Scales::Over | Scales::Times | Scales::Inverse => ([Dtype::F8_E4M3; 3], "F8_E4M3"),
            Scales::UnsignedE5m3 | Scales::E4m3 => ([Dtype::U8; 3], "U8"),
        };
        if !dtypes.contains(&scale.dtype) || !(scale.shape == grid || single || rows) {
            return Err(disagree(&weight, shape, &scale, grid, asked));
        }
        if let Some(global) =
            global.as_ref().filter(|g| g.dtype != Dtype::F32 || g.shape.iter().any(|&n| n != 1))
        {
            return Err(disagree(&weight, shape, global, [1, 1], "F32"));
        }
        if let Some((kind, zeros)) = &zeros {
            let (dtype, name, shape_of) = match kind {
                Zeros::Int8 => (Dtype::I8, "I8", grid),
                Zeros::Packed(bits) => (Dtype::I32, "I32", [grid[0].div_ceil(32 / bits), grid[1]]),
                Zeros::Stream(bits) => (Dtype::I32, "I32", [(grid[0] * bits).div_ceil(32), grid[1]]),
            };
            let alone = single && zeros.shape.iter().product::<usize>() == 1;
            if zeros.dtype != dtype || !(zeros.shape == shape_of || alone && *kind == Zeros::Int8) {
                return Err(disagree(&weight, shape, zeros, shape_of, name));
            }
        }
        if let Some(g_idx) = g_idx.as_ref().filter(|g| g.dtype != Dtype::I32 || g.shape != [shape[1]]) {
            let what =
                format!("'{}' is {}, but the weight needs I32 [{}]", g_idx.name, g_idx.describe(), shape[1]);
            return Err(Error::input(what).tensor(&weight.name).hint("export the checkpoint again"));
        }
        let kind = zeros.as_ref().map(|(kind, _)| *kind);
        let (dtype, ordered) = match scales {
            Scales::Float => (scale.dtype, g_idx.is_some()),
            // The dtype that the library unpacks these codes to.
            Scales::E8m0 | Scales::Over | Scales::Times | Scales::E4m3 => (Dtype::BF16, g_idx.is_some()),
            Scales::UnsignedE5m3 | Scales::Inverse => (Dtype::F32, g_idx.is_some()),
        };
        let noted = note.is_some();
        let tensors = [Some(weight), Some(scale), global, zeros.map(|(_, stored)| stored), note, g_idx];
        let tensors = tensors.into_iter().flatten().collect();
        Ok(ScaledGrid { shape, cell, codes, scales, dtype, zeros: kind, noted, ordered, tensors })
    }

    /// The same weight with f32 arithmetic, whatever the dtype of the scale.
    pub(crate) fn in_f32(self) -> ScaledGrid {
        ScaledGrid { dtype: Dtype::F32, ..self }
    }

    fn grid_width(&self) -> usize {
        self.shape[1].div_ceil(self.cell[1])
    }

    /// The rows of scales that cover `rows`.
    fn scale_rows(&self, rows: &Range<usize>) -> Range<usize> {
        if rows.is_empty() {
            return 0..0;
        }
        rows.start / self.cell[0]..rows.end.div_ceil(self.cell[0])
    }

    /// The scales for some rows of cells.
    fn scales(&self, parts: &[&[u8]], out: &mut [f32]) {
        let codes = out.iter_mut().zip(parts[1]);
        match self.scales {
            Scales::Float => widen(self.tensors[1].dtype, parts[1], out),
            Scales::E8m0 => codes.for_each(|(out, &code)| *out = e8m0(code)),
            Scales::UnsignedE5m3 => codes.for_each(|(out, &code)| *out = unsigned_e5m3(code)),
            Scales::Inverse | Scales::E4m3 => codes.for_each(|(out, &code)| *out = E4M3[usize::from(code)]),
            Scales::Over | Scales::Times => {
                let global = global(parts);
                codes.for_each(|(out, &code)| {
                    let scale = E4M3[usize::from(code)];
                    *out = if self.scales == Scales::Over { scale / global } else { scale * global };
                });
            }
        }
    }

    /// The rows of `zeros` that these rows of scales need.
    fn zero_rows(kind: Zeros, scales: &Range<usize>) -> Range<usize> {
        match kind {
            Zeros::Int8 => scales.clone(),
            Zeros::Packed(bits) => scales.start / (32 / bits)..scales.end.div_ceil(32 / bits),
            Zeros::Stream(bits) => scales.start * bits / 32..(scales.end * bits).div_ceil(32),
        }
    }

    /// The zero points of one row of scales, where `bytes` holds those of the rows `scales`.
    fn zeros(&self, row: usize, scales: &Range<usize>, bytes: &[u8], out: &mut [f32]) {
        let width = self.grid_width();
        match self.zeros {
            None => {}
            Some(Zeros::Int8) => {
                let bytes = &bytes[(row - scales.start) * width..][..width];
                out.iter_mut().zip(bytes).for_each(|(out, &z)| *out = f32::from(z as i8));
            }
            Some(kind @ Zeros::Stream(bits)) => {
                self.streamed(row, bits, Self::zero_rows(kind, scales).start, bytes, out);
            }
            Some(kind @ Zeros::Packed(bits)) => {
                let first = Self::zero_rows(kind, scales).start;
                let words = &bytes[(row / (32 / bits) - first) * width * 4..][..width * 4];
                let (shift, mask, offset) =
                    (row % (32 / bits) * bits, (1u32 << bits) - 1, 1u32 << (bits - 1));
                for (out, &word) in out.iter_mut().zip(words.as_chunks::<4>().0) {
                    *out = (u32::from_le_bytes(word) >> shift & mask) as f32 - offset as f32;
                }
            }
        }
    }

    /// The same where they are one stream down the rows.
    fn streamed(&self, row: usize, bits: usize, first: usize, bytes: &[u8], out: &mut [f32]) {
        let (width, words) = (self.grid_width(), bytes.as_chunks::<4>().0);
        let (mask, offset) = ((1u32 << bits) - 1, (1u32 << (bits - 1)) as f32);
        let (line, shift) = (row * bits / 32 - first, row * bits % 32);
        for (column, out) in out.iter_mut().enumerate() {
            let word =
                |line: usize| words.get(line * width + column).map_or(0, |word| u32::from_le_bytes(*word));
            let low = word(line) >> shift;
            let over = if shift + bits > 32 { word(line + 1) << (32 - shift) } else { 0 };
            *out = ((low | over) & mask) as f32 - offset;
        }
    }

    /// The columns' groups, or `None` if they are in order: a -1 anywhere means that the index was never filled in.
    fn order(&self, parts: &[&[u8]]) -> Result<Option<Vec<usize>>> {
        let (Some(bytes), Some(stored)) = (parts.last(), self.tensors.last().filter(|_| self.ordered)) else {
            return Ok(None);
        };
        if bytes.as_chunks::<4>().0.contains(&(-1i32).to_le_bytes()) {
            return Ok(None);
        }
        order(stored, bytes, self.grid_width()).map(Some)
    }
}

/// The one scale for the whole weight.
fn global(parts: &[&[u8]]) -> f32 {
    let mut global = [0f32];
    widen(Dtype::F32, parts[2], &mut global);
    global[0]
}

/// The number of an unsigned E5M3 with a bias of 15.
fn unsigned_e5m3(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3), f32::from(code & 7) / 8.0);
    match (code, exponent) {
        (0xff, _) => f32::NAN,
        (_, 0) => mantissa * 2f32.powi(-14),
        _ => (1.0 + mantissa) * 2f32.powi(exponent - 15),
    }
}

/// The group of each column, from an index I32 `[in]`.
///
/// # Errors
/// A group that is not among the `groups` that have scales.
pub(crate) fn order(stored: &TensorInfo, bytes: &[u8], groups: usize) -> Result<Vec<usize>> {
    let known =
        |&bytes: &[u8; 4]| usize::try_from(i32::from_le_bytes(bytes)).ok().filter(|&group| group < groups);
    let order: Option<Vec<usize>> = bytes.as_chunks::<4>().0.iter().map(known).collect();
    order.ok_or_else(|| {
        Error::input(format!("a group index is not among the {groups} that have scales"))
            .tensor(&stored.name)
            .hint("the file is damaged: download or export it again")
    })
}

impl ScaledGrid {
    fn round_to_nearest(&self) -> Option<RoundToNearest> {
        let symmetric = self.zeros.is_none() && self.scales == Scales::Float;
        match (self.codes, self.cell, self.dtype) {
            (Codes::Packed4, [1, group], dtype) if symmetric && !self.ordered => {
                Some(RoundToNearest::Int4 { group, dtype })
            }
            (Codes::E4m3, block, Dtype::F32) if symmetric && block[0] <= TALLEST => {
                Some(RoundToNearest::BlockFp8 { block, scale: self.tensors[1].dtype })
            }
            _ => None,
        }
    }
}

impl Saturation for ScaledGrid {
    fn count(&self, _: Range<usize>, parts: &[&[u8]]) -> Option<(u64, u32)> {
        Some((self.codes.saturated(parts[0], self.shape[1]), self.codes.bits()))
    }
}

impl Dequantize for ScaledGrid {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn spans(&self, rows: Range<usize>) -> Vec<Range<usize>> {
        let scales = self.scale_rows(&rows);
        let row = self.codes.row_bytes(self.shape[1]);
        let scale = self.grid_width() * self.tensors[1].dtype.bitsize() / 8;
        let mut spans = vec![rows.start * row..rows.end * row, scales.start * scale..scales.end * scale];
        if matches!(self.scales, Scales::Over | Scales::Times | Scales::Inverse) {
            spans.push(0..4);
        }
        if let Some(kind) = self.zeros {
            let zeros = Self::zero_rows(kind, &scales);
            let row = self.grid_width() * if kind == Zeros::Int8 { 1 } else { 4 };
            spans.push(zeros.start * row..zeros.end * row);
        }
        if self.noted {
            spans.push(0..0);
        }
        if self.ordered {
            spans.push(0..self.shape[1] * 4);
        }
        spans
    }

    fn capabilities(&self) -> Capabilities<'_> {
        Capabilities {
            needs_all_bytes: false,
            block: Some(self.cell),
            round_to_nearest: self.round_to_nearest(),
            columns: None,
            double: None,
            saturation: Some(self),
            slice: None,
        }
    }

    fn dequantize(&self, rows: Range<usize>, parts: &[&[u8]], out: &mut [f32]) -> Result<()> {
        let (columns, width) = (self.shape[1], self.grid_width());
        assert_eq!(out.len(), rows.len() * columns, "the panel's values");
        if out.is_empty() {
            return Ok(());
        }
        let order = self.order(parts)?;
        let under = self.scale_rows(&rows);
        let mut scales = vec![0f32; under.len() * width];
        self.scales(parts, &mut scales);
        // modelopt's table has no minus zero: subtracting -0 turns it into +0 and leaves every other number unchanged.
        let mut zeros = vec![if self.scales == Scales::Times { -0f32 } else { 0f32 }; width];
        let lines = parts[0].chunks_exact(self.codes.row_bytes(columns)).zip(out.chunks_exact_mut(columns));
        assert_eq!(lines.len(), rows.len(), "the panel's bytes");
        for (row, (codes, out)) in rows.zip(lines) {
            let row = row / self.cell[0];
            let scales = &scales[(row - under.start) * width..][..width];
            self.zeros(row, &under, parts.get(2).copied().unwrap_or(&[]), &mut zeros);
            self.codes.decode(codes, out);
            if self.scales == Scales::Inverse {
                let inverse = 1.0 / global(parts);
                out.iter_mut().for_each(|value| *value *= inverse);
            }
            match &order {
                Some(order) => gathered(out, order, scales, &zeros),
                None => scaled(out, self.cell[1], scales, &zeros),
            }
            round(self.dtype, out);
        }
        Ok(())
    }
}

/// `(q - z) * s`, with one pair for every `width` columns.
pub(crate) fn scaled(out: &mut [f32], width: usize, scales: &[f32], zeros: &[f32]) {
    widest(ScaleRow { out, width, scales, zeros });
}

/// The loop of [`scaled`].
struct ScaleRow<'a> {
    out: &'a mut [f32],
    width: usize,
    scales: &'a [f32],
    zeros: &'a [f32],
}

impl Loop for ScaleRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for ((out, &scale), &zero) in self.out.chunks_mut(self.width).zip(self.scales).zip(self.zeros) {
            // Without a zero point, subtracting +0 leaves every number unchanged, including -0.
            out.iter_mut().for_each(|q| *q = (*q - zero) * scale);
        }
    }
}

/// The same with the pair that `order` gives for each column.
pub(crate) fn gathered(out: &mut [f32], order: &[usize], scales: &[f32], zeros: &[f32]) {
    for (q, &group) in out.iter_mut().zip(order) {
        *q = (*q - zeros[group]) * scales[group];
    }
}

/// The error for a companion that does not match its weight.
pub(crate) fn disagree(
    weight: &TensorInfo,
    shape: [usize; 2],
    part: &TensorInfo,
    asked: [usize; 2],
    dtypes: &str,
) -> Error {
    let asked = format!(
        "a weight of shape {shape:?} needs, according to the config, a companion of shape {asked:?} and dtype \
         {dtypes}; '{}' is {}",
        part.name,
        part.describe()
    );
    Error::input(asked).tensor(&weight.name).hint(
        "the quantization_config and the stored tensors must agree: check that the config belongs to this \
         checkpoint",
    )
}
