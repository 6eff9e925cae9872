//! GGUF block formats: Q4_0 to Q8_0, the K-quants, the IQ and TQ types, MXFP4 and NVFP4.
//!
//! A row is a whole number of blocks, each with its own scales: 32 values with one scale, or 256 (a K-quant) in eight
//! or sixteen parts whose scales are themselves codes under the block's scale. The IQ types keep places in tables of
//! eight or four values, and signs beside them. The arithmetic is that of gguf-py's `gguf/quants.py`
//! (`dequantize_blocks`), in f32 with each product and sum rounded: `d * q`, `d * q + m`, `(d * sc) * q - (dmin * m)`.
//!
//! A file stores a quantized tensor as bytes, and so does its [`TensorInfo`]: U8 `[out, bytes of a row]`.
//!
//! llama.cpp's rotary embedding pairs neighbours where Hugging Face's pairs halves of a head. For the architecture
//! `llama` its converter therefore stores the rows of Q and K in another order, which [`Permuted`] undoes.
//!
//! The experts of a layer lie in three stacks `[experts, out, in]`, whose slices are weights of their own.

mod blocks;
mod codebook;
mod grids;
mod permuted;
mod small;
mod types;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

pub use self::types::GgmlType;

use self::permuted::Permuted;
use crate::Result;
use crate::quant::expert::slice::ExpertSlice;
use crate::quant::format::dense::Dense;
use crate::quant::weight::{Capabilities, Dequantize, Format, FoundWeight, SchemeKind, TensorInfo, Tensors};
use crate::shared::Name;

/// What a GGUF file says about a weight, or a stack of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The type of its elements.
    pub kind: GgmlType,
    /// `[out, in]`, of one expert where it is a stack.
    pub shape: [usize; 2],
    /// The number of rows in a head, if rows are permuted: even, and a divisor of `out`.
    pub head: Option<usize>,
    /// The modules of a stack `[experts, out, in]`, one for each expert; empty for a single weight.
    pub experts: Vec<String>,
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
        let is_stack = !layout.experts.is_empty();
        let shape = if is_stack { lead.shape.get(1..).unwrap_or_default() } else { &lead.shape };
        let one = TensorInfo { shape: shape.into(), ..lead.clone() };
        let plain: Option<Arc<dyn Dequantize>> = Dense::new(&one).map(|dense| Arc::new(dense) as _);
        let quantized = plain.is_none();
        let weight = plain
            .unwrap_or_else(|| Arc::new(Blocks { kind: layout.kind, shape: layout.shape, tensor: [one] }));
        let weight = match layout.head {
            None => weight,
            Some(head) => Arc::new(Permuted { head, weight }),
        };
        if !is_stack {
            return Ok(vec![FoundWeight { module: module.to_owned(), weight, quantized }]);
        }
        let expert = |(index, module): (usize, &String)| {
            let stack = vec![lead.clone()];
            let slice = ExpertSlice::of_stack(Arc::clone(&weight), Arc::clone(&weight), stack, index);
            FoundWeight { module: module.clone(), weight: Arc::new(slice), quantized }
        };
        Ok(layout.experts.iter().enumerate().map(expert).collect())
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
        let (bytes, out) = (parts[0], out);
        match self.kind {
            GgmlType::Q4_0 => blocks::each(bytes, out, blocks::q4_0),
            GgmlType::Q4_1 => blocks::each(bytes, out, blocks::q4_1),
            GgmlType::Q5_0 => blocks::each(bytes, out, blocks::q5_0),
            GgmlType::Q5_1 => blocks::each(bytes, out, blocks::q5_1),
            GgmlType::Q8_0 => blocks::each(bytes, out, blocks::q8_0),
            GgmlType::Q2_K => blocks::each(bytes, out, blocks::q2_k),
            GgmlType::Q3_K => blocks::each(bytes, out, blocks::q3_k),
            GgmlType::Q4_K => blocks::each(bytes, out, blocks::q4_k),
            GgmlType::Q5_K => blocks::each(bytes, out, blocks::q5_k),
            GgmlType::Q6_K => blocks::each(bytes, out, blocks::q6_k),
            GgmlType::IQ1_S => blocks::each(bytes, out, codebook::iq1_s),
            GgmlType::IQ1_M => blocks::each(bytes, out, codebook::iq1_m),
            GgmlType::IQ2_XXS => blocks::each(bytes, out, codebook::iq2_xxs),
            GgmlType::IQ2_XS => blocks::each(bytes, out, codebook::iq2_xs),
            GgmlType::IQ2_S => blocks::each(bytes, out, codebook::iq2_s),
            GgmlType::IQ3_XXS => blocks::each(bytes, out, codebook::iq3_xxs),
            GgmlType::IQ3_S => blocks::each(bytes, out, codebook::iq3_s),
            GgmlType::IQ4_NL => blocks::each(bytes, out, small::iq4_nl),
            GgmlType::IQ4_XS => blocks::each(bytes, out, small::iq4_xs),
            GgmlType::TQ1_0 => blocks::each(bytes, out, small::tq1_0),
            GgmlType::TQ2_0 => blocks::each(bytes, out, small::tq2_0),
            GgmlType::MXFP4 => blocks::each(bytes, out, small::mxfp4),
            GgmlType::NVFP4 => blocks::each(bytes, out, small::nvfp4),
            plain => panic!("{plain} is not in blocks"),
        }
        Ok(())
    }
}
