//! GGUF block formats: Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K.
//!
//! A row is a whole number of blocks, each with its own scales: 32 values with one scale, or 256 (a K-quant) in eight
//! or sixteen parts whose scales are themselves codes under the block's scale. The arithmetic is that of gguf-py's
//! `gguf/quants.py` (`dequantize_blocks`), in f32 with each product and sum rounded: `d * q`, `d * q + m`,
//! `(d * sc) * q - (dmin * m)`.
//!
//! A file stores a quantized tensor as bytes, and so does its [`TensorInfo`]: U8 `[out, bytes of a row]`.
//!
//! llama.cpp's rotary embedding pairs neighbours where Hugging Face's pairs halves of a head. For the architecture
//! `llama` its converter therefore stores the rows of Q and K in another order, which [`Permuted`] undoes.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use half::f16;
use safetensors::Dtype;

use crate::quant::format::dense::Dense;
use crate::quant::weight::{Capabilities, Dequantize, Format, FoundWeight, SchemeKind, TensorInfo, Tensors};
use crate::shared::Name;
use crate::{Error, Result};

/// The type of a GGUF tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, non_camel_case_types, reason = "as ggml names them")]
#[non_exhaustive]
pub enum GgmlType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4_K,
    Q5_K,
    Q6_K,
}

/// The supported types, by ggml's number.
const READ: [(u32, GgmlType); 11] = [
    (0, GgmlType::F32),
    (1, GgmlType::F16),
    (2, GgmlType::Q4_0),
    (3, GgmlType::Q4_1),
    (6, GgmlType::Q5_0),
    (7, GgmlType::Q5_1),
    (8, GgmlType::Q8_0),
    (12, GgmlType::Q4_K),
    (13, GgmlType::Q5_K),
    (14, GgmlType::Q6_K),
    (30, GgmlType::BF16),
];

/// The known types that are refused, by ggml's number.
const REFUSED: [(u32, &str); 23] = [
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl GgmlType {
    /// The type with this number in a GGUF file.
    ///
    /// # Errors
    /// A type that is not supported, by name if it has one.
    pub fn from_id(id: u32) -> Result<GgmlType> {
        if let Some((_, kind)) = READ.iter().find(|(known, _)| *known == id) {
            return Ok(*kind);
        }
        Err(match REFUSED.iter().find(|(known, _)| *known == id) {
            Some((_, name)) => Error::input(format!("GGUF's type {name} is not supported yet"))
                .hint("give the model's original safetensors, or a GGUF of Q4_0, Q4_K, Q5_K, Q6_K, Q8_0, F16 or BF16"),
            None => Error::input(format!("unknown tensor type {id}"))
                .hint("a newer trephine may support it; otherwise the file is damaged: download or copy it again"),
        })
    }

    /// The number of values in a block, and of its bytes.
    pub fn block(self) -> (usize, usize) {
        match self {
            GgmlType::F32 => (1, 4),
            GgmlType::F16 | GgmlType::BF16 => (1, 2),
            GgmlType::Q4_0 => (32, 18),
            GgmlType::Q4_1 => (32, 20),
            GgmlType::Q5_0 => (32, 22),
            GgmlType::Q5_1 => (32, 24),
            GgmlType::Q8_0 => (32, 34),
            GgmlType::Q4_K => (256, 144),
            GgmlType::Q5_K => (256, 176),
            GgmlType::Q6_K => (256, 210),
        }
    }

    /// The dtype of plain numbers; `None` for blocks.
    pub fn plain(self) -> Option<Dtype> {
        match self {
            GgmlType::F32 => Some(Dtype::F32),
            GgmlType::F16 => Some(Dtype::F16),
            GgmlType::BF16 => Some(Dtype::BF16),
            _ => None,
        }
    }
}

/// What a GGUF file says about a 2-D tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The type of its elements.
    pub kind: GgmlType,
    /// `[out, in]`.
    pub shape: [usize; 2],
    /// The number of rows in a head, if rows are permuted: even, and a divisor of `out`.
    pub head: Option<usize>,
}

/// The format of a GGUF file: what its header says about each tensor, by name.
#[derive(Debug)]
pub struct Gguf(BTreeMap<Name, Layout>);

impl Gguf {
    /// The format for these tensors.
    pub fn new(layouts: BTreeMap<Name, Layout>) -> Gguf {
        Gguf(layouts)
    }
}

impl Format for Gguf {
    fn kind(&self) -> SchemeKind {
        SchemeKind::Gguf
    }

    fn label(&self) -> String {
        let mut kinds: Vec<GgmlType> = self.0.values().map(|layout| layout.kind).collect();
        kinds.sort();
        kinds.dedup();
        let kinds: Vec<String> = kinds.iter().map(ToString::to_string).collect();
        format!("GGUF ({})", kinds.join(", "))
    }

    fn weights(&self, lead: &TensorInfo, _: &dyn Tensors) -> Result<Vec<FoundWeight>> {
        let named = lead.name.strip_suffix(".weight").zip(self.0.get(&lead.name));
        let Some((module, layout)) = named else { return Ok(Vec::new()) };
        let plain: Option<Arc<dyn Dequantize>> = Dense::new(lead).map(|dense| Arc::new(dense) as _);
        let quantized = plain.is_none();
        let weight = plain.unwrap_or_else(|| {
            Arc::new(Blocks { kind: layout.kind, shape: layout.shape, tensor: [lead.clone()] })
        });
        let weight = match layout.head {
            None => weight,
            Some(head) => Arc::new(Permuted { head, weight }),
        };
        Ok(vec![FoundWeight { module: module.to_owned(), weight, quantized }])
    }
}

/// A weight stored in blocks, row by row.
#[derive(Clone, Debug)]
struct Blocks {
    kind: GgmlType,
    shape: [usize; 2],
    tensor: [TensorInfo; 1],
}

impl Dequantize for Blocks {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.tensor
    }

    fn spans(&self, rows: Range<usize>) -> Vec<Range<usize>> {
        let row = self.tensor[0].shape[1];
        let bytes = rows.start * row..rows.end * row;
        vec![bytes]
    }

    fn capabilities(&self) -> Capabilities<'_> {
        Capabilities::DECODING_ONLY
    }

    fn dequantize(&self, rows: Range<usize>, parts: &[&[u8]], out: &mut [f32]) -> Result<()> {
        assert_eq!(out.len(), rows.len() * self.shape[1], "the panel's values");
        assert_eq!(parts[0].len(), rows.len() * self.tensor[0].shape[1], "the panel's bytes");
        match self.kind {
            GgmlType::Q4_0 => each(parts[0], out, q4_0),
            GgmlType::Q4_1 => each(parts[0], out, q4_1),
            GgmlType::Q5_0 => each(parts[0], out, q5_0),
            GgmlType::Q5_1 => each(parts[0], out, q5_1),
            GgmlType::Q8_0 => each(parts[0], out, q8_0),
            GgmlType::Q4_K => each(parts[0], out, q4_k),
            GgmlType::Q5_K => each(parts[0], out, q5_k),
            GgmlType::Q6_K => each(parts[0], out, q6_k),
            plain => panic!("{plain} is not in blocks"),
        }
        Ok(())
    }
}

/// Decodes block after block.
#[inline(always)]
fn each<const B: usize, const N: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; B], &mut [f32; N]),
) {
    for (block, out) in bytes.as_chunks::<B>().0.iter().zip(out.as_chunks_mut::<N>().0) {
        decode(block, out);
    }
}

/// The F16 at byte `at`.
#[inline(always)]
fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

#[inline(always)]
fn number(code: u8) -> f32 {
    f32::from(code)
}

fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half(block, 0);
    out.iter_mut().zip(&block[2..]).for_each(|(out, &q)| *out = f32::from(q as i8) * d);
}

fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half(block, 0);
    nibbles(&block[2..], out, |_, q| d * (number(q) - 8.0));
}

fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    nibbles(&block[4..], out, |_, q| d * number(q) + m);
}

fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = half(block, 0);
    let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    nibbles(&block[6..], out, |i, q| d * (number(q | fifth(high, i)) - 16.0));
}

fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    let high = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
    nibbles(&block[8..], out, |i, q| d * number(q | fifth(high, i)) + m);
}

/// The fifth bit of value `i`, shifted into place.
#[inline(always)]
fn fifth(high: u32, i: usize) -> u8 {
    ((high >> i & 1) << 4) as u8
}

/// The 32 values in 16 bytes: the low nibbles are the first half.
#[inline(always)]
fn nibbles(bytes: &[u8], out: &mut [f32; 32], value: impl Fn(usize, u8) -> f32) {
    let (low, high) = out.split_at_mut(16);
    for (i, ((low, high), &byte)) in low.iter_mut().zip(high).zip(bytes).enumerate() {
        *low = value(i, byte & 15);
        *high = value(i + 16, byte >> 4);
    }
}

/// The scales and minima of the eight parts of a Q4_K or Q5_K block: six bits each in 12 bytes; those of the last four
/// parts are split between the upper bits of the first eight bytes and the nibbles of the last four.
#[inline(always)]
fn parts(block: &[u8]) -> ([f32; 8], [f32; 8]) {
    let (d, dmin, packed) = (half(block, 0), half(block, 2), &block[4..16]);
    let (mut scales, mut minima) = ([0f32; 8], [0f32; 8]);
    for i in 0..4 {
        let (sc, m, last) = (packed[i], packed[i + 4], packed[i + 8]);
        scales[i] = d * number(sc & 63);
        minima[i] = dmin * number(m & 63);
        scales[i + 4] = d * number((last & 15) | (sc >> 2 & 48));
        minima[i + 4] = dmin * number((last >> 4) | (m >> 2 & 48));
    }
    (scales, minima)
}

fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (scales, minima) = parts(block);
    let codes = block[16..].as_chunks::<32>().0;
    for (i, (codes, out)) in codes.iter().zip(out.as_chunks_mut::<64>().0).enumerate() {
        let (low, high) = out.split_at_mut(32);
        let (scale, minimum) = (scales[2 * i], minima[2 * i]);
        low.iter_mut().zip(codes).for_each(|(out, &q)| *out = scale * number(q & 15) - minimum);
        let (scale, minimum) = (scales[2 * i + 1], minima[2 * i + 1]);
        high.iter_mut().zip(codes).for_each(|(out, &q)| *out = scale * number(q >> 4) - minimum);
    }
}

fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (scales, minima) = parts(block);
    let (fifths, codes) = block[16..].split_at(32);
    for (i, (codes, out)) in codes.as_chunks::<32>().0.iter().zip(out.as_chunks_mut::<64>().0).enumerate() {
        let (low, high) = out.split_at_mut(32);
        let (scale, minimum) = (scales[2 * i], minima[2 * i]);
        for ((out, &q), &fifth) in low.iter_mut().zip(codes).zip(fifths) {
            *out = scale * number((q & 15) | (fifth >> (2 * i) & 1) << 4) - minimum;
        }
        let (scale, minimum) = (scales[2 * i + 1], minima[2 * i + 1]);
        for ((out, &q), &fifth) in high.iter_mut().zip(codes).zip(fifths) {
            *out = scale * number((q >> 4) | (fifth >> (2 * i + 1) & 1) << 4) - minimum;
        }
    }
}

/// Two halves of 128 values, each with four parts of 32: the low nibbles of 64 bytes, then the high ones, plus two
/// upper bits from 32 bytes that all four share. A scale covers 16 values.
fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = half(block, 208);
    let (low, rest) = block.split_at(128);
    let (high, scales) = rest.split_at(64);
    for (i, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (half, part) = (i / 4, i % 4);
        let low = &low[half * 64 + part % 2 * 32..][..32];
        let high = &high[half * 32..][..32];
        let scale = |i: usize| d * f32::from(scales[i] as i8);
        let scales = [scale(2 * i), scale(2 * i + 1)];
        for (j, ((out, &low), &high)) in out.iter_mut().zip(low).zip(high).enumerate() {
            let code = (low >> (part / 2 * 4) & 15) | (high >> (part * 2) & 3) << 4;
            *out = scales[j / 16] * (number(code) - 32.0);
        }
    }
}

/// A weight with its rows in llama.cpp's order of Q and K: in each head, row `2 j + k` of the file is row
/// `j + k * head / 2`.
#[derive(Clone, Debug)]
struct Permuted {
    head: usize,
    weight: Arc<dyn Dequantize>,
}

impl Permuted {
    /// All rows of the heads that overlap `rows`.
    fn heads(&self, rows: &Range<usize>) -> Range<usize> {
        if rows.is_empty() {
            return rows.clone();
        }
        rows.start / self.head * self.head..rows.end.next_multiple_of(self.head)
    }

    /// The position of row `row` in the file.
    fn place(&self, row: usize) -> usize {
        let (head, within) = (row / self.head * self.head, row % self.head);
        head + within % (self.head / 2) * 2 + within / (self.head / 2)
    }
}

impl Dequantize for Permuted {
    fn shape(&self) -> [usize; 2] {
        self.weight.shape()
    }

    fn tensors(&self) -> &[TensorInfo] {
        self.weight.tensors()
    }

    fn spans(&self, rows: Range<usize>) -> Vec<Range<usize>> {
        self.weight.spans(self.heads(&rows))
    }

    // GGUF's plain numbers are at most f32, and nobody counts the codes of its blocks.
    fn capabilities(&self) -> Capabilities<'_> {
        Capabilities {
            needs_all_bytes: false,
            block: self.weight.capabilities().block,
            round_to_nearest: None,
            columns: None,
            double: None,
            saturation: None,
            slice: None,
        }
    }

    fn dequantize(&self, rows: Range<usize>, parts: &[&[u8]], out: &mut [f32]) -> Result<()> {
        let columns = self.shape()[1];
        assert_eq!(out.len(), rows.len() * columns, "the panel's values");
        let (first, row_bytes) = (self.heads(&rows).start, self.weight.spans(0..1)[0].len());
        for (row, out) in rows.zip(out.chunks_exact_mut(columns)) {
            let place = self.place(row);
            let bytes = &parts[0][(place - first) * row_bytes..][..row_bytes];
            self.weight.dequantize(place..place + 1, &[bytes], out)?;
        }
        Ok(())
    }
}
