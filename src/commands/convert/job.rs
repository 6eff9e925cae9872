//! Conversion as a job of the engine: each weight file is a unit, written in place; all other files follow.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::thread;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::checkpoint::catalogue::Tensor;
use crate::checkpoint::module::Module;
use crate::checkpoint::{Checkpoint, HASH_WINDOW};
use crate::commands::convert::record::{CONVERSION, Conversion, ConversionOutcome};
use crate::commands::convert::sharding::{COPY, Content, OutTensor, Shard, mapped};
use crate::commands::convert::sidecar_files;
use crate::commands::convert::sidecar_files::{CONFIG, Copies, Copy, Edits, INDEX};
use crate::commands::convert::write_shard::{Change, Producer, WrittenShard, result_bytes};
use crate::container::safetensors::writer::memory_for;
use crate::delta::record::{Side, TensorRecord};
use crate::delta::tensor_digests::tensor_record;
use crate::durable::checksums::Checksums;
use crate::durable::digest::Written;
use crate::durable::{checksums, digest, folder, json_file};
use crate::lora::read::PeftAdapter;
use crate::pipeline::memory::{ADAPTER_TENSOR, SMALL_THREAD, THREAD, catalogue, overhead, records};
use crate::pipeline::options::RunOptions;
use crate::pipeline::ordered_panels::threads_within;
use crate::run::attempts::completed::Completed;
use crate::run::attempts::recorder::Recorder;
use crate::run::engine::{Engine, PartOutcome};
use crate::run::identity::RunIdentity;
use crate::run::job::Job;
use crate::run::layout::Layout;
use crate::run::parts::assemble::{Assembled, Assembly, Begun};
use crate::run::parts::part_id::Part;
use crate::run::parts::partition::Share;
use crate::run::progress::Progress;
use crate::run::unit::{PlannedUnit, Unit, UnitId};
use crate::{Error, Result};

/// Memory of the thread that hashes the inputs: what it maps at a time, and its stack.
const HASHING: u64 = SMALL_THREAD + HASH_WINDOW;

/// Everything that a conversion needs.
pub(crate) struct Parts<'a> {
    pub out: &'a Path,
    pub running: &'a RunOptions,
    pub base: &'a Checkpoint,
    /// Where `base` and the adapter are, as the user gave them.
    pub places: Vec<(Side, String)>,
    pub adapter: Option<&'a PeftAdapter>,
    pub change: &'a dyn Change,
    pub conversion: Conversion,
    pub shards: Vec<Shard>,
    pub edits: Edits,
    /// Bytes that `change` holds: shared by all threads, and for each thread.
    pub held: [u64; 2],
}

/// A planned conversion.
pub(crate) struct ConvertJob<'a> {
    parts: Parts<'a>,
    side: Side,
    identity: RunIdentity,
    layout: Layout,
    units: Vec<PlannedUnit>,
    copies: Copies,
    config: Option<serde_json::Value>,
    threads: usize,
}

/// What the journal records for a weight file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Number of values in it that are NaN or infinite, by module.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    non_finite: BTreeMap<String, u64>,
}

/// A finished weight file.
pub(crate) struct Done {
    non_finite: BTreeMap<String, u64>,
    tensors: Vec<TensorRecord>,
}

impl<'a> ConvertJob<'a> {
    /// Plans a conversion with this `identity`. `side` is the role of `parts.base` in it.
    ///
    /// # Errors
    /// An output folder that contains an input, a budget that is too small, a folder that cannot be listed.
    pub fn new(parts: Parts<'a>, side: Side, identity: RunIdentity) -> Result<ConvertJob<'a>> {
        for input in [Some(parts.base.root()), parts.adapter.map(PeftAdapter::root)].into_iter().flatten() {
            folder::refuse_input(parts.out, input)?;
        }
        let copies = sidecar_files::copies(parts.base, parts.out)?;
        let config = sidecar_files::config(parts.base.config(), &parts.edits);
        let layout = layout(&parts.shards, &copies.files, config.is_some());
        let threads = threads(&parts)?;
        let unit = |shard: &Shard| PlannedUnit::new(UnitId::file(&shard.name), 0.0, shard.bytes);
        let units = parts.shards.iter().map(unit).collect();
        Ok(ConvertJob { parts, side, identity, layout, units, copies, config, threads })
    }

    fn engine<'e>(&'e self, progress: &'e dyn Progress) -> Engine<'e, ConvertJob<'a>> {
        Engine { job: self, out: self.parts.out, running: self.parts.running, progress }
    }

    /// Converts, or continues a conversion that was stopped.
    pub fn run(&self, progress: &dyn Progress) -> Result<ConversionOutcome> {
        let ended = self.engine(progress).run()?;
        Ok(self.outcome(ended.output, ended.was_done))
    }

    /// Runs one part.
    pub fn part(&self, part: Part, progress: &dyn Progress) -> Result<PartOutcome> {
        self.engine(progress).part(part)
    }

    /// Assembles the parts.
    pub fn assemble(
        &self,
        assembly: &Assembly,
        begun: &Begun,
        defaults: &serde_json::Map<String, serde_json::Value>,
        progress: &dyn Progress,
    ) -> Result<Assembled<ConversionOutcome>> {
        let assembled = self.engine(progress).assemble(begun, assembly.finish, defaults)?;
        Ok(assembled.map(|ended| self.outcome(ended.output, ended.was_done)))
    }

    fn outcome(&self, conversion: Conversion, was_done: bool) -> ConversionOutcome {
        let bytes = self.parts.shards.iter().map(|shard| shard.bytes).sum();
        ConversionOutcome {
            out: self.parts.out.to_owned(),
            was_done,
            files: self.parts.shards.len(),
            bytes,
            conversion,
        }
    }

    /// What a weight file is made from, each tensor or part of one once.
    fn sources<'s>(&'s self, shard: &'s Shard) -> Vec<(&'s Tensor, Range<u64>)> {
        let mut read: BTreeMap<(&str, u64), (&Tensor, Range<u64>)> = BTreeMap::new();
        for out in &shard.tensors {
            let mut add = |tensor, range: Range<u64>| {
                read.insert((Tensor::name(tensor), range.start), (tensor, range));
            };
            match (&out.content, out.module()) {
                (_, Some(module)) => module.extents().for_each(|(tensor, range)| add(tensor, range)),
                (Content::Base(tensor), None) => add(tensor, 0..tensor.size()),
                (_, None) => {}
            }
        }
        read.into_values().collect()
    }

    fn digests(&self, sources: Vec<(&Tensor, Range<u64>)>) -> Result<Vec<TensorRecord>> {
        let record = |(tensor, range): (&Tensor, Range<u64>)| {
            let digest = self.parts.base.hash_range(tensor, range.clone())?;
            Ok(tensor_record(self.side, self.parts.base, tensor, range, digest))
        };
        sources.into_iter().map(record).collect()
    }

    /// Writes a weight file, and takes the digests of what it is made from: beside the work where that lies here, and
    /// where it comes from a server, from what was fetched for it.
    fn write(
        &self,
        producer: &Producer<'_>,
        (path, shard): (&Path, &Shard),
        progress: &dyn Progress,
    ) -> Result<(WrittenShard, Vec<TensorRecord>)> {
        let sources = self.sources(shard);
        if self.parts.base.is_remote() {
            sources.iter().for_each(|(tensor, range)| self.parts.base.begin_pass(tensor, range.clone()));
            let finished = producer.write(path, shard, progress)?;
            return Ok((finished, self.digests(sources)?));
        }
        let (finished, tensors) = thread::scope(|scope| {
            let digests = scope.spawn(|| self.digests(sources));
            let finished = producer.write(path, shard, progress);
            let panicked = |_| Err(Error::unexpected("the thread that hashes the inputs has panicked"));
            (finished, digests.join().unwrap_or_else(panicked))
        });
        Ok((finished?, tensors?))
    }

    /// Moves the results of parts into place. A rename that is lost in a power cut is done again: until the checksums
    /// are written, a file is looked for in both places.
    fn move_into_place(&self, done: &Completed<Done>) -> Result<()> {
        for (id, unit) in done.units() {
            let place = self.parts.out.join(&*id.name);
            if unit.path != place {
                fs::rename(&unit.path, &place).map_err(|e| {
                    Error::unexpected("cannot move a part's file into place").path(&unit.path).because(e)
                })?;
            }
        }
        folder::sync(self.parts.out)
    }
}

impl Job for ConvertJob<'_> {
    type Record = Record;
    type Done = Done;
    type Output = Conversion;

    fn identity(&self) -> &RunIdentity {
        &self.identity
    }

    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn units(&self) -> &[PlannedUnit] {
        &self.units
    }

    fn places(&self) -> Vec<(Side, String)> {
        self.parts.places.clone()
    }

    fn checkpoint(&self, side: Side) -> Option<&Checkpoint> {
        (side == self.side).then_some(self.parts.base)
    }

    fn check_inputs(&self) -> Result<()> {
        self.parts.base.check_unchanged()?;
        self.parts.adapter.map_or(Ok(()), PeftAdapter::check_unchanged)
    }

    fn disk_bytes(&self) -> u64 {
        let copies = self.copies.files.iter().map(|copy| copy.bytes);
        self.parts.shards.iter().map(|shard| shard.bytes).chain(copies).sum::<u64>() + (1 << 20)
    }

    fn described(&self) -> String {
        format!("{} threads, {} MiB", self.threads, self.parts.running.memory >> 20)
    }

    fn result_name(&self, unit: &UnitId) -> String {
        unit.name.to_string()
    }

    fn load(&self, unit: Unit<Record>, result: &Path) -> Result<Done> {
        let changed = || Error::input("it is not the file that was written").path(result);
        let written = unit.written.ok_or_else(changed)?;
        // The cheap comparison first.
        let length = fs::metadata(result).map(|data| data.len()).ok();
        if length != Some(written.bytes) || digest::hash_file(result)? != written {
            return Err(changed());
        }
        Ok(Done { non_finite: unit.record.non_finite, tensors: unit.tensors })
    }

    fn work(
        &self,
        share: &Share,
        recorder: &mut Recorder<'_, Record, Done>,
        progress: &dyn Progress,
    ) -> Result<()> {
        let mine = |shard: &&Shard| share.contains(&UnitId::file(&shard.name));
        let shards: Vec<&Shard> = self.parts.shards.iter().filter(mine).collect();
        let (done, left): (Vec<&Shard>, Vec<&Shard>) =
            shards.iter().partition(|shard| recorder.is_done(&UnitId::file(&shard.name)));
        let bytes = |shards: &[&Shard]| shards.iter().map(|shard| shard.bytes).sum::<u64>();
        progress.begin_files(shards.len(), bytes(&shards), done.len(), bytes(&done));
        let producer = Producer::new(self.parts.base, self.parts.adapter, self.parts.change, self.threads);
        for shard in left {
            let started = Instant::now();
            let path = recorder.results().join(&shard.name);
            let (finished, tensors) = self.write(&producer, (&path, shard), progress)?;
            let non_finite = finished.non_finite;
            let record = Record { non_finite: non_finite.clone() };
            let (id, written) = (UnitId::file(&shard.name), Some(finished.written));
            let unit = Unit { id, written, tensors: tensors.clone(), record };
            recorder.record(unit, path, Done { non_finite, tensors })?;
            progress.file(&shard.name, started.elapsed());
            progress.journaled();
        }
        Ok(())
    }

    fn finish(
        &self,
        identity: &RunIdentity,
        done: &Completed<Done>,
        progress: &dyn Progress,
    ) -> Result<Conversion> {
        self.move_into_place(done)?;
        let out = self.parts.out;
        let mut sums = BTreeMap::new();
        let simd = identity.simd.clone();
        let mut conversion =
            Conversion { simd, inputs: identity.timeless_inputs(), ..self.parts.conversion.clone() };
        for shard in &self.parts.shards {
            let unit = done.get(&UnitId::file(&shard.name)).and_then(|unit| Some((unit, unit.written?)));
            let (unit, Written { blake3, .. }) = unit.ok_or_else(|| {
                let error = Error::unexpected("a weight file was never finished");
                error.path(out.join(&shard.name)).hint("run the same command again")
            })?;
            sums.insert(shard.name.clone(), blake3);
            conversion.non_finite.extend(unit.done.non_finite.clone());
            conversion.tensors.extend(unit.done.tensors.iter().cloned());
        }
        conversion.tensors.sort();
        conversion.tensors.dedup();
        self.copies.left_out.iter().for_each(|what| progress.note(&format!("not copied: {what}")));
        for file in &self.copies.files {
            sums.insert(file.name.clone(), sidecar_files::copy(file, out)?.blake3);
        }
        if let Some(config) = &self.config {
            sums.insert(CONFIG.to_owned(), json_file::write(&out.join(CONFIG), config)?.blake3);
        }
        sums.insert(CONVERSION.to_owned(), json_file::write(&out.join(CONVERSION), &conversion)?.blake3);
        if let Some(index) = sidecar_files::index(&self.parts.shards) {
            sums.insert(INDEX.to_owned(), json_file::write(&out.join(INDEX), &index)?.blake3);
        }
        checksums::write(out, &sums)?;
        for (module, count) in &conversion.non_finite {
            progress.note(&format!("{module}: {count} values are NaN or infinite, as stored"));
        }
        Ok(conversion)
    }
}

/// The outcome of a conversion that is already assembled.
///
/// # Errors
/// A file that was removed or damaged since.
pub(crate) fn assembled(assembly: &Assembly) -> Result<ConversionOutcome> {
    let conversion = crate::run::parts::assemble::finished(assembly, CONVERSION, &[CONVERSION], None)?;
    let sums = Checksums::read(&assembly.out)?;
    let weights = sums.entries().iter().filter(|entry| entry.name.ends_with(".safetensors"));
    let sizes: Vec<u64> = weights
        .filter_map(|entry| fs::metadata(assembly.out.join(&entry.name)).ok())
        .map(|data| data.len())
        .collect();
    let (files, bytes) = (sizes.len(), sizes.iter().sum());
    Ok(ConversionOutcome { out: assembly.out.clone(), was_done: true, files, bytes, conversion })
}

/// Every file of the finished folder except the checksums.
fn layout(shards: &[Shard], copies: &[Copy], config: bool) -> Layout {
    let mut names: BTreeSet<String> = shards.iter().map(|shard| shard.name.clone()).collect();
    names.extend(copies.iter().map(|copy| copy.name.clone()));
    names.insert(CONVERSION.to_owned());
    names.extend(config.then(|| CONFIG.to_owned()));
    names.extend((shards.len() > 1).then(|| INDEX.to_owned()));
    Layout { in_place: true, ..Layout::new(CONVERSION, names) }
}

/// How many threads fit within the memory limit.
fn threads(job: &Parts<'_>) -> Result<usize> {
    let outputs = || job.shards.iter().flat_map(|shard| &shard.tensors);
    let computed = || outputs().filter_map(OutTensor::module);
    let mapped = computed().map(mapped).max().unwrap_or(0);
    let whole = computed().filter(|module| module.is_whole()).map(Module::size).max().unwrap_or(0);
    let writing = job.shards.iter().map(|shard| memory_for(shard.bytes)).max().unwrap_or(0);
    let adapter = job.adapter.map_or(0, |adapter| adapter.tensors().len() as u64 * ADAPTER_TENSOR);
    let fixed = overhead()
        + HASHING
        + writing
        + catalogue(job.base)
        + records(job.base)
        + adapter
        + 2 * whole
        + job.held[0];
    let changes = outputs().any(|out| out.module().is_some_and(|module| job.change.concerns(module.name())));
    let stack = if changes { THREAD } else { SMALL_THREAD };
    // A thread holds a result and what is mapped for it; two of its results wait to be written while it computes a
    // third.
    let made = outputs().map(|out| result_bytes(out, job.change)).max().unwrap_or(0).max(COPY);
    threads_within(job.running.threads, job.running.memory, fixed, stack + mapped + job.held[1] + 3 * made)
}
