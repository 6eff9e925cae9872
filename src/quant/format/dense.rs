//! Weights stored as plain numbers: BF16, F16, F32, F64.

use std::ops::Range;
use std::sync::Arc;

use half::f16;
use half::slice::HalfFloatSliceExt;
use safetensors::Dtype;

use crate::quant::weight::{
    Capabilities, Dequantize, Double, FoundWeight, Segments, SegmentsF64, TensorInfo,
};
use crate::{Error, Result};

/// A dense `[out, in]` weight, row-major.
#[derive(Clone, Debug)]
pub struct Dense {
    tensor: [TensorInfo; 1],
    shape: [usize; 2],
}

impl Dense {
    /// The decoder of `stored`, or `None` if it is not 2-D or not BF16, F16, F32 or F64.
    pub fn new(stored: &TensorInfo) -> Option<Dense> {
        let &[rows, columns] = stored.shape.as_slice() else { return None };
        let numeric = matches!(stored.dtype, Dtype::BF16 | Dtype::F16 | Dtype::F32 | Dtype::F64);
        numeric.then(|| Dense { tensor: [stored.clone()], shape: [rows, columns] })
    }

    /// The weight `X.weight` of a linear layer, as a module.
    pub(crate) fn find(stored: &TensorInfo) -> Option<FoundWeight> {
        let module = stored.name.strip_suffix(".weight")?.to_owned();
        Some(FoundWeight { module, weight: Arc::new(Dense::new(stored)?), quantized: false })
    }

    fn is_f64(&self) -> bool {
        self.tensor[0].dtype == Dtype::F64
    }

    fn row_bytes(&self) -> usize {
        self.shape[1] * self.tensor[0].dtype.bitsize() / 8
    }

    /// The bytes of `columns` in one row, from the bytes of the whole weight.
    fn piece<'a>(&self, row: usize, columns: Range<usize>, bytes: &'a [u8]) -> &'a [u8] {
        let size = self.tensor[0].dtype.bitsize() / 8;
        let line = &bytes[row * self.row_bytes()..][..self.row_bytes()];
        &line[columns.start * size..columns.end * size]
    }
}

impl Segments for Dense {
    fn segment(&self, row: usize, columns: Range<usize>, parts: &[&[u8]], out: &mut [f32]) {
        widen(self.tensor[0].dtype, self.piece(row, columns, parts[0]), out);
    }

    fn in_f64(&self) -> Option<&dyn SegmentsF64> {
        self.is_f64().then_some(self)
    }
}

impl SegmentsF64 for Dense {
    fn segment_f64(&self, row: usize, columns: Range<usize>, parts: &[&[u8]], out: &mut [f64]) {
        widen_f64(self.tensor[0].dtype, self.piece(row, columns, parts[0]), out);
    }
}

impl Dequantize for Dense {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.tensor
    }

    fn spans(&self, rows: Range<usize>) -> Vec<Range<usize>> {
        let row = self.row_bytes();
        let bytes = rows.start * row..rows.end * row;
        vec![bytes]
    }

    fn capabilities(&self) -> Capabilities<'_> {
        Capabilities {
            needs_all_bytes: false,
            block: None,
            round_to_nearest: None,
            columns: Some(self),
            double: self.is_f64().then_some(self),
            saturation: None,
            slice: None,
        }
    }

    fn dequantize(&self, rows: Range<usize>, parts: &[&[u8]], out: &mut [f32]) -> Result<()> {
        assert_eq!(out.len(), rows.len() * self.shape[1], "the panel's values");
        widen(self.tensor[0].dtype, parts[0], out);
        Ok(())
    }
}

impl Double for Dense {
    fn decode_f64(&self, rows: Range<usize>, parts: &[&[u8]], out: &mut [f64]) -> Result<()> {
        assert_eq!(out.len(), rows.len() * self.shape[1], "the panel's values");
        widen_f64(self.tensor[0].dtype, parts[0], out);
        Ok(())
    }
}

/// Converts little-endian BF16, F16, F32 or F64 bytes, aligned or not, to f32; F64 is rounded to nearest.
///
/// # Panics
/// If `bytes` does not hold exactly `out.len()` numbers, or for another dtype.
pub(crate) fn widen(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        Dtype::BF16 => each(bytes, out, bf16),
        Dtype::F16 => halves(bytes, out),
        Dtype::F32 => each(bytes, out, f32::from_le_bytes),
        Dtype::F64 => each(bytes, out, |b| f64::from_le_bytes(b) as f32),
        other => panic!("{other} is not a dense dtype"),
    }
}

/// The same to f64, exactly.
fn widen_f64(dtype: Dtype, bytes: &[u8], out: &mut [f64]) {
    match dtype {
        Dtype::F64 => each(bytes, out, f64::from_le_bytes),
        Dtype::F32 => each(bytes, out, |b| f64::from(f32::from_le_bytes(b))),
        Dtype::F16 => each(bytes, out, |b| f16::from_le_bytes(b).to_f64()),
        _ => each(bytes, out, |b| f64::from(bf16(b))),
    }
}

/// Converts little-endian BF16, F16, F32 or F64 bytes, aligned or not, to f32.
///
/// # Errors
/// Another dtype, or bytes that are not a whole number of elements.
pub fn to_f32(dtype: Dtype, bytes: &[u8]) -> Result<Vec<f32>> {
    let size = dtype.bitsize() / 8;
    if !matches!(dtype, Dtype::BF16 | Dtype::F16 | Dtype::F32 | Dtype::F64)
        || !bytes.len().is_multiple_of(size)
    {
        return Err(Error::input(format!(
            "{} bytes of {dtype} are not whole BF16, F16, F32 or F64 values",
            bytes.len()
        )));
    }
    let mut values = vec![0.0; bytes.len() / size];
    widen(dtype, bytes, &mut values);
    Ok(values)
}

/// A bf16 is the upper half of an f32.
fn bf16(bytes: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
}

fn each<const N: usize, T>(bytes: &[u8], out: &mut [T], decode: impl Fn([u8; N]) -> T) {
    let (values, rest) = bytes.as_chunks::<N>();
    assert!(rest.is_empty() && values.len() == out.len(), "{} bytes for {} values", bytes.len(), out.len());
    out.iter_mut().zip(values).for_each(|(o, &v)| *o = decode(v));
}

/// F16 through `half`, whose slice conversion uses the processor's own instruction if there is one. It requires aligned
/// numbers, so the bytes pass through a small buffer.
fn halves(bytes: &[u8], out: &mut [f32]) {
    const BLOCK: usize = 1024;
    assert_eq!(bytes.len(), 2 * out.len(), "the bytes of a panel of F16");
    let mut buffer = [f16::ZERO; BLOCK];
    for (bytes, out) in bytes.chunks(2 * BLOCK).zip(out.chunks_mut(BLOCK)) {
        let buffer = &mut buffer[..out.len()];
        each(bytes, buffer, f16::from_le_bytes);
        buffer.convert_to_f32_slice(out);
    }
}
