//! Two weights of the same inputs as one: `gate_proj` and `up_proj` as the `gate_up_proj` that a model fuses them to.

use std::ops::Range;
use std::sync::Arc;

use crate::quant::weight::{Capabilities, Dequantize, Double, Saturation, Stack, StackSlice, TensorInfo};
use crate::{Error, Result};

/// Which rows of a joined weight are those of one of its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowStride {
    /// The first.
    pub first: usize,
    /// From one to the next.
    pub step: usize,
}

impl RowStride {
    /// Every row.
    pub const ALL: RowStride = RowStride { first: 0, step: 1 };

    /// The row of the whole that is row `row` of the part.
    pub fn of(self, row: usize) -> usize {
        self.first + self.step * row
    }
}

/// The rows of two weights, one behind the other or by turns.
#[derive(Clone, Debug)]
pub struct RowConcat {
    parts: [Arc<dyn Dequantize>; 2],
    tensors: Vec<TensorInfo>,
    interleaved: bool,
}

impl RowConcat {
    /// Joins two weights `[n, in]` to one `[2n, in]`; `interleaved` takes a row of each in turn, as gpt-oss does.
    ///
    /// # Errors
    /// Weights of different shapes.
    pub fn new(parts: [Arc<dyn Dequantize>; 2], interleaved: bool) -> Result<RowConcat> {
        let [first, second] = parts.each_ref().map(|part| part.shape());
        if first != second {
            let what = format!("two weights that are used as one differ in shape: {first:?} and {second:?}");
            return Err(Error::input(what).tensor(&parts[1].tensors()[0].name));
        }
        let tensors = parts.iter().flat_map(|part| part.tensors().to_vec()).collect();
        Ok(RowConcat { parts, tensors, interleaved })
    }

    /// The rows of each part that `rows` needs.
    fn split(&self, rows: &Range<usize>) -> [Range<usize>; 2] {
        if self.interleaved {
            let first = |at: usize| at.div_ceil(2);
            return [first(rows.start)..first(rows.end), rows.start / 2..rows.end / 2];
        }
        let half = self.parts[0].shape()[0];
        let [start, end] = [rows.start, rows.end];
        [start.min(half)..end.min(half), start.max(half) - half..end.max(half) - half]
    }

    /// Decodes both parts by `decode` and puts their rows in order.
    fn decode<T: Copy + Default>(
        &self,
        rows: Range<usize>,
        parts: &[&[u8]],
        out: &mut [T],
        decode: impl Fn(&dyn Dequantize, Range<usize>, &[&[u8]], &mut [T]) -> Result<()>,
    ) -> Result<()> {
        let columns = self.shape()[1];
        let (first, second) = parts.split_at(self.parts[0].tensors().len());
        let [a, b] = self.split(&rows);
        if !self.interleaved {
            let (upper, lower) = out.split_at_mut(a.len() * columns);
            decode(&*self.parts[0], a, first, upper)?;
            return decode(&*self.parts[1], b, second, lower);
        }
        for (part, (turn, bytes)) in [(a, (0, first)), (b, (1, second))] {
            let mut lines = vec![T::default(); part.len() * columns];
            decode(&*self.parts[turn], part, bytes, &mut lines)?;
            let mine = out.chunks_exact_mut(columns.max(1)).skip((rows.start + turn) % 2).step_by(2);
            mine.zip(lines.chunks_exact(columns.max(1))).for_each(|(out, line)| out.copy_from_slice(line));
        }
        Ok(())
    }
}

impl Dequantize for RowConcat {
    fn shape(&self) -> [usize; 2] {
        let [rows, columns] = self.parts[0].shape();
        [2 * rows, columns]
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn spans(&self, rows: Range<usize>) -> Vec<Range<usize>> {
        let split = self.split(&rows);
        self.parts.iter().zip(split).flat_map(|(part, rows)| part.spans(rows)).collect()
    }

    // A block that straddled the parts would round other values together; by columns nobody asks for two parts.
    fn capabilities(&self) -> Capabilities<'_> {
        let [first, second] = self.parts.each_ref().map(|part| part.capabilities());
        Capabilities {
            needs_all_bytes: first.needs_all_bytes || second.needs_all_bytes,
            block: first.block.filter(|block| second.block == Some(*block)),
            round_to_nearest: None,
            columns: None,
            double: first.double.or(second.double).map(|_| self as &dyn Double),
            saturation: first.saturation.and(second.saturation).map(|_| self as &dyn Saturation),
            slice: first.slice.or(second.slice).map(|_| self as &dyn StackSlice),
        }
    }

    fn dequantize(&self, rows: Range<usize>, parts: &[&[u8]], out: &mut [f32]) -> Result<()> {
        self.decode(rows, parts, out, |part, rows, bytes, out| part.dequantize(rows, bytes, out))
    }
}

impl Double for RowConcat {
    fn decode_f64(&self, rows: Range<usize>, parts: &[&[u8]], out: &mut [f64]) -> Result<()> {
        self.decode(rows, parts, out, |part, rows, bytes, out| part.dequantize_f64(rows, bytes, out))
    }
}

impl Saturation for RowConcat {
    fn count(&self, rows: Range<usize>, parts: &[&[u8]]) -> Option<(u64, u32)> {
        let (first, second) = parts.split_at(self.parts[0].tensors().len());
        let [a, b] = self.split(&rows);
        let (a, bits) = self.parts[0].saturated(a, first)?;
        let (b, others) = self.parts[1].saturated(b, second)?;
        (bits == others).then_some((a + b, bits))
    }
}

impl StackSlice for RowConcat {
    fn extents(&self) -> Vec<Range<usize>> {
        self.parts.iter().flat_map(|part| part.extents()).collect()
    }

    /// Two slices are of two stacks.
    fn stack(&self) -> Option<Stack> {
        None
    }
}
