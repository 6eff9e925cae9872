//! Evaluation: the next-token loss of a text under a model alone and with each of several adapters, in one
//! pass over the weights.
//!
//! [`crate::model`] does the pass. Every sequence goes through the model once per variant, with the same weights, so
//! differences are paired: what is hard in a text is equally hard for all variants.

mod adapters;
mod statistics;

use std::path::PathBuf;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use self::adapters::Adapters;
pub use self::statistics::Paired;
use self::statistics::{loss_of, paired, standard_error};
use crate::checkpoint::Checkpoint;
use crate::corpus::Corpus;
use crate::model::decoder::Decoder;
use crate::model::{Asked, Beside, Forward, Loss, Updates, plan, refuse_below};
use crate::pipeline::memory::{ADAPTER_TENSOR, THREAD, catalogue, overhead, room_unrecorded};
use crate::run::Progress;
use crate::{Error, Result};

/// What to evaluate, on which text, and how.
#[derive(Clone, Debug)]
pub struct Evaluation {
    /// Path or hub name of the model.
    pub model: String,
    /// Paths or hub names of adapters.
    pub adapters: Vec<String>,
    /// The text.
    pub corpus: Corpus,
    /// Number of compute threads.
    pub threads: usize,
    /// Limit on the peak resident memory of the process, in bytes.
    pub memory: u64,
    /// The folder for hidden states that do not fit in memory.
    pub scratch: PathBuf,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluated {
    /// The model, as given.
    pub model: String,
    /// The blake3 of the text's tokens.
    pub text_digest: String,
    /// Number of tokens of the text.
    pub tokens: usize,
    /// Number of predicted tokens: all but the first of each sequence.
    pub predicted: usize,
    /// Number of sequences.
    pub sequences: usize,
    /// The model alone, then with each adapter.
    pub variants: Vec<Variant>,
    /// Every pair of adapters, in the order given.
    pub pairs: Vec<AdapterPair>,
}

/// The model with an adapter, or alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Variant {
    /// The adapter, as given; `None` for the model alone.
    pub adapter: Option<String>,
    /// Mean next-token loss, in nats.
    pub loss: f64,
    /// Its standard error over sequences, if there are two or more: the variation to expect with other text of this
    /// kind.
    pub standard_error: Option<f64>,
    /// The loss minus that of the model alone.
    pub change: Option<Paired>,
    /// The mean loss of every sequence.
    pub by_sequence: Vec<f64>,
}

/// Two adapters, compared with each other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterPair {
    /// The first adapter.
    pub first: String,
    /// The second adapter.
    pub second: String,
    /// The loss with the second adapter minus that with the first.
    pub change: Paired,
}

/// Evaluates a model and its adapters on a text.
///
/// # Errors
/// Bad input; an adapter that is more than a LoRA or belongs to another model; a memory limit that is too small.
pub fn evaluate(job: &Evaluation, progress: &dyn Progress) -> Result<Evaluated> {
    let checkpoint = Checkpoint::open_within(&job.model, &mut room_unrecorded(job.memory, 0))?;
    let decoder = Decoder::of(&checkpoint)?;
    let adapters = Adapters::open(&job.adapters, &checkpoint)?;
    let files = checkpoint.local_files(&Corpus::is_read)?;
    let for_text = job.corpus.memory(files.path());
    let process = (overhead() + catalogue(&checkpoint) + ADAPTER_TENSOR * adapters.tensors() as u64)
        .saturating_add(for_text);
    refuse_below(for_text, process, job.memory)?;
    let text = job.corpus.tokenize(files.path())?;
    let sequences = &text.sequences;
    let tokens = sequences.tokens();
    let beside = Beside {
        process: process + 8 * tokens as u64,
        thread: THREAD,
        observer: 0,
        updates: adapters.bytes(),
    };
    let scratch = job.scratch.clone();
    let variants = adapters.variants();
    let (memory, threads) = (job.memory, job.threads);
    let plan = plan(Asked {
        checkpoint: &checkpoint,
        decoder: &decoder,
        sequences,
        variants,
        memory,
        threads,
        scratch,
        beside,
    })?;
    progress.note(&format!("{tokens} tokens in {} sequences", sequences.all().len()));
    let read = |bytes| progress.read(bytes);
    progress.begin(decoder.layers + 1, plan.read, 0, 0);
    let mut pass = Forward::new(&checkpoint, &decoder, sequences, Some(&adapters), &plan.needs, &read)?;
    for layer in 0..decoder.layers {
        let started = Instant::now();
        pass.layer(layer, None)?;
        progress.analyzed(&format!("layer {layer}"), started.elapsed());
    }
    let started = Instant::now();
    let losses = pass.losses(None)?;
    progress.analyzed("output head", started.elapsed());
    record(job, sequences.digest(), tokens, losses)
}

fn record(job: &Evaluation, digest: blake3::Hash, tokens: usize, losses: Vec<Loss>) -> Result<Evaluated> {
    let variants = job.adapters.len() + 1;
    let mut by_variant: Vec<Vec<Loss>> = vec![Vec::new(); variants];
    losses.into_iter().for_each(|loss| by_variant[loss.variant].push(loss));
    let Some(none) = by_variant.first().filter(|none| !none.is_empty()) else {
        return Err(Error::unexpected("nothing was evaluated"));
    };
    let variant = |(index, losses): (usize, &Vec<Loss>)| Variant {
        adapter: index.checked_sub(1).map(|index| job.adapters[index].clone()),
        loss: loss_of(losses),
        standard_error: standard_error(losses),
        change: (index > 0).then(|| paired(none, losses)),
        by_sequence: losses.iter().map(|loss| loss.sum / loss.tokens as f64).collect(),
    };
    let pair = |first: usize, second: usize| AdapterPair {
        first: job.adapters[first].clone(),
        second: job.adapters[second].clone(),
        change: paired(&by_variant[first + 1], &by_variant[second + 1]),
    };
    let count = job.adapters.len();
    Ok(Evaluated {
        model: job.model.clone(),
        text_digest: digest.to_hex().to_string(),
        tokens,
        predicted: none.iter().map(|loss| loss.tokens).sum(),
        sequences: none.len(),
        pairs: (0..count)
            .flat_map(|a| (a + 1..count).map(move |b| (a, b)))
            .map(|(a, b)| pair(a, b))
            .collect(),
        variants: by_variant.iter().enumerate().map(variant).collect(),
    })
}
