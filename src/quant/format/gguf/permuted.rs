//! Rows of Q and K in llama.cpp's order.

use std::ops::Range;
use std::sync::Arc;

use crate::Result;
use crate::quant::weight::{Capabilities, Dequantize, TensorInfo};

/// A weight with its rows in llama.cpp's order of Q and K: in each head, row `2 j + k` of the file is row
/// `j + k * head / 2`.
#[derive(Clone, Debug)]
pub(super) struct Permuted {
    pub(super) head: usize,
    pub(super) weight: Arc<dyn Dequantize>,
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
