//! The forward pass: the hidden states of all groups go through the layers one after another.

use std::path::Path;

use super::decoder::{Decoder, NormStyle};
use super::kernel::{Activations, rms_norm};
use super::linear::{self, Engine, NoUpdates, Updates};
use super::{Group, Hidden, Input, Sequences};
use crate::checkpoint::Checkpoint;
use crate::{Error, Result};

/// A part of the pass, whose inputs an [`Observer`] receives together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The attention of a layer.
    Attention(usize),
    /// The MLP or the experts of a layer.
    Mlp(usize),
    /// The output head.
    Head,
}

/// Receives the inputs of linear layers.
pub trait Observer {
    /// Called when a part begins, with the inputs that it has.
    ///
    /// # Errors
    /// Any error of the observer.
    fn begin(&mut self, part: Part, inputs: &[Input]) -> Result<()>;

    /// Receives more rows (columns of `x`) of one of the part's inputs. They come in the order of the groups, however
    /// the available memory cuts the work.
    ///
    /// # Errors
    /// Any error of the observer.
    fn rows(&mut self, input: usize, x: &Activations) -> Result<()>;

    /// Called after the last row of one of the part's inputs.
    ///
    /// # Errors
    /// Any error of the observer.
    fn end(&mut self, input: usize) -> Result<()>;
}

/// An observer that ignores everything.
struct Nobody;

impl Observer for Nobody {
    fn begin(&mut self, _: Part, _: &[Input]) -> Result<()> {
        Ok(())
    }

    fn rows(&mut self, _: usize, _: &Activations) -> Result<()> {
        Ok(())
    }

    fn end(&mut self, _: usize) -> Result<()> {
        Ok(())
    }
}

/// How a pass is run: threads, and the limits that memory sets.
#[derive(Clone, Debug)]
pub struct Needs {
    /// Number of compute threads.
    pub threads: usize,
    /// The most tokens that go through a weight together, unless a single group has more.
    pub chunk: usize,
    /// The folder for hidden states that are not kept in memory.
    pub scratch: Option<std::path::PathBuf>,
}

/// A pass through a decoder.
pub struct Forward<'a> {
    pub(super) engine: Engine<'a>,
    pub(super) decoder: &'a Decoder,
    pub(super) groups: Vec<Group>,
    pub(super) hidden: Hidden,
    /// The sum of the outputs of a layer's experts, until all of them are added.
    pub(super) sum: Option<Hidden>,
    pub(super) chunk: usize,
}

impl<'a> Forward<'a> {
    /// Looks up the embeddings of all tokens, once per variant of the model.
    ///
    /// # Errors
    /// A token outside the model's vocabulary; a weight that cannot be read.
    pub fn new(
        checkpoint: &'a Checkpoint,
        decoder: &'a Decoder,
        sequences: &Sequences,
        updates: Option<&'a dyn Updates>,
        needs: &Needs,
        read: &'a (dyn Fn(u64) + Sync),
    ) -> Result<Forward<'a>> {
        let updates = updates.unwrap_or(&NoUpdates);
        let groups = sequences.groups(updates.variants());
        let tokens: Vec<usize> = groups.iter().map(Group::tokens).collect();
        let scratch = needs.scratch.as_deref();
        let states = |scratch: Option<&Path>| Hidden::zeros(decoder.hidden, tokens.clone(), scratch);
        let sum = decoder.mixture.as_ref().map(|_| states(scratch)).transpose()?;
        let engine = Engine { checkpoint, updates, threads: needs.threads, read };
        let mut pass = Forward { engine, decoder, groups, hidden: states(scratch)?, sum, chunk: needs.chunk };
        pass.embed(sequences)?;
        Ok(pass)
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.decoder.layers
    }

    /// The current hidden states.
    pub fn hidden(&self) -> &Hidden {
        &self.hidden
    }

    /// Continues with hidden states that an earlier pass saved.
    ///
    /// # Errors
    /// See [`Hidden::load`].
    pub fn restore(&mut self, path: &Path) -> Result<()> {
        self.hidden.load(path)
    }

    /// Runs one layer on the hidden states.
    ///
    /// # Errors
    /// A weight that is missing, cannot be read, or has another shape than the config requires; any error from the
    /// observer.
    pub fn layer(&mut self, layer: usize, observer: Option<&mut dyn Observer>) -> Result<()> {
        let mut nobody = Nobody;
        let observer = observer.unwrap_or(&mut nobody);
        self.attention(layer, observer)?;
        if self.decoder.has_experts(layer) {
            self.experts(layer, observer)
        } else {
            self.mlp(layer, observer)
        }
    }

    /// Runs of groups that go through a weight together.
    pub(super) fn chunks(&self) -> Vec<std::ops::Range<usize>> {
        let mut chunks: Vec<std::ops::Range<usize>> = Vec::new();
        let mut tokens = 0;
        for (index, group) in self.groups.iter().enumerate() {
            match chunks.last_mut() {
                Some(last) if tokens + group.tokens() <= self.chunk => last.end = index + 1,
                _ => {
                    chunks.push(index..index + 1);
                    tokens = 0;
                }
            }
            tokens += group.tokens();
        }
        chunks
    }

    /// The number of tokens in all groups.
    pub(super) fn tokens(&self) -> usize {
        self.groups.iter().map(Group::tokens).sum()
    }

    /// The factors of a norm; Gemma stores them minus one.
    pub(super) fn factors(&self, module: &str, length: usize) -> Result<Vec<f32>> {
        let mut factors = linear::norm(self.engine.checkpoint, module, length)?;
        if self.decoder.norms == NormStyle::Sandwich {
            factors.iter_mut().for_each(|factor| *factor += 1.0);
        }
        Ok(factors)
    }

    /// Passes the normed hidden states of some groups to `see`, one group at a time.
    pub(super) fn normed(
        &self,
        groups: std::ops::Range<usize>,
        factors: &[f32],
        mut see: impl FnMut(&Activations) -> Result<()>,
    ) -> Result<Vec<Activations>> {
        let normed = |group| {
            let mut x = self.hidden.read(group)?;
            rms_norm(&mut x, factors, self.decoder.eps);
            see(&x)?;
            Ok(x)
        };
        groups.map(normed).collect()
    }

    /// Adds the output of half a layer to the hidden states of some groups, after the norm that may follow it.
    pub(super) fn add(
        &mut self,
        groups: std::ops::Range<usize>,
        outputs: Vec<Activations>,
        norm: Option<&[f32]>,
    ) -> Result<()> {
        for (group, mut output) in groups.zip(outputs) {
            if let Some(factors) = norm {
                rms_norm(&mut output, factors, self.decoder.eps);
            }
            let mut states = self.hidden.read(group)?;
            states.add(&output);
            self.hidden.write(group, &states)?;
        }
        Ok(())
    }

    fn embed(&mut self, sequences: &Sequences) -> Result<()> {
        let (decoder, name) = (self.decoder, self.decoder.names.embedding());
        let module = linear::find(self.engine.checkpoint, &name)?;
        let [rows, width] = module.shape();
        if width != decoder.hidden {
            let what = format!(
                "the embedding is [{rows}, {width}], but the config's hidden_size is {}",
                decoder.hidden
            );
            return Err(Error::input(what).tensor(name).path(self.engine.checkpoint.root()));
        }
        if let Some(largest) = sequences.largest_id().filter(|id| *id as usize >= rows) {
            let what = format!("the text has token {largest}, but the embedding has only {rows} rows");
            return Err(Error::input(what)
                .tensor(name)
                .hint("the tokenizer belongs to another model: give --tokenizer DIR"));
        }
        let reader = crate::checkpoint::ModuleReader::open(self.engine.checkpoint, module)?;
        let updates = &self.engine.updates;
        let updates =
            (0..updates.variants()).map(|v| updates.update(v, &name)).collect::<Result<Vec<_>>>()?;
        let mut row = vec![0f32; width];
        for (index, group) in self.groups.iter().enumerate() {
            let mut states = Activations::zeros(width, group.tokens());
            for (column, &id) in group.ids.iter().enumerate() {
                let id = id as usize;
                reader.panel(id..id + 1, &mut row)?;
                if let Some(update) = &updates[group.variant] {
                    if update.a.len() != update.rank * rows || update.b.len() != width * update.rank {
                        return Err(
                            Error::input("an adapter's factors do not fit the embedding").tensor(name)
                        );
                    }
                    for (value, b) in row.iter_mut().zip(update.b.chunks(update.rank.max(1))) {
                        let sum: f32 = b.iter().enumerate().map(|(k, b)| b * update.a[k * rows + id]).sum();
                        *value += update.scale * sum;
                    }
                }
                for (j, value) in row.iter().enumerate() {
                    states.values[j * group.ids.len() + column] = value * decoder.embedding_scale;
                }
            }
            self.hidden.write(index, &states)?;
        }
        Ok(())
    }
}
