//! Turns finished shards into a complete folder: adapter, config, spectra, manifest, model card, and the checksums
//! last.

use crate::commands::extract::inputs::Inputs;
use crate::commands::extract::module::{A, B, ShardRecord};
use crate::commands::extract::options::Extraction;
use crate::commands::extract::output::files::{CARD, MANIFEST, SPECTRA};
use crate::commands::extract::output::manifest::{Manifest, Spectrum, total};
use crate::commands::extract::output::model_card;
use crate::commands::extract::plan::ExtractionPlan;
use crate::commands::extract::record::Done;
use crate::delta::module_record::{ModuleRecord, Quality};
use crate::delta::record::{LeftOut, TensorRecord, source};
use crate::durable::digest::Written;
use crate::durable::{atomic_file, checksums};
use crate::lora::names::{Place, place_of};
use crate::lora::tree::BaseModules;
use crate::lora::write::adapter::{Adapter, AdapterWriter};
use crate::lora::write::peft::Peft;
use crate::lora::write::piece::{Piece, ShardNames};
use crate::lora::write::shard::Shard;
use crate::run::attempts::completed::Completed;
use crate::run::identity::RunIdentity;
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

/// Assembles the adapter of a run whose modules are all done.
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
    let out = &job.out;
    let mut files: BTreeMap<String, blake3::Hash> = BTreeMap::new();
    let rank = match job.deciding.energy {
        Some(_) => done.modules.values().map(|done| done.record.module.rank).max().unwrap_or(0).max(1),
        None => job.deciding.rank,
    };
    let pieces = pieces(plan, done)?;
    let adapter = Adapter {
        base: &job.deciding.base_model_name,
        modules: &BaseModules::of(&inputs.base),
        task_type: inputs.base.task_type(),
        rank,
        dtype: job.deciding.dtype.dtype(),
        pieces: &pieces,
        names: ShardNames { a: A, b: B },
    };
    let written = Peft.write(out, &adapter)?;
    files.extend(written.files);
    let manifest = manifest(inputs, job, plan, identity, done, rank, &written.modules);

    let spectra = spectra(plan, done);
    files.insert(SPECTRA.into(), write_spectra(&out.join(SPECTRA), &spectra)?.blake3);
    let json = serde_json::to_string_pretty(&manifest).map_err(not_json)? + "\n";
    files.insert(MANIFEST.into(), write_text(&out.join(MANIFEST), &json)?.blake3);
    let card = model_card::write(&manifest, &job.deciding, &spectra);
    files.insert(CARD.into(), write_text(&out.join(CARD), &card)?.blake3);
    checksums::write(out, &files)?;
    Ok(manifest)
}

fn not_json(e: serde_json::Error) -> Error {
    Error::unexpected("cannot write JSON").because(e)
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
    let mut modules: Vec<ModuleRecord> = records.iter().map(|record| record.module.clone()).collect();
    modules.extend(plan.zeros.iter().map(|(name, shape)| ModuleRecord {
        name: name.clone(),
        shape: *shape,
        rank: 0,
        method: "none".into(),
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
    let compared = plan.not_represented.iter().filter_map(|left| done.compared.get(left.key().as_str()));
    let (not_represented, read): (Vec<&LeftOut>, Vec<&[TensorRecord]>) = compared.copied().unzip();
    let mut tensors: Vec<TensorRecord> = records.iter().flat_map(|record| record.tensors.clone()).collect();
    tensors.extend(read.into_iter().flatten().cloned());
    tensors.sort();
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
