//! The course of a conversion: the folder is opened, weights are written file by file, all else after them, the checksums last.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Instant;

use crate::checkpoint::Checkpoint;
use crate::checkpoint::module::Module;
use crate::commands::convert::record::{CONVERSION, Conversion, Outcome};
use crate::commands::convert::sharding::{Shard, element, height, mapped};
use crate::commands::convert::sidecar_files;
use crate::commands::convert::sidecar_files::{CONFIG, Copy, Edits, INDEX};
use crate::commands::convert::state;
use crate::commands::convert::state::{Entry, Found, Run, State};
use crate::commands::convert::write_shard::{Change, Producer};
use crate::container::safetensors::writer::memory_for;
use crate::durable::digest::Written;
use crate::durable::{atomic_file, checksums, folder};
use crate::lora::read::PeftAdapter;
use crate::pipeline::memory::{CATALOGUE_ENTRY, OVERHEAD, THREAD};
use crate::pipeline::options::Running;
use crate::pipeline::ordered_panels::threads_within;
use crate::run::progress::Progress;
use crate::{Error, Result};

/// All that a conversion is made of.
pub(crate) struct Job<'a> {
    pub out: &'a Path,
    pub running: &'a Running,
    pub base: &'a Checkpoint,
    /// What `base` is called among the inputs.
    pub side: &'static str,
    pub adapter: Option<&'a PeftAdapter>,
    pub change: &'a dyn Change,
    pub conversion: Conversion,
    pub shards: Vec<Shard>,
    pub edits: Edits,
    /// Bytes that `change` holds in all, and for each thread.
    pub held: [u64; 2],
}

/// Converts, or goes on with a conversion that was stopped.
///
/// # Errors
/// Bad input, a folder or options that need a decision, a failing disk.
pub(crate) fn run(job: Job<'_>, progress: &dyn Progress) -> Result<Outcome> {
    for input in [Some(job.base.root()), job.adapter.map(PeftAdapter::root)].into_iter().flatten() {
        folder::refuse_input(job.out, input)?;
    }
    let copies = sidecar_files::copies(job.base)?;
    let config = sidecar_files::config(job.base.config(), &job.edits);
    let names = names(&job, &copies, config.is_some());
    let sources = sources(&job);
    let plan = Run { out: job.out, conversion: &job.conversion, files: &names, sources: &sources };
    let threads = threads(&job)?;
    let mut state = match state::open(&plan, job.running.overwrite)? {
        Found::Open(state) => *state,
        Found::Done(conversion, lock) => {
            state::tidy(lock, job.out)?;
            return Ok(outcome(&job, *conversion, true));
        }
    };
    state.notes.iter().for_each(|note| progress.note(note));
    check_disk(&job, &copies, &state)?;
    let mut sums = BTreeMap::new();
    let mut conversion = job.conversion.timeless();
    write_weights(&job, threads, &mut state, progress, &mut sums, &mut conversion)?;
    progress.assembling();
    for file in &copies {
        sums.insert(file.name.clone(), sidecar_files::copy(file, job.out)?.blake3);
    }
    let mut write = |name: &str, text: String| -> Result<()> {
        let written = atomic_file::write(&job.out.join(name), |file| file.write_all(text.as_bytes()))?;
        sums.insert(name.to_owned(), written.blake3);
        Ok(())
    };
    if let Some(config) = config {
        write(CONFIG, sidecar_files::text(&config)?)?;
    }
    write(CONVERSION, sidecar_files::text(&conversion)?)?;
    if let Some(index) = sidecar_files::index(&job.shards) {
        write(INDEX, sidecar_files::text(&index)?)?;
    }
    checksums::write(job.out, &sums)?;
    state::tidy(state.lock, job.out)?;
    for (module, count) in &conversion.non_finite {
        progress.note(&format!("{module}: {count} values are NaN or infinite, as stored"));
    }
    Ok(outcome(&job, conversion, false))
}

fn outcome(job: &Job<'_>, conversion: Conversion, was_done: bool) -> Outcome {
    let bytes = job.shards.iter().map(|shard| shard.bytes).sum();
    Outcome { out: job.out.to_owned(), was_done, files: job.shards.len(), bytes, conversion }
}

/// Every file of the finished folder but the checksums.
fn names(job: &Job<'_>, copies: &[Copy], config: bool) -> BTreeSet<String> {
    let mut names: BTreeSet<String> = job.shards.iter().map(|shard| shard.name.clone()).collect();
    names.extend(copies.iter().map(|copy| copy.name.clone()));
    names.insert(CONVERSION.to_owned());
    if config {
        names.insert(CONFIG.to_owned());
    }
    if job.shards.len() > 1 {
        names.insert(INDEX.to_owned());
    }
    names
}

/// Which files of the base each file of weights is made from.
fn sources(job: &Job<'_>) -> BTreeMap<String, BTreeSet<(String, String)>> {
    let of = |shard: &Shard| {
        let own = shard.sources.iter().copied();
        // A companion may lie in another file than its weight.
        let modules = shard.tensors.iter().filter_map(|tensor| tensor.module(job.base));
        let parts = modules.flat_map(|module| module.tensors().iter().map(|tensor| tensor.file));
        let name = |file| (job.side.to_owned(), job.base.file_name(file).to_owned());
        (shard.name.clone(), own.chain(parts).map(name).collect())
    };
    job.shards.iter().map(of).collect()
}

/// Writes the files of weights that are not there yet.
fn write_weights(
    job: &Job<'_>,
    threads: usize,
    state: &mut State,
    progress: &dyn Progress,
    sums: &mut BTreeMap<String, blake3::Hash>,
    conversion: &mut Conversion,
) -> Result<()> {
    let bytes = |shards: &mut dyn Iterator<Item = &Shard>| shards.map(|shard| shard.bytes).sum();
    let done = |shard: &&Shard| state.done.contains_key(&shard.name);
    let (all, before) = (bytes(&mut job.shards.iter()), bytes(&mut job.shards.iter().filter(done)));
    progress.begin_files(job.shards.len(), all, job.shards.iter().filter(done).count(), before);
    let producer = Producer::new(job.base, job.adapter, job.change, threads);
    for shard in &job.shards {
        if !state.done.contains_key(&shard.name) {
            let started = Instant::now();
            let finished = producer.write(&job.out.join(&shard.name), shard, progress)?;
            let (Written { bytes, blake3 }, non_finite) = (finished.written, finished.non_finite);
            let (name, blake3) = (shard.name.clone(), blake3.to_hex().to_string());
            state.journal.append(&Entry::File { name, bytes, blake3, non_finite: non_finite.clone() })?;
            state.done.insert(shard.name.clone(), (finished.written, non_finite));
            progress.file(&shard.name, started.elapsed());
            progress.journaled();
        }
        if let Some((written, non_finite)) = state.done.get(&shard.name) {
            sums.insert(shard.name.clone(), written.blake3);
            conversion.non_finite.extend(non_finite.clone());
        }
    }
    Ok(())
}

/// How many threads can work within the memory that is promised.
fn threads(job: &Job<'_>) -> Result<usize> {
    let computed: Vec<&Module> = job
        .shards
        .iter()
        .flat_map(|shard| &shard.tensors)
        .filter_map(|tensor| tensor.module(job.base))
        .collect();
    let size = |module: &&Module| {
        let [rows, columns] = module.shape();
        (height(columns).min(rows) * columns) as u64
    };
    let piece = computed.iter().map(size).max().unwrap_or(0);
    let mapped = computed.iter().map(|module| mapped(module)).max().unwrap_or(0);
    let whole =
        computed.iter().filter(|module| module.is_whole()).map(|module| module.size()).max().unwrap_or(0);
    let writing = job.shards.iter().map(|shard| memory_for(shard.bytes)).max().unwrap_or(0);
    let entries = job.base.tensors().len() + job.adapter.map_or(0, |adapter| adapter.tensors().len());
    let fixed = OVERHEAD + writing + entries as u64 * CATALOGUE_ENTRY + 2 * whole + job.held[0];
    // A thread has its values in f32 and what is mapped; two results of its wait to be written, and it makes a third.
    let made = (piece * element(safetensors::Dtype::F32) + piece * 4).max(2 << 20);
    threads_within(job.running.threads, job.running.memory, fixed, THREAD + mapped + job.held[1] + 3 * made)
}

/// Refuses a folder whose disk cannot take the output.
fn check_disk(job: &Job<'_>, copies: &[Copy], state: &State) -> Result<()> {
    let left =
        job.shards.iter().filter(|shard| !state.done.contains_key(&shard.name)).map(|shard| shard.bytes);
    let needed = left.sum::<u64>() + copies.iter().map(|copy| copy.bytes).sum::<u64>() + (1 << 20);
    let free = folder::free_space(job.out)?;
    if free >= needed {
        return Ok(());
    }
    let what =
        format!("the disk is too full: the run needs {} MiB, {} MiB are free", needed >> 20, free >> 20);
    Err(Error::unexpected(what).path(job.out).hint("make room, or give another --out"))
}
