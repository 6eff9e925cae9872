//! What a quantized format is, and a logical weight that is decoded in panels.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use safetensors::Dtype;

use crate::Result;
use crate::quant::encode::requantize::RoundToNearest;

/// One stored array, as its file's header describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The tensor's name in its file.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Shape, outermost dimension first.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// Dtype and shape as messages give them: `F8_E4M3 [192, 320]`.
    pub fn describe(&self) -> String {
        format!("{} {:?}", self.dtype, self.shape)
    }
}

/// The largest tensor, in bytes, that is read while a checkpoint is opened.
pub const SMALL: usize = 64 << 10;

/// The tensors of a checkpoint by name: where a format looks up the companions of a weight, whichever file they lie in.
pub trait Tensors {
    /// The tensor of that name.
    fn stored(&self, name: &str) -> Option<&TensorInfo>;

    /// The bytes of a small tensor (at most [`SMALL`]): some formats keep the shape of a weight, or a description of it, in the
    /// content of a tensor beside it.
    ///
    /// # Errors
    /// It is not there, is larger, or cannot be read.
    fn content(&self, name: &str) -> Result<Vec<u8>>;
}

/// A logical weight that a format found.
#[derive(Clone, Debug)]
pub struct FoundWeight {
    /// The module's name: the weight's without its last part (`model.layers.0.mlp.up_proj`).
    pub module: String,
    /// Its decoder.
    pub weight: Arc<dyn Dequantize>,
    /// Whether the stored values are codes that a scale turns into numbers.
    pub quantized: bool,
}

/// A family of quantized formats, made from what the config declares.
pub trait Format: Debug + Send + Sync {
    /// What it is and with which parameters, for messages and tables: `block FP8 (128 x 128)`.
    fn label(&self) -> String;

    /// The weights that `lead` is the first stored tensor of: mostly one; none where `lead` is not of this format, as a
    /// dense weight, a norm or a scale.
    ///
    /// # Errors
    /// A companion is missing or its shape or dtype is not what the config and `lead` ask for.
    fn weights(&self, lead: &TensorInfo, tensors: &dyn Tensors) -> Result<Vec<FoundWeight>>;
}

/// One logical weight `[out, in]`, decoded in panels of consecutive rows from the bytes of its stored tensors.
///
/// Decoding is total: a code or scale that stands for NaN or infinity gives NaN or infinity, which the caller reports,
/// since it knows whether that is to be an error or a zero.
pub trait Dequantize: Debug + Send + Sync {
    /// `[out, in]`.
    fn shape(&self) -> [usize; 2];

    /// The stored tensors that make up this weight, the weight itself first. One whose content was read at opening, as a shape, is
    /// among them, with an empty span.
    fn tensors(&self) -> &[TensorInfo];

    /// For each of [`tensors`](Self::tensors), the bytes of it that `rows` needs (relative to the tensor's start).
    fn spans(&self, rows: Range<usize>) -> Vec<Range<usize>>;

    /// Whether any row needs all of the stored bytes, as one of a weight that is packed along its columns does: the spans are then
    /// those of whole tensors, whatever the rows, and are best mapped once.
    fn is_whole(&self) -> bool {
        false
    }

    /// For each of [`tensors`](Self::tensors), the bytes of it that belong to this weight: all, but for an expert of a stack.
    fn extents(&self) -> Vec<Range<usize>> {
        let bytes = |stored: &TensorInfo| stored.shape.iter().product::<usize>() * stored.dtype.bitsize() / 8;
        self.tensors().iter().map(|stored| 0..bytes(stored)).collect()
    }

    /// The stack of experts that this weight is a slice of, or a part of a slice, where it is one.
    fn stack(&self) -> Option<Stack> {
        None
    }

    /// This weight as one that can be read by columns, where it can.
    fn by_columns(&self) -> Option<&dyn Segments> {
        None
    }

    /// Decodes `rows` into `out` (row-major, `rows.len() * in` values). `parts` holds the bytes that
    /// [`spans`](Self::spans) named for these very rows, in the same order; they need not be aligned.
    ///
    /// # Errors
    /// What cannot be decoded, named by tensor.
    ///
    /// # Panics
    /// If `parts` or `out` are not of the lengths that `rows` asks for.
    fn dequantize(&self, rows: Range<usize>, parts: &[&[u8]], out: &mut [f32]) -> Result<()>;

    /// Rows and columns of the values under one scale, where there is one size for all.
    fn block(&self) -> Option<[usize; 2]> {
        None
    }

    /// How many codes of `rows` are the largest or the smallest that the format has, and the bits of a code. `None` where the weight is
    /// stored without codes, or where nobody counts them. `parts` as for [`dequantize`](Self::dequantize).
    fn saturated(&self, rows: Range<usize>, parts: &[&[u8]]) -> Option<(u64, u32)> {
        let _ = (rows, parts);
        None
    }

    /// Whether f32 cannot hold the values exactly as stored, so that differences are to be taken in f64.
    fn is_wide(&self) -> bool {
        false
    }

    /// How a dense weight would be quantized to be stored like this one, where that can be done by rounding to nearest; `None` of
    /// dense weights, and of schemes that are not known well enough to do the same.
    fn round_to_nearest(&self) -> Option<RoundToNearest> {
        None
    }

    /// [`dequantize`](Self::dequantize) in f64. The default widens the f32 values.
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

/// A weight of which a part of a row can be decoded by itself.
pub trait Segments {
    /// Decodes `columns` of `row` into `out`. `parts` holds the bytes of all rows.
    ///
    /// # Panics
    /// If `parts` or `out` are not of the lengths that this asks for.
    fn segment(&self, row: usize, columns: Range<usize>, parts: &[&[u8]], out: &mut [f32]);

    /// [`segment`](Self::segment) in f64. The default widens the f32 values; a format that [`is_wide`](Dequantize::is_wide) has its
    /// own.
    ///
    /// # Panics
    /// As [`segment`](Self::segment).
    fn segment_f64(&self, row: usize, columns: Range<usize>, parts: &[&[u8]], out: &mut [f64]) {
        let mut narrow = vec![0f32; out.len()];
        self.segment(row, columns, parts, &mut narrow);
        out.iter_mut().zip(&narrow).for_each(|(out, value)| *out = f64::from(*value));
    }
}

/// The stack that a weight is a slice of.
#[derive(Clone, Debug)]
pub struct Stack {
    /// The name of the dense tensor.
    pub name: String,
    /// Its shape, the experts first. A row of `weight` is a row of it.
    pub shape: [usize; 3],
    /// All experts, one below the other.
    pub weight: Arc<dyn Dequantize>,
    /// Whether a slice of the dense tensor is `[in, out]`.
    pub turned: bool,
}
