//! A weight that is stored transposed, `[in, out]`, as experts of gpt-oss and Llama 4 are.
//!
//! A logical row is a column of the file, so any panel needs all stored rows: [`spans`](Dequantize::spans) names
//! the tensor whole, and its mapped pages are what a module costs. A panel decodes its own columns alone. They pass
//! through a tile of a few stored rows, so that the output is written in lines and not number by number.

use std::ops::Range;
use std::sync::Arc;

use crate::Result;
use crate::quant::weight::{Capabilities, Dequantize, Double, Segments, TensorInfo};

/// Stored rows in a tile: a line of the cache in the output.
const TILE: usize = 16;

/// The transpose of a decoder that can be read by columns.
#[derive(Clone, Debug)]
pub(crate) struct Transposed(Arc<dyn Dequantize>);

impl Transposed {
    /// The transpose of `stored`, or `None` where its format cannot be read by columns.
    pub(crate) fn of(stored: Arc<dyn Dequantize>) -> Option<Transposed> {
        stored.capabilities().columns.is_some().then_some(Transposed(stored))
    }

    /// Columns `rows` of what is stored, as rows: `segment` decodes its own part of one stored row.
    fn turn<T: Copy + Default>(
        &self,
        rows: Range<usize>,
        out: &mut [T],
        segment: impl Fn(&dyn Segments, usize, Range<usize>, &mut [T]),
    ) {
        let (high, wide) = (self.0.shape()[0], rows.len());
        assert_eq!(out.len(), wide * high, "the panel's values");
        let Some(stored) = self.0.capabilities().columns.filter(|_| !out.is_empty()) else { return };
        let mut tile = vec![T::default(); TILE * wide];
        for start in (0..high).step_by(TILE) {
            let count = TILE.min(high - start);
            for (i, line) in tile.chunks_exact_mut(wide).take(count).enumerate() {
                segment(stored, start + i, rows.clone(), line);
            }
            for (j, line) in out.chunks_exact_mut(high).enumerate() {
                let line = line[start..start + count].iter_mut().enumerate();
                line.for_each(|(i, out)| *out = tile[i * wide + j]);
            }
        }
    }
}

impl Dequantize for Transposed {
    fn shape(&self) -> [usize; 2] {
        let [rows, columns] = self.0.shape();
        [columns, rows]
    }

    fn tensors(&self) -> &[TensorInfo] {
        self.0.tensors()
    }

    fn spans(&self, rows: Range<usize>) -> Vec<Range<usize>> {
        let stored = if rows.is_empty() { 0 } else { self.0.shape()[0] };
        self.0.spans(0..stored)
    }

    // Codes are counted along stored rows, which a panel of columns does not have whole.
    fn capabilities(&self) -> Capabilities<'_> {
        let stored = self.0.capabilities();
        Capabilities {
            needs_all_bytes: true,
            block: stored.block.map(|[rows, columns]| [columns, rows]),
            round_to_nearest: None,
            columns: None,
            double: stored.columns.and_then(|columns| columns.in_f64()).map(|_| self as &dyn Double),
            saturation: None,
            slice: None,
        }
    }

    fn dequantize(&self, rows: Range<usize>, parts: &[&[u8]], out: &mut [f32]) -> Result<()> {
        self.turn(rows, out, |stored, row, columns, out| stored.segment(row, columns, parts, out));
        Ok(())
    }
}

impl Double for Transposed {
    fn decode_f64(&self, rows: Range<usize>, parts: &[&[u8]], out: &mut [f64]) -> Result<()> {
        self.turn(rows, out, |stored, row, columns, out| match stored.in_f64() {
            Some(stored) => stored.segment_f64(row, columns, parts, out),
            None => unreachable!("capabilities() offers f64 only where the columns have it"),
        });
        Ok(())
    }
}
