//! Calibration: runs a model on a text, layer by layer, and writes the second moments of every linear layer's input.
//!
//! [`crate::model`] does the pass, [`crate::calibration`] defines the files. After every layer, its file and the hidden
//! states are safe on disk and recorded in the journal: a stopped run resumes with the layer that it was working on.

mod identity;
mod options;
mod recorder;
mod state;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;

use self::identity::{Begin, Record};
pub use self::options::Calibration;
use self::recorder::Recorder;
use self::state::{EarlierState, State, StateEntry};
use crate::calibration::Accumulator;
use crate::calibration::layout::{FORMAT, INDEX, Index, IndexInput, VERSION, file_name};
use crate::checkpoint::Checkpoint;
use crate::corpus::Tokenized;
use crate::durable::{atomic_file, checksums, folder};
use crate::model::decoder::Decoder;
use crate::model::{Asked, Beside, Forward, ForwardPlan, Loss, plan, refuse_below};
use crate::pipeline::memory::{THREAD, catalogue, overhead, room_unrecorded};
use crate::run::Progress;
use crate::{Error, Result};

/// The outcome of a calibration.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CalibrationOutcome {
    /// The output folder.
    pub out: PathBuf,
    /// Whether it was already done.
    pub was_done: bool,
    /// Mean next-token loss of the text, in nats.
    pub loss: f64,
    /// Number of tokens of the text.
    pub tokens: u64,
    /// Number of sequences of the text; 0 if the calibration was already done.
    pub sequences: usize,
    /// Number of distinct inputs.
    pub inputs: usize,
    /// Size of the calibration's files in bytes.
    pub bytes: u64,
}

/// Calibrates, or resumes a calibration that was stopped.
///
/// # Errors
/// Bad input; a memory limit that is too small; a folder with foreign files or a different run; a failing disk.
pub fn calibrate(job: &Calibration, progress: &dyn Progress) -> Result<CalibrationOutcome> {
    if job.k == 0 {
        return Err(
            Error::decide("a sketch of 0 rows holds nothing").hint("give --k 2048, the default, or more")
        );
    }
    let checkpoint = Checkpoint::open_within(&job.model, &mut room_unrecorded(job.memory, 0))?;
    let decoder = Decoder::of(&checkpoint)?;
    folder::refuse_input(&job.out, checkpoint.root())?;
    let files = checkpoint.local_files(&crate::corpus::Corpus::is_read)?;
    let for_text = job.corpus.memory(files.path());
    let process = (overhead() + catalogue(&checkpoint)).saturating_add(for_text);
    refuse_below(for_text, process, job.memory)?;
    let text = job.corpus.tokenize(files.path())?;
    let plan = planned(job, process, &checkpoint, &decoder, &text)?;
    let begin = Begin::of(job, &checkpoint, &text.sequences);
    let mut state = match state::open(job, &begin)? {
        EarlierState::Open(state) => *state,
        EarlierState::Done(record, lock) => {
            state::tidy(lock, &job.out)?;
            return outcome(job, record.index, 0, true);
        }
    };
    state.notes.iter().for_each(|note| progress.note(note));
    describe(&text, &plan, progress);
    let read = |bytes| progress.read(bytes);
    let pass = Forward::new(&checkpoint, &decoder, &text.sequences, None, &plan.needs, &read)?;
    let recorder = Recorder::new(job, &begin, plan.needs.threads);
    let loss = run(pass, recorder, &plan, &mut state, progress)?;
    progress.assembling();
    let record = Record { index: index(job, &begin, &state, loss), run: begin.digest()? };
    write(job, &record, &state)?;
    state::tidy(state.lock, &job.out)?;
    outcome(job, record.index, text.sequences.all().len(), false)
}

fn describe(text: &Tokenized, plan: &ForwardPlan, progress: &dyn Progress) {
    let (sequences, tokens) = (text.sequences.all().len(), text.sequences.tokens());
    progress.note(&format!(
        "{tokens} tokens in {sequences} sequences{}",
        if text.cut { " (there is more text)" } else { "" }
    ));
    if plan.chunks > 1 {
        progress.note(&format!(
            "every weight is read {} times to stay within the memory limit; a larger --memory is faster",
            plan.chunks
        ));
    }
}

fn planned(
    job: &Calibration,
    process: u64,
    checkpoint: &Checkpoint,
    decoder: &Decoder,
    text: &Tokenized,
) -> Result<ForwardPlan> {
    let tokens = text.sequences.tokens();
    let input = |width| Accumulator::bytes(width, tokens, job.k);
    let (heads, hidden) = (decoder.heads * decoder.head_dim, decoder.hidden);
    let inner = checkpoint.modules().filter(|module| {
        let last = module.name().rsplit('.').next().unwrap_or_default();
        ["down_proj", "w2"].contains(&last)
    });
    let inner = inner.map(|module| module.shape()[1]).max().unwrap_or(0);
    let attention = input(hidden) + input(heads);
    let beside = Beside {
        process: process + 8 * tokens as u64,
        thread: THREAD,
        // The inputs of a layer's attention are kept until its experts' inputs are known.
        observer: attention.max(input(hidden) + input(inner)),
        updates: 0,
    };
    let scratch = job.out.join(crate::durable::lock::STATE);
    let (memory, threads, variants, sequences) = (job.memory, job.threads, 1, &text.sequences);
    plan(Asked { checkpoint, decoder, sequences, variants, memory, threads, scratch, beside })
}

/// Runs the layers that are not done, then the head.
fn run(
    mut pass: Forward<'_>,
    mut recorder: Recorder,
    plan: &ForwardPlan,
    state: &mut State,
    progress: &dyn Progress,
) -> Result<f64> {
    let (done, layers) = (state.layers.len(), pass.layers());
    let share = plan.read / (layers as u64 + 1);
    progress.begin(layers + 1, plan.read, done, share * done as u64);
    if let Some(states) = state.hidden() {
        pass.restore(&states)?;
    }
    for layer in done..layers {
        let started = Instant::now();
        pass.layer(layer, Some(&mut recorder))?;
        let (written, inputs) = recorder.finish()?;
        let hidden = atomic_file::write(&state.hidden_path(layer), |out| pass.hidden().save(out))?;
        let entry = StateEntry::layer(file_name(Some(layer)), written, inputs, hidden);
        state.append(entry)?;
        progress.analyzed(&format!("layer {layer}"), started.elapsed());
        progress.journaled();
    }
    let started = Instant::now();
    let losses = pass.losses(Some(&mut recorder))?;
    let (written, inputs) = recorder.finish()?;
    state.last = Some((file_name(None), written, inputs));
    progress.analyzed("output head", started.elapsed());
    Ok(mean(&losses))
}

/// The mean over all predicted tokens.
fn mean(losses: &[Loss]) -> f64 {
    let tokens: usize = losses.iter().map(|loss| loss.tokens).sum();
    losses.iter().map(|loss| loss.sum).sum::<f64>() / tokens as f64
}

fn index(job: &Calibration, begin: &Begin, state: &State, loss: f64) -> Index {
    let inputs: BTreeMap<String, IndexInput> = state.inputs().collect();
    let exact = inputs.values().all(|input| input.count <= job.k as u64);
    Index {
        format: FORMAT.to_owned(),
        version: VERSION,
        model: begin.model.clone(),
        text_digest: begin.text_digest.clone(),
        tokens: begin.tokens,
        k: begin.k,
        seed: begin.seed,
        sketch: if exact { "samples" } else { "sparse-sign" }.to_owned(),
        loss: Some(loss),
        inputs,
    }
}

/// Writes the index and, last, the checksums.
fn write(job: &Calibration, record: &Record, state: &State) -> Result<()> {
    let mut sums: BTreeMap<String, blake3::Hash> = state.files().collect();
    let text = serde_json::to_string_pretty(record)
        .map_err(|e| Error::unexpected("cannot write the index as JSON").because(e))?;
    let written = atomic_file::write(&job.out.join(INDEX), |file| file.write_all((text + "\n").as_bytes()))?;
    sums.insert(INDEX.to_owned(), written.blake3);
    checksums::write(&job.out, &sums)?;
    Ok(())
}

fn outcome(job: &Calibration, index: Index, sequences: usize, was_done: bool) -> Result<CalibrationOutcome> {
    let mut files: Vec<&str> = index.inputs.values().map(|input| input.file.as_str()).collect();
    files.sort_unstable();
    files.dedup();
    let size = |file: &&str| std::fs::metadata(job.out.join(file)).map_or(0, |data| data.len());
    Ok(CalibrationOutcome {
        out: job.out.clone(),
        was_done,
        loss: index.loss.unwrap_or(f64::NAN),
        tokens: index.tokens,
        sequences,
        inputs: index.inputs.len(),
        bytes: files.iter().map(size).sum(),
    })
}
