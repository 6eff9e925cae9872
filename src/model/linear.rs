//! Out-of-core linear layers: the weight is read and decoded once, panel by panel of its rows, and each panel is
//! multiplied with the activations of all groups in the chunk.

use std::ops::Range;

use super::kernel::{Activations, add_product, product};
use super::threads::spread;
use crate::checkpoint::{Checkpoint, Module, ModuleReader};
use crate::quant::format::dense::to_f32;
use crate::{Error, Result};

/// The approximate number of elements in a panel.
const PANEL: usize = 1 << 19;
/// The same for formats where every panel needs the whole weight, for example those packed along columns.
const WHOLE: usize = 1 << 23;
/// Panels are cut at multiples of this many rows.
const STEP: usize = 32;

/// A low-rank update that is added to a weight: `scale · B·A`.
#[derive(Clone, Debug, PartialEq)]
pub struct LowRank {
    /// `[rank, in]`, row-major.
    pub a: Vec<f32>,
    /// `[out, rank]`, row-major.
    pub b: Vec<f32>,
    /// The rank.
    pub rank: usize,
    /// The factor before `B·A`.
    pub scale: f32,
}

/// The variants of a model that are run together: each is the model with low-rank updates of some modules.
pub trait Updates: Sync {
    /// The number of variants.
    fn variants(&self) -> usize;

    /// The update that a variant adds to a module, or `None`. For the input embedding it applies to the transpose:
    /// `[hidden, vocabulary]`.
    ///
    /// # Errors
    /// The update cannot be read.
    fn update(&self, variant: usize, module: &str) -> Result<Option<LowRank>>;
}

/// The model without updates.
pub(super) struct NoUpdates;

impl Updates for NoUpdates {
    fn variants(&self) -> usize {
        1
    }

    fn update(&self, _: usize, _: &str) -> Result<Option<LowRank>> {
        Ok(None)
    }
}

/// What all linear layers of a pass share.
pub(super) struct Engine<'a> {
    pub checkpoint: &'a Checkpoint,
    pub updates: &'a dyn Updates,
    pub threads: usize,
    /// Called with the number of bytes read of a weight.
    pub read: &'a (dyn Fn(u64) + Sync),
}

/// The activations of a group, and the variant that they belong to.
#[derive(Clone, Copy)]
pub(super) struct LinearInput<'a> {
    pub variant: usize,
    pub x: &'a Activations,
}

/// A weight that is open for reading, with its bias and the updates of every variant.
pub(super) struct Weight<'a> {
    engine: &'a Engine<'a>,
    reader: ModuleReader<'a>,
    bias: Option<Vec<f32>>,
    updates: Vec<Option<LowRank>>,
}

impl<'a> Weight<'a> {
    /// Opens the module with this name, whose input has `width` values.
    pub fn open(engine: &'a Engine<'a>, name: &str, width: usize) -> Result<Weight<'a>> {
        let module = find(engine.checkpoint, name)?;
        let [rows, columns] = module.shape();
        if columns != width {
            let what = format!("the weight is [{rows}, {columns}], but the config requires {width} inputs");
            return Err(Error::input(what).tensor(name).path(engine.checkpoint.root()));
        }
        let reader = ModuleReader::open(engine.checkpoint, module)?;
        let bias = vector(engine.checkpoint, &format!("{name}.bias"), rows)?;
        let update = |variant| -> Result<Option<LowRank>> {
            let update = engine.updates.update(variant, name)?;
            let fits = |u: &LowRank| u.a.len() == u.rank * columns && u.b.len() == rows * u.rank;
            match update {
                Some(update) if !fits(&update) => {
                    let what = format!("an adapter's factors do not fit a weight [{rows}, {columns}]");
                    Err(Error::input(what).tensor(name))
                }
                update => Ok(update.filter(|update| update.rank > 0)),
            }
        };
        let updates = (0..engine.updates.variants()).map(update).collect::<Result<_>>()?;
        Ok(Weight { engine, reader, bias, updates })
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.reader.module().shape()[0]
    }

    /// The panels, determined by shape and format alone.
    pub fn panels(&self) -> Vec<Range<usize>> {
        panels(self.reader.module())
    }

    /// The inner products of the updates, `A·x`, for every operand whose variant has one.
    pub fn inner(&self, inputs: &[LinearInput<'_>]) -> Result<Vec<Option<Activations>>> {
        let mut inner: Vec<Option<Activations>> = inputs.iter().map(|_| None).collect();
        let tasks: Vec<_> = inner.iter_mut().zip(inputs).collect();
        spread(self.engine.threads, tasks, |(): &mut (), (inner, operand)| {
            if let Some(update) = &self.updates[operand.variant] {
                let mut product_of = Activations::zeros(update.rank, operand.x.tokens);
                product(&update.a, operand.x, &mut product_of.values);
                *inner = Some(product_of);
            }
            Ok(())
        })?;
        Ok(inner)
    }

    /// Reads and decodes `rows` into `panel`.
    pub fn decode(&self, rows: Range<usize>, panel: &mut Vec<f32>) -> Result<()> {
        let module = self.reader.module();
        panel.resize(rows.len() * module.shape()[1], 0.0);
        self.reader.panel(rows.clone(), panel)?;
        (self.engine.read)((module.size() as f64 * rows.len() as f64 / self.rows().max(1) as f64) as u64);
        Ok(())
    }

    /// The rows `rows` of the output for one operand; `inner` is its [`inner`](Self::inner) product.
    pub fn panel(
        &self,
        rows: Range<usize>,
        panel: &[f32],
        operand: LinearInput<'_>,
        inner: Option<&Activations>,
        out: &mut [f32],
    ) {
        product(panel, operand.x, out);
        if let (Some(update), Some(inner)) = (&self.updates[operand.variant], inner) {
            let b = &update.b[rows.start * update.rank..rows.end * update.rank];
            add_product(b, inner, out, update.scale);
        }
        if let Some(bias) = &self.bias {
            let tokens = operand.x.tokens.max(1);
            for (row, bias) in out.chunks_mut(tokens).zip(&bias[rows]) {
                row.iter_mut().for_each(|value| *value += bias);
            }
        }
    }

    /// The layer's output for every operand.
    pub fn apply(&self, inputs: &[LinearInput<'_>]) -> Result<Vec<Activations>> {
        let inner = self.inner(inputs)?;
        let panels = self.panels();
        let mut outputs: Vec<Activations> =
            inputs.iter().map(|operand| Activations::zeros(self.rows(), operand.x.tokens)).collect();
        let mut slices: Vec<Vec<&mut [f32]>> = panels.iter().map(|_| Vec::new()).collect();
        for output in &mut outputs {
            let tokens = output.tokens;
            let mut rest = output.values.as_mut_slice();
            for (rows, slices) in panels.iter().zip(&mut slices) {
                let (mine, others) = rest.split_at_mut(rows.len() * tokens);
                slices.push(mine);
                rest = others;
            }
        }
        let tasks: Vec<_> = panels.into_iter().zip(slices).collect();
        spread(self.engine.threads, tasks, |panel: &mut Vec<f32>, (rows, slices)| {
            self.decode(rows.clone(), panel)?;
            for ((out, operand), inner) in slices.into_iter().zip(inputs).zip(&inner) {
                self.panel(rows.clone(), panel, *operand, inner.as_ref(), out);
            }
            Ok(())
        })?;
        Ok(outputs)
    }
}

/// The panels of a module, determined by its shape and format alone.
pub(super) fn panels(module: &Module) -> Vec<Range<usize>> {
    let [rows, columns] = module.shape();
    let elements = if module.is_whole() { WHOLE } else { PANEL };
    let height = (elements / columns.max(1) / STEP * STEP).max(STEP);
    (0..rows).step_by(height).map(|start| start..(start + height).min(rows)).collect()
}

/// A module that the architecture requires.
pub(super) fn find<'a>(checkpoint: &'a Checkpoint, name: &str) -> Result<&'a Module> {
    checkpoint.module(name).ok_or_else(|| {
        Error::input("the checkpoint lacks a weight that its architecture has")
            .tensor(name)
            .path(checkpoint.root())
            .hint("download the whole checkpoint again")
    })
}

/// A vector such as a bias, if the checkpoint has it.
pub(super) fn vector(checkpoint: &Checkpoint, name: &str, length: usize) -> Result<Option<Vec<f32>>> {
    let Some(tensor) = checkpoint.tensor(name) else { return Ok(None) };
    let bytes = checkpoint.read(tensor, 0..tensor.size())?;
    let locate = |e: Error| e.tensor(name).path(checkpoint.path(tensor.file));
    let values = to_f32(tensor.stored.dtype, &bytes).map_err(locate)?;
    if values.len() != length {
        return Err(locate(Error::input(format!("{} values instead of {length}", values.len()))));
    }
    Ok(Some(values))
}

/// A norm's weight.
pub(super) fn norm(checkpoint: &Checkpoint, module: &str, length: usize) -> Result<Vec<f32>> {
    let name = format!("{module}.weight");
    vector(checkpoint, &name, length)?.ok_or_else(|| {
        Error::input("the checkpoint lacks a norm that its architecture has")
            .tensor(name)
            .path(checkpoint.root())
    })
}
