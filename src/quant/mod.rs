//! Quantized formats: one file a family, all behind [`Dequantize`]. Nothing here touches a file: bytes in, numbers out.

use std::fmt::Debug;
use std::ops::Range;

use safetensors::Dtype;

use crate::Result;

/// One stored array, as its file's header describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The tensor's name in its file.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Shape, outermost dimension first.
    pub shape: Vec<usize>,
}

/// One logical weight `[out, in]`, decoded in panels of consecutive rows from the bytes of its stored tensors.
pub trait Dequantize: Debug + Send + Sync {
    /// `[out, in]`.
    fn shape(&self) -> [usize; 2];

    /// The stored tensors that make up this weight, the weight itself first.
    fn tensors(&self) -> &[Stored];

    /// For each of [`tensors`](Self::tensors), the bytes of it that `rows` needs (relative to the tensor's start).
    fn spans(&self, rows: Range<usize>) -> Vec<Range<usize>>;

    /// Decodes `rows` into `out` (row-major, `rows.len() * in` values). `parts` holds the bytes that
    /// [`spans`](Self::spans) named for these very rows, in the same order.
    ///
    /// # Errors
    /// What cannot be decoded, as a scale that is NaN by its code, named by tensor.
    fn dequantize(&self, rows: Range<usize>, parts: &[&[u8]], out: &mut [f32]) -> Result<()>;

    /// Whether f32 cannot hold the values exactly as stored, so that differences are to be taken in f64.
    fn is_wide(&self) -> bool {
        false
    }

    /// The same in f64. The default widens the f32 values.
    ///
    /// # Errors
    /// As [`dequantize`](Self::dequantize).
    fn dequantize_f64(&self, rows: Range<usize>, parts: &[&[u8]], out: &mut [f64]) -> Result<()> {
        let mut narrow = vec![0f32; out.len()];
        self.dequantize(rows, parts, &mut narrow)?;
        out.iter_mut().zip(&narrow).for_each(|(o, &v)| *o = f64::from(v));
        Ok(())
    }
}
