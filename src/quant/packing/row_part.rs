//! Consecutive rows of a weight as a weight of their own: `q_proj` of a matrix that holds `q`, `k` and `v`.

use std::ops::Range;
use std::sync::Arc;

use crate::Result;
use crate::quant::weight::{Capabilities, Dequantize, Double, Saturation, Stack, StackSlice, TensorInfo};

/// Some rows of a weight `[out, in]`.
#[derive(Clone, Debug)]
pub(crate) struct RowPart {
    whole: Arc<dyn Dequantize>,
    /// The name of the whole as a dense tensor.
    name: String,
    rows: Range<usize>,
}

impl RowPart {
    /// `whole`, whose module is `module`, as `count` weights of the same height; `None` where its rows do not divide
    /// so.
    pub(crate) fn split(whole: &Arc<dyn Dequantize>, module: &str, count: usize) -> Option<Vec<RowPart>> {
        let rows = whole.shape()[0];
        let high = rows.checked_div(count).filter(|high| *high > 0 && high * count == rows)?;
        let part = |index| RowPart {
            whole: Arc::clone(whole),
            name: format!("{module}.weight"),
            rows: index * high..(index + 1) * high,
        };
        Some((0..count).map(part).collect())
    }

    /// Rows as the whole counts them.
    fn inside(&self, rows: Range<usize>) -> Range<usize> {
        self.rows.start + rows.start..self.rows.start + rows.end
    }
}

impl Dequantize for RowPart {
    fn shape(&self) -> [usize; 2] {
        [self.rows.len(), self.whole.shape()[1]]
    }

    fn tensors(&self) -> &[TensorInfo] {
        self.whole.tensors()
    }

    fn spans(&self, rows: Range<usize>) -> Vec<Range<usize>> {
        self.whole.spans(self.inside(rows))
    }

    fn capabilities(&self) -> Capabilities<'_> {
        Capabilities::of_rows(&*self.whole, self.rows.start, self)
    }

    fn dequantize(&self, rows: Range<usize>, parts: &[&[u8]], out: &mut [f32]) -> Result<()> {
        self.whole.dequantize(self.inside(rows), parts, out)
    }
}

impl Double for RowPart {
    fn decode_f64(&self, rows: Range<usize>, parts: &[&[u8]], out: &mut [f64]) -> Result<()> {
        self.whole.dequantize_f64(self.inside(rows), parts, out)
    }
}

impl Saturation for RowPart {
    fn count(&self, rows: Range<usize>, parts: &[&[u8]]) -> Option<(u64, u32)> {
        self.whole.saturated(self.inside(rows), parts)
    }
}

impl StackSlice for RowPart {
    fn extents(&self) -> Vec<Range<usize>> {
        self.spans(0..self.rows.len())
    }

    fn stack(&self) -> Option<Stack> {
        Some(Stack {
            name: self.name.clone(),
            shape: self.whole.shape().to_vec(),
            weight: Arc::clone(&self.whole),
            rows: self.rows.clone(),
            turned: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use safetensors::Dtype;

    use super::RowPart;
    use crate::quant::format::dense::Dense;
    use crate::quant::weight::{Dequantize, StackSlice, TensorInfo};

    #[test]
    fn parts_are_rows_of_the_whole() {
        let stored = TensorInfo::new("a.Wqkv.weight", Dtype::F32, vec![6, 2]);
        let whole: Arc<dyn Dequantize> = Arc::new(Dense::new(&stored).unwrap());
        assert!(RowPart::split(&whole, "a.Wqkv", 4).is_none());
        let parts = RowPart::split(&whole, "a.Wqkv", 3).unwrap();
        assert_eq!((parts.len(), parts[1].shape()), (3, [2, 2]));
        assert_eq!(parts[1].spans(1..2).first(), Some(&(24..32)));
        assert_eq!(parts[2].extents().first(), Some(&(32..48)));
        let bytes: Vec<u8> = (0..12u8).flat_map(|i| f32::from(i).to_le_bytes()).collect();
        let mut row = [0.0; 2];
        parts[1].dequantize(1..2, &[&bytes[24..32]], &mut row).unwrap();
        assert_eq!(row, [6.0, 7.0]);
        let stack = parts[1].stack().unwrap();
        assert_eq!((stack.name.as_str(), stack.rows, stack.shape), ("a.Wqkv.weight", 2..4, vec![6, 2]));
    }
}
