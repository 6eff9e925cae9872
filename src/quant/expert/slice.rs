//! A part of a larger tensor as a weight of its own: one expert of a stack `[experts, .., ..]`, or some of its rows.

use std::ops::Range;
use std::sync::Arc;

use crate::Result;
use crate::quant::expert::whole_stack::WholeStack;
use crate::quant::weight::Stack;
use crate::quant::weight::{Dequantize, TensorInfo};

/// Consecutive rows of a decoder whose tensors lie one behind the other in larger ones.
#[derive(Clone, Debug)]
pub(crate) struct Slice {
    inner: Arc<dyn Dequantize>,
    /// The same as it lies in the dense tensor of the whole stack, which may be transposed.
    dense: Arc<dyn Dequantize>,
    /// The stored tensors, whole.
    tensors: Vec<TensorInfo>,
    /// Where in each of them those of `inner` begin, in bytes.
    starts: Vec<usize>,
    /// The rows of `inner`.
    rows: Range<usize>,
}

impl Slice {
    /// Slice `index` of `tensors`, each of which holds as many as its first dimension says; `inner` decodes one, and `dense` does
    /// as the dense tensor of the stack has it.
    pub(crate) fn of_stack(
        inner: Arc<dyn Dequantize>,
        dense: Arc<dyn Dequantize>,
        tensors: Vec<TensorInfo>,
        index: usize,
    ) -> Slice {
        let start = |stored: &TensorInfo| index * bytes(&stored.shape[1..], stored);
        let starts = tensors.iter().map(start).collect();
        let rows = 0..inner.shape()[0];
        Slice { inner, dense, tensors, starts, rows }
    }

    /// The same, but `rows` of it only.
    pub(crate) fn rows(self, rows: Range<usize>) -> Slice {
        Slice { rows, ..self }
    }

    /// Rows as `inner` counts them.
    fn inside(&self, rows: Range<usize>) -> Range<usize> {
        self.rows.start + rows.start..self.rows.start + rows.end
    }
}

fn bytes(shape: &[usize], stored: &TensorInfo) -> usize {
    shape.iter().product::<usize>() * stored.dtype.bitsize() / 8
}

impl Dequantize for Slice {
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

    fn extents(&self) -> Vec<Range<usize>> {
        self.spans(0..self.rows.len())
    }

    fn stack(&self) -> Option<Stack> {
        let [rows, columns] = self.dense.shape();
        let lead = self.tensors.first()?;
        // Blocks of MXFP4 are the one kind of stack that is not stored under the name of the dense one.
        let name = lead.name.strip_suffix("_blocks").unwrap_or(&lead.name).to_owned();
        let shape = [lead.shape.first().copied()?, rows, columns];
        let weight = Arc::new(WholeStack::new(Arc::clone(&self.dense), self.tensors.clone()));
        let turned = !Arc::ptr_eq(&self.inner, &self.dense);
        Some(Stack { name, shape, weight, turned })
    }

    fn dequantize(&self, rows: Range<usize>, parts: &[&[u8]], out: &mut [f32]) -> Result<()> {
        self.inner.dequantize(self.inside(rows), parts, out)
    }

    fn is_whole(&self) -> bool {
        self.inner.is_whole()
    }

    fn block(&self) -> Option<[usize; 2]> {
        self.inner.block()
    }

    fn saturated(&self, rows: Range<usize>, parts: &[&[u8]]) -> Option<(u64, u32)> {
        self.inner.saturated(self.inside(rows), parts)
    }

    fn is_wide(&self) -> bool {
        self.inner.is_wide()
    }

    fn dequantize_f64(&self, rows: Range<usize>, parts: &[&[u8]], out: &mut [f64]) -> Result<()> {
        self.inner.dequantize_f64(self.inside(rows), parts, out)
    }
}
