//! Modules: logical weights `[out, in]`, read and decoded in panels of rows.

pub(crate) mod arrange;

use std::ops::Range;
use std::sync::Arc;

use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::catalogue::Tensor;
use crate::quant::format::dense::Dense;
use crate::quant::packing::row_concat::RowStride;
use crate::quant::weight::{Dequantize, Stack, StackSlice, TensorInfo};
use crate::shared::Name;
use crate::storage::Window;

/// One logical weight of a checkpoint.
#[derive(Clone, Debug)]
pub struct Module {
    name: Name,
    weight: Arc<dyn Dequantize>,
    // Shared with the copies in plans.
    tensors: Arc<[Tensor]>,
    quantized: bool,
    singles: Arc<[Single]>,
}

/// What the files hold of a module that is not simply what they hold: one projection of one expert by itself, where the
/// model's adapters hold stacks, or the transpose.
#[derive(Clone, Debug)]
pub struct Single {
    /// As the files name it.
    pub module: Module,
    /// Its rows in the module of the stack that it is, or is a half of.
    pub rows: RowStride,
    /// Whether it is the transpose of that: `Conv1D`, which is stored `[in, out]`.
    pub turned: bool,
}

impl Module {
    /// A dense tensor of any shape, for example a norm or a stack of experts, as a matrix `[first dimension, product of
    /// the others]`, so that its values can be read like those of a weight. `None` for codes and integers.
    pub fn flattened(tensor: &Tensor) -> Option<Module> {
        let shape = &tensor.stored.shape;
        Module::reshaped(tensor, [shape.first().copied().unwrap_or(1), shape.iter().skip(1).product()])
    }

    /// The same as a matrix `[product of the other dimensions, last dimension]`: a vector is one row, and a stack of
    /// experts has many short rows instead of a few of the size of an expert.
    pub fn lines(tensor: &Tensor) -> Option<Module> {
        let (&columns, others) = tensor.stored.shape.split_last().unwrap_or((&1, &[]));
        Module::reshaped(tensor, [others.iter().product(), columns])
    }

    fn reshaped(tensor: &Tensor, shape: [usize; 2]) -> Option<Module> {
        let matrix = TensorInfo { shape: shape.into(), ..tensor.stored.clone() };
        let weight = Arc::new(Dense::new(&matrix)?);
        Some(Module {
            name: tensor.stored.name.clone(),
            weight,
            tensors: [tensor.clone()].into(),
            quantized: false,
            singles: [].into(),
        })
    }

    /// The stack of experts, or the matrix with the rows of several layers, that it is a slice of: one matrix with all
    /// rows, under the name of the dense tensor, and that tensor's shape.
    pub fn stack(&self) -> Option<(Module, Vec<usize>)> {
        let Stack { name, shape, weight, .. } = self.weight.capabilities().slice?.stack()?;
        Some((Module { name: name.into(), weight, ..self.clone() }, shape))
    }

    /// Its rows in the matrix that [`stack`](Self::stack) gives.
    pub fn rows_in_stack(&self) -> Option<Range<usize>> {
        Some(self.weight.capabilities().slice?.stack()?.rows)
    }

    /// Whether the dense tensor of its stack holds it as `[in, out]`.
    pub fn is_turned_in_stack(&self) -> bool {
        self.weight.capabilities().slice.and_then(StackSlice::stack).is_some_and(|stack| stack.turned)
    }

    /// The projections of one expert that it is made of, where the files hold them singly and the model's adapters hold
    /// stacks.
    pub fn singles(&self) -> &[Single] {
        &self.singles
    }

    /// Its name, without `.weight`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same, to be kept in plans and records.
    pub(crate) fn shared_name(&self) -> &Name {
        &self.name
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        self.weight.shape()
    }

    /// Its decoder.
    pub fn weight(&self) -> &Arc<dyn Dequantize> {
        &self.weight
    }

    /// Its stored tensors, the weight itself first, in the order of its decoder's `tensors`.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// Whether it is stored as codes with scales.
    pub fn is_quantized(&self) -> bool {
        self.quantized
    }

    /// Its stored tensors, each with the byte range that belongs to this module: the whole tensor, except for an expert
    /// of a stack.
    pub fn extents(&self) -> impl Iterator<Item = (&Tensor, Range<u64>)> {
        let extents = self.weight.extents().into_iter();
        self.tensors.iter().zip(extents.map(|extent| extent.start as u64..extent.end as u64))
    }

    /// Its stored size in bytes, companions included.
    pub fn size(&self) -> u64 {
        self.extents().map(|(_, extent)| extent.end - extent.start).sum()
    }

    /// The number of stored bytes for `rows`, which a [`read`](Self::read) of them keeps resident.
    pub fn packed_size(&self, rows: Range<usize>) -> usize {
        self.weight.spans(rows).iter().map(ExactSizeIterator::len).sum()
    }

    /// Whether any row needs all stored bytes, for example where they are packed along columns.
    pub fn is_whole(&self) -> bool {
        self.weight.is_whole()
    }

    /// The number of bytes that a [`ModuleReader`](super::ModuleReader) keeps resident.
    pub fn kept_size(&self) -> usize {
        if self.is_whole() { self.packed_size(0..self.shape()[0]) } else { 0 }
    }

    /// Maps the stored bytes of `rows`, for decoding on this or another thread.
    ///
    /// # Errors
    /// The errors of [`Checkpoint::read`].
    ///
    /// # Panics
    /// If the rows are out of range, or the module is not from this checkpoint.
    pub fn read(&self, checkpoint: &Checkpoint, rows: Range<usize>) -> Result<PackedRows> {
        assert!(rows.start <= rows.end && rows.end <= self.shape()[0], "rows {rows:?} of '{}'", self.name);
        let spans = self.weight.spans(rows.clone());
        let parts = self.tensors.iter().zip(spans);
        let windows = parts.map(|(tensor, span)| checkpoint.read(tensor, span.start as u64..span.end as u64));
        Ok(PackedRows { rows, weight: Arc::clone(&self.weight), windows: windows.collect::<Result<_>>()? })
    }

    /// Asks the system to read the stored bytes of `rows` ahead.
    ///
    /// # Panics
    /// Under the conditions of [`read`](Self::read).
    pub fn prefetch(&self, checkpoint: &Checkpoint, rows: Range<usize>) {
        for (tensor, span) in self.tensors.iter().zip(self.weight.spans(rows)) {
            checkpoint.prefetch(tensor, span.start as u64..span.end as u64);
        }
    }

    /// Reads and decodes `rows` into `out`, row-major, `rows.len() * in` values.
    ///
    /// # Errors
    /// The errors of [`Checkpoint::read`] and [`Dequantize::dequantize`].
    ///
    /// # Panics
    /// Under the conditions of [`read`](Self::read), or if `out` has the wrong length.
    pub fn panel(&self, checkpoint: &Checkpoint, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.read(checkpoint, rows)?.decode(out).map_err(|e| e.path(checkpoint.path(self.tensors[0].file)))
    }

    /// The same in f64.
    ///
    /// # Errors
    /// The errors of [`panel`](Self::panel).
    ///
    /// # Panics
    /// Under the conditions of [`panel`](Self::panel).
    pub fn panel_f64(&self, checkpoint: &Checkpoint, rows: Range<usize>, out: &mut [f64]) -> Result<()> {
        self.read(checkpoint, rows)?
            .decode_f64(out)
            .map_err(|e| e.path(checkpoint.path(self.tensors[0].file)))
    }
}

/// Rows of a module as they are stored: mapped, not yet decoded.
#[derive(Debug)]
pub struct PackedRows {
    rows: Range<usize>,
    weight: Arc<dyn Dequantize>,
    windows: Vec<Window>,
}

impl PackedRows {
    /// The range of rows.
    pub fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// The mapped bytes of each stored tensor.
    pub fn windows(&self) -> &[Window] {
        &self.windows
    }

    /// Decodes into `out`, row-major, `rows.len() * in` values.
    ///
    /// # Errors
    /// The errors of [`Dequantize::dequantize`].
    ///
    /// # Panics
    /// If `out` has the wrong length.
    pub fn decode(&self, out: &mut [f32]) -> Result<()> {
        self.weight.dequantize(self.rows(), &self.parts(), out)
    }

    /// The same in f64.
    ///
    /// # Errors
    /// The errors of [`decode`](Self::decode).
    ///
    /// # Panics
    /// Under the conditions of [`decode`](Self::decode).
    pub fn decode_f64(&self, out: &mut [f64]) -> Result<()> {
        self.weight.dequantize_f64(self.rows(), &self.parts(), out)
    }

    /// Decodes a subset of the rows into `out`, row-major, `subset.len() * in` values: a panel is mapped once and
    /// decoded in pieces that stay in the cache.
    ///
    /// # Errors
    /// The errors of [`Dequantize::dequantize`].
    ///
    /// # Panics
    /// If the subset is not within these rows, or if `out` has the wrong length.
    pub fn decode_some(&self, subset: Range<usize>, out: &mut [f32]) -> Result<()> {
        let parts = self.parts_of(subset.clone());
        self.weight.dequantize(subset, &parts, out)
    }

    /// The same in f64.
    ///
    /// # Errors
    /// The errors of [`decode_some`](Self::decode_some).
    ///
    /// # Panics
    /// Under the conditions of [`decode_some`](Self::decode_some).
    pub fn decode_some_f64(&self, subset: Range<usize>, out: &mut [f64]) -> Result<()> {
        let parts = self.parts_of(subset.clone());
        self.weight.dequantize_f64(subset, &parts, out)
    }

    /// The number of saturated codes in a subset of the rows: see
    /// [`Saturation::count`](crate::quant::Saturation::count).
    ///
    /// # Panics
    /// If the subset is not within these rows.
    pub fn saturated(&self, subset: Range<usize>) -> Option<(u64, u32)> {
        let parts = self.parts_of(subset.clone());
        self.weight.saturated(subset, &parts)
    }

    fn parts(&self) -> Vec<&[u8]> {
        self.windows.iter().map(|window| &**window).collect()
    }

    /// The bytes of [`parts`](Self::parts) for a subset of the rows.
    fn parts_of(&self, subset: Range<usize>) -> Vec<&[u8]> {
        assert!(
            self.rows.start <= subset.start && subset.end <= self.rows.end,
            "rows {subset:?} of {:?}",
            self.rows
        );
        let spans = self.weight.spans(self.rows()).into_iter().zip(self.weight.spans(subset));
        let within =
            spans.map(
                |(whole, span)| {
                    if span.is_empty() { 0..0 } else { span.start - whole.start..span.end - whole.start }
                },
            );
        self.windows.iter().zip(within).map(|(window, within)| &window[within]).collect()
    }
}
