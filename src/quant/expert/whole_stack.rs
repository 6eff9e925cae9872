//! A whole stack of experts as the one dense tensor `[experts, .., ..]` that it becomes when it is dequantized.

use std::ops::Range;
use std::sync::Arc;

use crate::Result;
use crate::quant::weight::{Capabilities, Dequantize, Double, TensorInfo};

/// The slices of a stack, one below the other.
#[derive(Clone, Debug)]
pub(crate) struct WholeStack {
    /// One slice, as it lies in the dense tensor.
    one: Arc<dyn Dequantize>,
    experts: usize,
    /// The stored tensors, whole.
    tensors: Vec<TensorInfo>,
}

impl WholeStack {
    /// Of `tensors`, each of which holds as many of those of `one` as its first dimension says.
    pub(crate) fn new(one: Arc<dyn Dequantize>, tensors: Vec<TensorInfo>) -> WholeStack {
        let experts = tensors.first().and_then(|lead| lead.shape.first()).copied().unwrap_or(0);
        WholeStack { one, experts, tensors }
    }

    /// Rows of the stack as the experts that they belong to, each with its own rows.
    fn split(&self, rows: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> {
        let high = self.one.shape()[0].max(1);
        let experts = if rows.is_empty() { 0..0 } else { rows.start / high..rows.end.div_ceil(high) };
        experts.map(move |expert| {
            let first = expert * high;
            (expert, rows.start.max(first) - first..rows.end.min(first + high) - first)
        })
    }

    /// The spans of one expert's rows within the whole tensors.
    fn spans_of(&self, expert: usize, rows: Range<usize>) -> Vec<Range<usize>> {
        let shift = |(span, stored): (Range<usize>, &TensorInfo)| {
            let start = expert * stored.shape[1..].iter().product::<usize>() * stored.dtype.bitsize() / 8;
            start + span.start..start + span.end
        };
        self.one.spans(rows).into_iter().zip(&self.tensors).map(shift).collect()
    }

    /// Decodes `rows` expert by expert, each by `decode`.
    fn decode<T>(
        &self,
        rows: Range<usize>,
        parts: &[&[u8]],
        out: &mut [T],
        decode: impl Fn(&dyn Dequantize, Range<usize>, &[&[u8]], &mut [T]) -> Result<()>,
    ) -> Result<()> {
        let (columns, whole) = (self.one.shape()[1], self.spans(rows.clone()));
        assert_eq!(out.len(), rows.len() * columns, "the panel's values");
        let mut rest = out;
        for (expert, rows) in self.split(rows) {
            let (now, later) = rest.split_at_mut(rows.len() * columns);
            let spans = self.spans_of(expert, rows.clone()).into_iter().zip(&whole).zip(parts);
            let own: Vec<&[u8]> = spans
                .map(|((span, whole), part)| &part[span.start - whole.start..span.end - whole.start])
                .collect();
            decode(&*self.one, rows, &own, now)?;
            rest = later;
        }
        Ok(())
    }
}

impl Dequantize for WholeStack {
    fn shape(&self) -> [usize; 2] {
        let [rows, columns] = self.one.shape();
        [self.experts * rows, columns]
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn spans(&self, rows: Range<usize>) -> Vec<Range<usize>> {
        let joined = self
            .split(rows)
            .map(|(expert, rows)| self.spans_of(expert, rows))
            .reduce(|all, more| all.into_iter().zip(more).map(|(all, more)| all.start..more.end).collect());
        joined.unwrap_or_else(|| vec![0..0; self.tensors.len()])
    }

    // The whole stack is written, never judged or rounded again.
    fn capabilities(&self) -> Capabilities<'_> {
        let one = self.one.capabilities();
        Capabilities {
            needs_all_bytes: false,
            block: one.block,
            round_to_nearest: None,
            columns: None,
            double: one.double.map(|_| self as &dyn Double),
            saturation: None,
            slice: None,
        }
    }

    fn dequantize(&self, rows: Range<usize>, parts: &[&[u8]], out: &mut [f32]) -> Result<()> {
        self.decode(rows, parts, out, |one, rows, bytes, out| one.dequantize(rows, bytes, out))
    }
}

impl Double for WholeStack {
    fn decode_f64(&self, rows: Range<usize>, parts: &[&[u8]], out: &mut [f64]) -> Result<()> {
        self.decode(rows, parts, out, |one, rows, bytes, out| one.dequantize_f64(rows, bytes, out))
    }
}
