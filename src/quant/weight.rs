//! What a quantized format is, and a logical weight that is decoded in panels.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use safetensors::Dtype;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::quant::encode::requantize::RoundToNearest;
use crate::shared::{Name, Shape};

/// One stored array, as its file's header describes it. Name and shape are shared among all copies: a checkpoint may
/// have a hundred thousand tensors, each of which is described in its catalogue, its module and its decoder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The tensor's name in its file.
    pub name: Name,
    /// Element type.
    pub dtype: Dtype,
    /// Shape, outermost dimension first.
    pub shape: Shape,
}

impl TensorInfo {
    /// The description of an array.
    pub fn new(name: impl Into<Name>, dtype: Dtype, shape: impl Into<Shape>) -> TensorInfo {
        TensorInfo { name: name.into(), dtype, shape: shape.into() }
    }

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

    /// The bytes of a small tensor (at most [`SMALL`]): some formats keep the shape of a weight, or a description
    /// of it, in the content of a tensor beside it.
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

/// What callers need to know of how a checkpoint is stored, beyond the label that people read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SchemeKind {
    /// Plain numbers.
    Dense,
    /// FP8 codes under one float scale for each block of rows and columns, which multiplies: what `merge --fp8` writes.
    BlockFp8 {
        /// Rows of a block.
        rows: usize,
        /// Columns of a block.
        columns: usize,
    },
    /// A GGUF file, whatever the types of its tensors.
    Gguf,
    /// Any other quantized format.
    Quantized,
}

/// A family of quantized formats, made from what the config declares.
pub trait Format: Debug + Send + Sync {
    /// What callers need to know of the format beyond its label.
    fn kind(&self) -> SchemeKind;

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

    /// The stored tensors that make up this weight, the weight itself first. One whose content was read at opening,
    /// as a shape, is among them, with an empty span.
    fn tensors(&self) -> &[TensorInfo];

    /// For each of [`tensors`](Self::tensors), the bytes of it that `rows` needs (relative to the tensor's start).
    fn spans(&self, rows: Range<usize>) -> Vec<Range<usize>>;

    /// What the weight can do beyond being decoded. It has no default, so that neither a format nor a wrapper can
    /// forget a capability: a wrapper takes over what it passes on by name.
    fn capabilities(&self) -> Capabilities<'_>;

    /// Decodes `rows` into `out` (row-major, `rows.len() * in` values). `parts` holds the bytes that
    /// [`spans`](Self::spans) named for these very rows, in the same order; they need not be aligned.
    ///
    /// # Errors
    /// What cannot be decoded, named by tensor.
    ///
    /// # Panics
    /// If `parts` or `out` are not of the lengths that `rows` asks for.
    fn dequantize(&self, rows: Range<usize>, parts: &[&[u8]], out: &mut [f32]) -> Result<()>;
}

/// What a weight can do beyond being decoded in f32, row by row.
#[derive(Clone, Copy, Debug)]
pub struct Capabilities<'a> {
    /// Whether any row needs all of the stored bytes, as in formats that are packed along columns: the spans are
    /// then those of whole tensors, whatever the rows, and are best mapped once.
    pub needs_all_bytes: bool,
    /// Rows and columns of the values under one scale, where there is one size for all.
    pub block: Option<[usize; 2]>,
    /// How a dense weight would be quantized to be stored like this one, where that can be done by rounding to
    /// nearest; `None` for dense weights, and for schemes that are not known well enough to do the same.
    pub round_to_nearest: Option<RoundToNearest>,
    /// Decoding by columns.
    pub columns: Option<&'a dyn Segments>,
    /// Decoding in f64, where f32 cannot hold the values as stored, so that differences are to be taken in f64.
    pub double: Option<&'a dyn Double>,
    /// Counting the codes at the ends of the format's range; `None` where the weight is stored without codes.
    pub saturation: Option<&'a dyn Saturation>,
    /// The place of this weight in a stack of experts, where it is a slice of one.
    pub slice: Option<&'a dyn StackSlice>,
}

impl Capabilities<'_> {
    /// Of a format whose weights can be decoded and nothing else. Not for wrappers, which have something to pass on.
    pub const DECODING_ONLY: Self = Capabilities {
        needs_all_bytes: false,
        block: None,
        round_to_nearest: None,
        columns: None,
        double: None,
        saturation: None,
        slice: None,
    };

    /// Of `part`, which is the rows of `whole` from `first` on.
    pub(crate) fn of_rows<'a, P>(whole: &dyn Dequantize, first: usize, part: &'a P) -> Capabilities<'a>
    where
        P: Double + Saturation + StackSlice,
    {
        let whole = whole.capabilities();
        // Blocks are rounded by themselves, so rows that begin on the edge of one are rounded as the whole would be.
        let at_edge = whole.block.is_none_or(|[height, _]| first.is_multiple_of(height.max(1)));
        Capabilities {
            needs_all_bytes: whole.needs_all_bytes,
            block: whole.block,
            round_to_nearest: whole.round_to_nearest.filter(|_| at_edge),
            // Whoever transposes does so below the slice.
            columns: None,
            double: whole.double.map(|_| part as &dyn Double),
            saturation: whole.saturation.map(|_| part as &dyn Saturation),
            slice: Some(part),
        }
    }
}

/// A weight that is also decoded in f64.
pub trait Double: Debug {
    /// [`Dequantize::dequantize`] in f64.
    ///
    /// # Errors
    /// As [`Dequantize::dequantize`].
    fn decode_f64(&self, rows: Range<usize>, parts: &[&[u8]], out: &mut [f64]) -> Result<()>;
}

/// A weight whose codes at the ends of the format's range can be counted.
pub trait Saturation: Debug {
    /// How many codes of `rows` are the largest or the smallest that the format has, and the bits of a code. `None`
    /// where it turns out that they cannot be counted. `parts` as for [`Dequantize::dequantize`].
    fn count(&self, rows: Range<usize>, parts: &[&[u8]]) -> Option<(u64, u32)>;
}

/// A weight that is part of larger stored tensors: one expert of a stack, some rows of it, or one of the layers whose
/// rows a matrix holds.
pub trait StackSlice: Debug {
    /// For each of [`Dequantize::tensors`], the bytes of it that belong to this weight.
    fn extents(&self) -> Vec<Range<usize>>;

    /// The stack, where the weight is a slice of exactly one.
    fn stack(&self) -> Option<Stack>;
}

impl dyn Dequantize + '_ {
    /// Whether any row needs all of the stored bytes: [`Capabilities::needs_all_bytes`].
    pub fn is_whole(&self) -> bool {
        self.capabilities().needs_all_bytes
    }

    /// Whether differences are to be taken in f64: [`Capabilities::double`].
    pub fn is_wide(&self) -> bool {
        self.capabilities().double.is_some()
    }

    /// For each of the stored tensors, the bytes of it that belong to this weight: all, but for a slice of a stack.
    pub fn extents(&self) -> Vec<Range<usize>> {
        let bytes = |stored: &TensorInfo| stored.shape.iter().product::<usize>() * stored.dtype.bitsize() / 8;
        let whole = || self.tensors().iter().map(|stored| 0..bytes(stored)).collect();
        self.capabilities().slice.map_or_else(whole, StackSlice::extents)
    }

    /// The codes of `rows` at the ends of the format's range, and the bits of a code: [`Saturation::count`].
    pub fn saturated(&self, rows: Range<usize>, parts: &[&[u8]]) -> Option<(u64, u32)> {
        self.capabilities().saturation?.count(rows, parts)
    }

    /// Decodes `rows` in f64: exactly where [`Capabilities::double`] says so, else by widening the f32 values.
    ///
    /// # Errors
    /// As [`dequantize`](Dequantize::dequantize).
    pub fn dequantize_f64(&self, rows: Range<usize>, parts: &[&[u8]], out: &mut [f64]) -> Result<()> {
        if let Some(double) = self.capabilities().double {
            return double.decode_f64(rows, parts, out);
        }
        let mut narrow = vec![0f32; out.len()];
        self.dequantize(rows, parts, &mut narrow)?;
        out.iter_mut().zip(&narrow).for_each(|(out, &value)| *out = f64::from(value));
        Ok(())
    }
}

/// A weight of which a part of a row can be decoded by itself.
pub trait Segments: Debug {
    /// Decodes `columns` of `row` into `out`. `parts` holds the bytes of all rows.
    ///
    /// # Panics
    /// If `parts` or `out` are not of the lengths that this asks for.
    fn segment(&self, row: usize, columns: Range<usize>, parts: &[&[u8]], out: &mut [f32]);

    /// [`segment`](Self::segment) in f64; `None` for formats whose values f32 holds.
    fn in_f64(&self) -> Option<&dyn SegmentsF64>;
}

/// [`Segments`] of a weight whose values only f64 holds.
pub trait SegmentsF64: Debug {
    /// [`Segments::segment`] in f64.
    ///
    /// # Panics
    /// As [`Segments::segment`].
    fn segment_f64(&self, row: usize, columns: Range<usize>, parts: &[&[u8]], out: &mut [f64]);
}

/// The larger tensor that a weight is a slice of: a stack of experts, or a matrix that holds the rows of several
/// layers.
#[derive(Clone, Debug)]
pub struct Stack {
    /// The name of the dense tensor.
    pub name: String,
    /// Its shape: of a stack `[experts, .., ..]`, of a matrix `[out, in]`. A row of `weight` is a row of it.
    pub shape: Vec<usize>,
    /// All of it: experts one below the other.
    pub weight: Arc<dyn Dequantize>,
    /// The rows of `weight` that the slice takes.
    pub rows: Range<usize>,
    /// Whether a slice of the dense tensor is `[in, out]`.
    pub turned: bool,
}
