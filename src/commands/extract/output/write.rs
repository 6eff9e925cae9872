//! Turns finished shards into a complete folder: adapter, config, spectra, manifest, model card, and the checksums
//! last.

use crate::commands::extract::inputs::{Inputs, side_files};
use crate::commands::extract::module::{A, B, ShardRecord};
use crate::commands::extract::options::Extraction;
use crate::commands::extract::output::files::{CARD, MANIFEST, SPECTRA};
use crate::commands::extract::output::manifest::{LowerRank, Manifest, Spectrum, total};
use crate::commands::extract::output::model_card;
use crate::commands::extract::output::other_ranks::other_ranks;
use crate::commands::extract::output::ranks;
use crate::commands::extract::plan::ExtractionPlan;
use crate::commands::extract::record::Done;
use crate::delta::module_record::{ModuleRecord, Quality};
use crate::delta::record::{LeftOut, TensorRecord, source};
use crate::durable::digest::Written;
use crate::durable::finding::B3SUMS;
use crate::durable::{atomic_file, checksums, inside, json_file};
use crate::factorize::precision::Precision;
use crate::lora::names::{Place, place_of};
use crate::lora::tree::BaseModules;
use crate::lora::write::adapter::{Adapter, AdapterWriter};
use crate::lora::write::peft::Peft;
use crate::lora::write::piece::{Piece, ShardNames};
use crate::lora::write::shard::Shard;
use crate::run::attempts::completed::Completed;
use crate::run::identity::RunIdentity;
use crate::storage::regular_file;
use crate::{Error, Result};
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::Path;

/// A finished module.
pub struct DoneModule<'a> {
    /// Its shard.
    path: &'a Path,
    /// The shard's length and digest.
    written: Written,
    /// The record stored in the shard.
    record: &'a ShardRecord,
}

/// All finished work.
pub struct DoneWork<'a> {
    /// Modules by name.
    modules: HashMap<&'a str, DoneModule<'a>>,
    /// Comparisons by [key](LeftOut::key), with the tensors read for them.
    compared: HashMap<&'a str, (&'a LeftOut, &'a [TensorRecord])>,
}

impl<'a> DoneWork<'a> {
    /// Indexes `completed` by name.
    pub fn new(completed: &'a Completed<Done>) -> DoneWork<'a> {
        let mut work = DoneWork { modules: HashMap::new(), compared: HashMap::new() };
        for (id, unit) in completed.units() {
            match &unit.done {
                Done::Module(record) => {
                    let written = unit.written.unwrap_or(Written { bytes: 0, blake3: blake3::hash(b"") });
                    work.modules.insert(&id.name, DoneModule { path: &unit.path, written, record });
                }
                Done::Compared(left_out, tensors) => {
                    work.compared.insert(&id.name, (left_out, tensors));
                }
            }
        }
        work
    }
}

/// Assembles the adapter of a run whose modules are all done, and before it those of lower ranks.
///
/// # Errors
/// A shard that does not match the journal, or a failing disk. The shards are kept, so the same command resumes.
pub fn finish(
    inputs: &Inputs,
    job: &Extraction,
    plan: &ExtractionPlan,
    identity: &RunIdentity,
    done: &DoneWork<'_>,
) -> Result<Manifest> {
    refuse_no_change(done)?;
    let widest = done.modules.values().map(|done| done.record.module.rank).max().unwrap_or(0);
    let most = match job.deciding.energy {
        Some(_) => widest.max(1),
        None => plan.rank.max(widest),
    };
    let records: Vec<&ShardRecord> = done.modules.values().map(|done| done.record).collect();
    let met = job.deciding.target.map(|target| ranks::least_rank(&records, most, target));
    let rank = met.flatten().unwrap_or(most);
    let spectra = spectra(plan, done);
    let assembly = Assembly { inputs, job, plan, identity, done, pieces: pieces(plan, done)?, spectra };
    let mut files: BTreeMap<String, blake3::Hash> = BTreeMap::new();
    let mut lower_ranks = Vec::new();
    for rank in job.deciding.ranks_below(rank) {
        let name = ranks::folder(rank);
        let out = job.out.join(&name);
        inside::create_folders(&job.out, &format!("{name}/{MANIFEST}"))?;
        let (mut written, manifest) = assembly.write(&out, rank, Vec::new(), None)?;
        written.insert(B3SUMS.into(), checksums::write(&out, &written)?.blake3);
        files.extend(written.into_iter().map(|(file, digest)| (format!("{name}/{file}"), digest)));
        lower_ranks.push(LowerRank { rank, folder: name, total: manifest.total });
    }
    let missed = (met == Some(None)).then(|| {
        format!(
            "rank {most} is not enough for the target: give a higher --rank, which is the most that is tried"
        )
    });
    let (written, manifest) = assembly.write(&job.out, rank, lower_ranks, missed)?;
    files.extend(written);
    checksums::write(&job.out, &files)?;
    Ok(manifest)
}

/// What adapters are assembled from.
struct Assembly<'a> {
    inputs: &'a Inputs,
    job: &'a Extraction,
    plan: &'a ExtractionPlan,
    identity: &'a RunIdentity,
    done: &'a DoneWork<'a>,
    pieces: Vec<Piece>,
    spectra: Vec<Spectrum>,
}

impl Assembly<'_> {
    /// Writes the adapter of this rank into `out`: every file but the checksums, whose digests it returns.
    fn write(
        &self,
        out: &Path,
        rank: usize,
        lower_ranks: Vec<LowerRank>,
        note: Option<String>,
    ) -> Result<(BTreeMap<String, blake3::Hash>, Manifest)> {
        let Assembly { inputs, job, plan, identity, done, pieces, spectra } = self;
        let adapter = Adapter {
            base: &job.deciding.base_model_name,
            modules: &BaseModules::of(&inputs.base).for_loader(job.deciding.loader),
            task_type: inputs.base.task_type(),
            rank,
            dtype: job.deciding.dtype.dtype(),
            pieces,
            names: ShardNames { a: A, b: B },
        };
        let written = Peft.write(out, &adapter)?;
        let mut files = written.files;
        let mut manifest = Manifest {
            other_ranks: other_ranks(spectra, rank, inputs.calibration.is_some()),
            lower_ranks,
            ..manifest(inputs, job, plan, identity, done, rank, &written.modules)
        };
        manifest.notes.extend(note);
        files.insert(SPECTRA.into(), write_spectra(&out.join(SPECTRA), spectra)?.blake3);
        files.insert(MANIFEST.into(), json_file::write(&out.join(MANIFEST), &manifest)?.blake3);
        let card = model_card::write(&manifest, &job.deciding);
        files.insert(CARD.into(), write_text(&out.join(CARD), &card)?.blake3);
        if job.deciding.copy_tokenizer {
            let (_kept, carried) = side_files::carried(&inputs.tuned)?;
            for (name, path) in carried {
                files.insert(name.into(), copy(&path, &out.join(name))?.blake3);
            }
        }
        Ok((files, manifest))
    }
}

/// Refuses to write an adapter of zeros alone.
fn refuse_no_change(done: &DoneWork<'_>) -> Result<()> {
    if done.modules.values().any(|done| done.record.module.quality.delta_norm > 0.0) {
        return Ok(());
    }
    let changed = done.compared.values().filter(|(left, _)| left.relative_change.is_some_and(|c| c > 0.0));
    let names: Vec<&str> = changed.map(|(left, _)| left.name.as_str()).collect();
    let hint = match names.iter().min() {
        Some(name) => format!("what did change is not selected, for example '{name}': --include takes it"),
        None => "check --base and --tuned: are they copies of one model?".to_owned(),
    };
    Err(Error::input("base and tuned are equal in every selected module: there is nothing to extract")
        .hint(hint))
}

fn copy(from: &Path, to: &Path) -> Result<Written> {
    let mut file = regular_file::open(from).map_err(|e| regular_file::cannot_read(from, e))?;
    atomic_file::write(to, |out| std::io::copy(&mut file, out).map(drop))
}

fn write_text(path: &Path, text: &str) -> Result<Written> {
    atomic_file::write(path, |file| file.write_all(text.as_bytes()))
}

/// The modules of the adapter, the zeros that its siblings need among them.
fn pieces(plan: &ExtractionPlan, done: &DoneWork<'_>) -> Result<Vec<Piece>> {
    let oriented = |name: &str, [rows, cols]: [usize; 2]| match place_of(name) {
        Place::Embedding => [cols, rows],
        _ => [rows, cols],
    };
    let mut pieces = Vec::new();
    for module in &plan.modules {
        let done = done.modules.get(module.name.as_str()).ok_or_else(|| {
            Error::unexpected("a module was never finished")
                .tensor(&module.name)
                .hint("run the same command again")
        })?;
        let (path, written) = (done.path.to_owned(), done.written);
        pieces.push(Piece {
            module: module.name.clone(),
            place: module.pair.place,
            shape: oriented(&module.name, module.shape),
            rank: done.record.module.rank,
            shard: Some(Box::new(move || Shard::open(&path, written))),
        });
    }
    pieces.extend(plan.zeros.iter().map(|(name, shape)| Piece {
        module: name.clone(),
        place: place_of(name),
        shape: oriented(name, *shape),
        rank: 0,
        shard: None,
    }));
    Ok(pieces)
}

fn manifest(
    inputs: &Inputs,
    job: &Extraction,
    plan: &ExtractionPlan,
    identity: &RunIdentity,
    done: &DoneWork<'_>,
    rank: usize,
    digests: &BTreeMap<String, blake3::Hash>,
) -> Manifest {
    let records: Vec<&ShardRecord> = done.modules.values().map(|done| done.record).collect();
    let mut modules: Vec<ModuleRecord> = records.iter().map(|record| ranks::at_rank(record, rank)).collect();
    modules.extend(plan.zeros.iter().map(|(name, shape)| ModuleRecord {
        name: name.clone(),
        shape: *shape,
        rank: 0,
        method: "none".into(),
        precision: Precision::F32,
        missed_by_bytes: None,
        basis: 0,
        passes: 0,
        minimized: None,
        quality: Quality::of(0.0, 0.0),
        estimated_excess: 0.0,
        expected_noise: None,
        non_finite: 0,
        blake3: String::new(),
    }));
    for module in &mut modules {
        module.blake3 =
            digests.get(&module.name).map(|digest| digest.to_hex().to_string()).unwrap_or_default();
    }
    modules.sort_by(|a, b| a.name.cmp(&b.name));
    let compared = plan.not_represented.iter().filter_map(|left| done.compared.get(left.key()));
    let (not_represented, read): (Vec<&LeftOut>, Vec<&[TensorRecord]>) = compared.copied().unzip();
    let count = records.iter().map(|record| record.tensors.len()).chain(read.iter().map(|read| read.len()));
    let mut tensors: Vec<TensorRecord> = Vec::with_capacity(count.sum());
    tensors.extend(records.iter().flat_map(|record| &record.tensors).cloned());
    tensors.extend(read.into_iter().flatten().cloned());
    tensors.sort_unstable();
    tensors.dedup();
    Manifest {
        trephine: identity.trephine.clone(),
        options: identity.options.clone(),
        simd: identity.simd.clone().unwrap_or_default(),
        inputs: identity.timeless_inputs(),
        base: source(&job.base, &inputs.base),
        tuned: source(&job.tuned, &inputs.tuned),
        served: inputs.served.as_ref().zip(job.served.as_ref()).map(|(served, name)| source(name, served)),
        calibration: inputs.calibration.as_ref().map(|calibration| calibration.source().clone()),
        hybrid: inputs.dense.as_ref().zip(job.hybrid.as_ref()).map(|(dense, name)| source(name, dense)),
        rank,
        total: total(modules.iter()),
        lower_ranks: Vec::new(),
        other_ranks: Vec::new(),
        absorbed_norms: plan.absorbed.clone(),
        notes: plan.notes.clone(),
        modules,
        not_represented: not_represented.into_iter().cloned().collect(),
        tensors,
    }
}

fn spectra(plan: &ExtractionPlan, done: &DoneWork<'_>) -> Vec<Spectrum> {
    let mut names: Vec<&str> = plan.modules.iter().map(|module| module.name.as_str()).collect();
    names.sort_unstable();
    names.iter().filter_map(|name| done.modules.get(name)).map(|done| done.record.spectrum.clone()).collect()
}

fn write_spectra(path: &Path, spectra: &[Spectrum]) -> Result<Written> {
    atomic_file::write(path, |file| {
        let mut packed = zstd::Encoder::new(file, 9)?;
        for spectrum in spectra {
            serde_json::to_writer(&mut packed, spectrum)?;
            packed.write_all(b"\n")?;
        }
        packed.finish().map(drop)
    })
}
