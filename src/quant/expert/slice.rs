//! A part of a larger tensor as a weight of its own: one expert of a stack `[experts, .., ..]`, or some of its rows.

use std::ops::Range;
use std::sync::Arc;

use crate::Result;
use crate::quant::expert::whole_stack::WholeStack;
use crate::quant::weight::{Capabilities, Dequantize, Double, Saturation, Stack, StackSlice, TensorInfo};

/// Consecutive rows of a decoder whose tensors lie one behind the other in larger ones.
#[derive(Clone, Debug)]
pub(crate) struct ExpertSlice {
    inner: Arc<dyn Dequantize>,
    /// The same as it lies in the dense tensor of the whole stack, which may be transposed.
    dense: Arc<dyn Dequantize>,
    /// The stored tensors, whole.
    tensors: Vec<TensorInfo>,
    /// Where in each of them those of `inner` begin, in bytes.
    starts: Vec<usize>,
    /// Which expert it is.
    index: usize,
    /// The rows of `inner`.
    rows: Range<usize>,
}

impl ExpertSlice {
    /// ExpertSlice `index` of `tensors`, each of which holds as many as its first dimension says; `inner` decodes one,
    /// and `dense` does as the dense tensor of the stack has it.
    pub(crate) fn of_stack(
        inner: Arc<dyn Dequantize>,
        dense: Arc<dyn Dequantize>,
        tensors: Vec<TensorInfo>,
        index: usize,
    ) -> ExpertSlice {
        let start = |stored: &TensorInfo| index * bytes(&stored.shape[1..], stored);
        let starts = tensors.iter().map(start).collect();
        let rows = 0..inner.shape()[0];
        ExpertSlice { inner, dense, tensors, starts, index, rows }
    }

    /// The same, but `rows` of it only.
    pub(crate) fn rows(self, rows: Range<usize>) -> ExpertSlice {
        ExpertSlice { rows, ..self }
    }

    /// Rows as `inner` counts them.
    fn inside(&self, rows: Range<usize>) -> Range<usize> {
        self.rows.start + rows.start..self.rows.start + rows.end
    }
}

fn bytes(shape: &[usize], stored: &TensorInfo) -> usize {
    shape.iter().product::<usize>() * stored.dtype.bitsize() / 8
}

impl Dequantize for ExpertSlice {
    fn shape(&self) -> [usize; 2] {
        [self.rows.len(), self.inner.shape()[1]]
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn spans(&self, rows: Range<usize>) -> Vec<Range<usize>> {
        let spans = self.inner.spans(self.inside(rows)).into_iter().zip(&self.starts);
        spans.map(|(span, start)| start + span.start..start + span.end).collect()
    }

    fn capabilities(&self) -> Capabilities<'_> {
        Capabilities::of_rows(&*self.inner, self.rows.start, self)
    }

    fn dequantize(&self, rows: Range<usize>, parts: &[&[u8]], out: &mut [f32]) -> Result<()> {
        self.inner.dequantize(self.inside(rows), parts, out)
    }
}

impl Double for ExpertSlice {
    fn decode_f64(&self, rows: Range<usize>, parts: &[&[u8]], out: &mut [f64]) -> Result<()> {
        self.inner.dequantize_f64(self.inside(rows), parts, out)
    }
}

impl Saturation for ExpertSlice {
    fn count(&self, rows: Range<usize>, parts: &[&[u8]]) -> Option<(u64, u32)> {
        self.inner.saturated(self.inside(rows), parts)
    }
}

impl StackSlice for ExpertSlice {
    fn extents(&self) -> Vec<Range<usize>> {
        self.spans(0..self.rows.len())
    }

    fn stack(&self) -> Option<Stack> {
        let [rows, columns] = self.dense.shape();
        let lead = self.tensors.first()?;
        // Blocks of MXFP4 are the one kind of stack that is not stored under the name of the dense one.
        let name = lead.name.strip_suffix("_blocks").unwrap_or(&lead.name).to_owned();
        let shape = vec![lead.shape.first().copied()?, rows, columns];
        let weight = Arc::new(WholeStack::new(Arc::clone(&self.dense), self.tensors.clone()));
        let turned = !Arc::ptr_eq(&self.inner, &self.dense);
        let (first, own) = (self.index * rows, if turned { 0..rows } else { self.rows.clone() });
        Some(Stack { name, shape, weight, rows: first + own.start..first + own.end, turned })
    }
}
