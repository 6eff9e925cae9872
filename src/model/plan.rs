//! The memory that a pass needs, and how it is cut to fit.

use std::path::PathBuf;

use super::decoder::Decoder;
use super::kernel::attend_scratch;
use super::linear::panels;
use super::{Group, Needs, Sequences};
use crate::checkpoint::{Checkpoint, Module};
use crate::{Error, Result};

/// A pass to be planned.
#[derive(Clone, Debug)]
pub struct Asked<'a> {
    /// The model.
    pub checkpoint: &'a Checkpoint,
    /// Its architecture.
    pub decoder: &'a Decoder,
    /// The text.
    pub sequences: &'a Sequences,
    /// The number of model variants that are run together.
    pub variants: usize,
    /// Peak resident memory of the process in bytes.
    pub memory: u64,
    /// The most compute threads.
    pub threads: usize,
    /// The folder for hidden states that do not fit in memory.
    pub scratch: PathBuf,
    /// Other uses of the memory.
    pub beside: Beside,
}

/// The other uses of the memory that a pass runs in.
#[derive(Clone, Copy, Debug, Default)]
pub struct Beside {
    /// Bytes that the process itself takes, including the checkpoint's catalogue.
    pub process: u64,
    /// Bytes that each thread itself takes.
    pub thread: u64,
    /// The most bytes that the observer holds at any time.
    pub observer: u64,
    /// Bytes of the updates of the module with the largest updates, for all variants.
    pub updates: u64,
}

/// A planned pass.
#[derive(Clone, Debug)]
pub struct ForwardPlan {
    /// How it is run.
    pub needs: Needs,
    /// Bytes of weights to read, as stored.
    pub read: u64,
    /// How many times each weight is read.
    pub chunks: usize,
}

/// Refuses a pass where `text` bytes, for the tokenizer and the text alone, are more than the `memory` that all of the
/// `process` may take. This is known before they are read.
///
/// # Errors
/// [`Kind::Decide`](crate::Kind::Decide); a pass needs more than what is named here.
pub fn refuse_below(text: u64, process: u64, memory: u64) -> Result<()> {
    if text <= memory {
        return Ok(());
    }
    let (given, least) = (memory >> 20, process.div_ceil(1 << 20));
    let what = format!("not enough memory: {given} MiB given, at least {least} MiB needed");
    let hint = "the model's vocabulary and the text take as much: give more to --memory, or less to --tokens";
    Err(Error::decide(what).hint(hint))
}

/// Plans a pass: how many threads, how many tokens at a time, and whether hidden states stay in memory.
///
/// # Errors
/// The memory is too small; the error says how much is needed.
pub fn plan(asked: Asked<'_>) -> Result<ForwardPlan> {
    let Asked { checkpoint, decoder, sequences, variants, memory, threads, scratch, beside } = asked;
    let groups = sequences.groups(variants);
    let tokens: u64 = groups.iter().map(|group| group.tokens() as u64).sum();
    let largest = groups.iter().map(Group::tokens).max().unwrap_or(0) as u64;
    let modules: Vec<&Module> = run_modules(checkpoint, decoder);
    let kept = modules.iter().map(|module| module.kept_size() as u64).max().unwrap_or(0);
    let panel = modules.iter().map(|module| panel_bytes(module, largest)).max().unwrap_or(0);
    let attention = 4 * attend_scratch(sequences.longest(), decoder.head_dim) as u64;
    let each = beside.thread + panel.max(attention);
    let states = 4 * tokens * decoder.hidden as u64 * if decoder.mixture.is_some() { 2 } else { 1 };
    let token = 4 * token_values(&modules, decoder) + 4 * 12;
    let fixed =
        beside.process.saturating_add(beside.observer).saturating_add(beside.updates).saturating_add(kept);
    let fits = |threads: u64, chunk: u64, states: u64| {
        fixed.saturating_add(threads * each + chunk * token + states) <= memory
    };
    let group_states = 2 * 4 * largest * decoder.hidden as u64;
    // Threads have priority, then hidden states in memory, then long chunks.
    let mut threads = threads as u64;
    while threads > 1 && !fits(threads, largest, group_states) {
        threads -= 1;
    }
    if !fits(threads, largest, group_states) {
        let least = fixed.saturating_add(each + largest * token + group_states).div_ceil(1 << 20);
        return Err(Error::decide(format!(
            "not enough memory: {} MiB given, {least} MiB needed",
            memory >> 20
        ))
        .hint(format!("give --memory {least}MiB, or shorter texts with --sequence")));
    }
    let in_memory = fits(threads, largest, states);
    let held = if in_memory { states } else { group_states };
    let free = memory - fixed - threads * each - held;
    let chunk = (free / token.max(1)).clamp(largest, tokens.max(largest));
    let chunks = tokens.div_ceil(chunk.max(1)) as usize;
    let weights: u64 = modules.iter().map(|module| module.size()).sum();
    Ok(ForwardPlan {
        needs: Needs {
            threads: threads as usize,
            chunk: chunk as usize,
            scratch: (!in_memory).then_some(scratch),
        },
        read: weights * chunks as u64,
        chunks,
    })
}

/// The modules that a pass reads.
fn run_modules<'a>(checkpoint: &'a Checkpoint, decoder: &Decoder) -> Vec<&'a Module> {
    let layers = decoder.names.inside(0, "");
    let prefix = layers.trim_end_matches("0.");
    let head = checkpoint.module(decoder.names.head());
    checkpoint.modules().filter(|module| module.name().starts_with(prefix)).chain(head).collect()
}

/// What a thread holds of a weight: a decoded panel, its stored bytes, and its product unless that is kept elsewhere.
fn panel_bytes(module: &Module, tokens: u64) -> u64 {
    let columns = module.shape()[1];
    let bytes = |rows: std::ops::Range<usize>| {
        let mapped = if module.is_whole() { 0 } else { module.packed_size(rows.clone()) };
        (4 * rows.len() * columns + mapped) as u64 + 4 * rows.len() as u64 * tokens
    };
    panels(module).into_iter().map(bytes).max().unwrap_or(0)
}

/// Values that are held per token at the widest point of a layer.
fn token_values(modules: &[&Module], decoder: &Decoder) -> u64 {
    let heads = (decoder.heads + 2 * decoder.kv_heads) * decoder.head_dim;
    let inner = |module: &&&Module| {
        let last = module.name().rsplit('.').next().unwrap_or_default();
        ["down_proj", "w2"].contains(&last)
    };
    let inner = modules.iter().filter(inner).map(|module| module.shape()[1]).max().unwrap_or(0);
    // A part's input, its output, and the hidden states that it is added to; a fused product is split by copying.
    (3 * decoder.hidden + (heads + heads / 2).max(2 * inner)) as u64
}
