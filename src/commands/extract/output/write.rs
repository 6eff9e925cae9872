//! From finished shards to a folder that is whole: adapter, config, spectra, manifest, card, and checksums last.

use crate::commands::extract::output::manifest::total;
use crate::delta::record::source;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use crate::commands::extract::attempts::attempt;
use crate::commands::extract::attempts::completed::Finished;
use crate::commands::extract::attempts::run_dir::removed;
use crate::commands::extract::module::{A, B, ShardRecord};
use crate::commands::extract::options::Extraction;
use crate::commands::extract::output::files::{CARD, MANIFEST, SPECTRA};
use crate::commands::extract::output::manifest::{Manifest, Spectrum};
use crate::commands::extract::output::model_card;
use crate::commands::extract::plan::{Inputs, Plan};
use crate::commands::extract::run_identity::Begin;
use crate::delta::module_record::{ModuleRecord, Quality};
use crate::delta::record::{LeftOut, TensorRecord};
use crate::durable::digest::Written;
use crate::durable::lock::Lock;
use crate::durable::{atomic_file, checksums, folder};
use crate::lora;
use crate::lora::config;
use crate::lora::config::AdapterConfig;
use crate::lora::names::{Place, place_of};
use crate::lora::write::peft;
use crate::lora::write::piece::{Piece, ShardNames};
use crate::lora::write::shard::Shard;
use crate::run::layout::STATE;
use crate::run::layout::{HEARTBEAT, HEARTBEAT_DRAFT};
use crate::run::layout::{HOW, JOURNAL, PARTS, SHARDS};
use crate::run::log::Log;
use crate::{Error, Result};

/// Assembles the adapter of a run whose every module is done.
///
/// # Errors
/// A shard that is not what the journal said, or a failing disk. The shards stay, so the same command goes on.
pub fn finish(
    inputs: &Inputs,
    job: &Extraction,
    plan: &Plan,
    begin: &Begin,
    done: &Finished,
) -> Result<Manifest> {
    let out = &job.out;
    let mut files: BTreeMap<String, blake3::Hash> = BTreeMap::new();
    let rank = match job.deciding.energy {
        Some(_) => done.modules.values().map(|done| done.record.module.rank).max().unwrap_or(0).max(1),
        None => job.deciding.rank,
    };
    let (weights, digests) = write_weights(job, plan, done, rank)?;
    files.insert(lora::WEIGHTS.into(), weights.blake3);

    let manifest = manifest(inputs, job, plan, begin, done, rank, &digests);
    let config = portable(&job.deciding.base_model_name, rank, &manifest);
    let config = config::write_config(&config).map_err(not_json)?;
    files.insert(lora::CONFIG.into(), write_text(&out.join(lora::CONFIG), &config)?.blake3);

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

fn write_weights(
    job: &Extraction,
    plan: &Plan,
    done: &Finished,
    rank: usize,
) -> Result<(Written, BTreeMap<String, blake3::Hash>)> {
    let oriented = |name: &str, [rows, cols]: [usize; 2]| match place_of(name) {
        Place::Embedding => [cols, rows],
        _ => [rows, cols],
    };
    let mut pieces = Vec::new();
    for module in &plan.modules {
        let done = done.modules.get(&module.name).ok_or_else(|| {
            Error::unexpected("a module was never finished")
                .tensor(&module.name)
                .hint("run the same command again")
        })?;
        let (path, written) = (done.path.clone(), done.written);
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
    let names = ShardNames { a: A, b: B };
    peft::assemble(&job.out.join(lora::WEIGHTS), rank, job.deciding.dtype.dtype(), &pieces, &names)
}

fn manifest(
    inputs: &Inputs,
    job: &Extraction,
    plan: &Plan,
    begin: &Begin,
    done: &Finished,
    rank: usize,
    digests: &BTreeMap<String, blake3::Hash>,
) -> Manifest {
    let records: Vec<&ShardRecord> = done.modules.values().map(|done| &done.record).collect();
    let mut modules: Vec<ModuleRecord> = records.iter().map(|record| record.module.clone()).collect();
    modules.extend(plan.zeros.iter().map(|(name, shape)| ModuleRecord {
        name: name.clone(),
        shape: *shape,
        rank: 0,
        method: "none".into(),
        basis: 0,
        passes: 0,
        quality: Quality::of(0.0, 0.0),
        estimated_excess: 0.0,
        non_finite: 0,
        blake3: String::new(),
    }));
    for module in &mut modules {
        module.blake3 =
            digests.get(&module.name).map(|digest| digest.to_hex().to_string()).unwrap_or_default();
    }
    modules.sort_by(|a, b| a.name.cmp(&b.name));
    let compared = plan.not_represented.iter().filter_map(|planned| done.compared.get(&planned.key()));
    let (not_represented, read): (Vec<LeftOut>, Vec<Vec<TensorRecord>>) = compared.cloned().unzip();
    let mut tensors: Vec<TensorRecord> = records.iter().flat_map(|record| record.tensors.clone()).collect();
    tensors.extend(read.into_iter().flatten());
    tensors.sort();
    tensors.dedup();
    Manifest {
        trephine: begin.trephine.clone(),
        options: begin.options.clone(),
        simd: begin.simd.clone(),
        inputs: begin.inputs.iter().map(|(side, identity)| (*side, identity.timeless())).collect(),
        base: source(&job.base, &inputs.base),
        tuned: source(&job.tuned, &inputs.tuned),
        served: inputs.served.as_ref().zip(job.served.as_ref()).map(|(served, name)| source(name, served)),
        rank,
        total: total(modules.iter()),
        notes: plan.notes.clone(),
        modules,
        not_represented,
        tensors,
    }
}

fn portable(base: &str, rank: usize, manifest: &Manifest) -> AdapterConfig {
    AdapterConfig::for_modules(base, rank, manifest.modules.iter().map(|module| module.name.as_str()))
}

fn spectra(plan: &Plan, done: &Finished) -> Vec<Spectrum> {
    let mut names: Vec<&str> = plan.modules.iter().map(|module| module.name.as_str()).collect();
    names.sort_unstable();
    names.iter().filter_map(|name| done.modules.get(*name)).map(|done| done.record.spectrum.clone()).collect()
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

/// Brings the shards of parts to those of the unsplit run, where they are to be kept.
///
/// # Errors
/// A shard that cannot be renamed.
pub fn keep_shards(out: &Path, done: &Finished) -> Result<()> {
    let shards = out.join(STATE).join(SHARDS);
    folder::create(&shards)?;
    for done in done.modules.values() {
        let kept = shards.join(done.path.file_name().unwrap_or_default());
        fs::rename(&done.path, &kept)
            .map_err(|e| Error::unexpected("cannot keep the shard").path(&done.path).because(e))?;
    }
    folder::sync(&shards)
}

/// Removes what only an unfinished run needs. The journals go first of all: without checksums they would be work lost,
/// with them they are spent. The lock goes last, and nothing is removed without it: another run may have begun here.
pub fn tidy(lock: Lock, out: &Path, keep_shards: bool) -> Result<()> {
    let state = out.join(STATE);
    for name in [JOURNAL, HOW, HEARTBEAT, HEARTBEAT_DRAFT] {
        removed(&state.join(name))?;
    }
    if !keep_shards {
        removed(&state.join(SHARDS))?;
    }
    let parts = attempt::folders(out)?;
    if !parts.is_empty() {
        Log::open(out)?.take_over(&parts);
        parts.iter().for_each(|part| remove_part(part));
    }
    // A part that is still at work, on what another has done meanwhile, may have written there just now: what it leaves
    // is no one's, and harms no one.
    let _ = fs::remove_dir(state.join(PARTS));
    lock.remove()?;
    folder::sync(out)
}

/// Removes the folder of a part, its journal first, as far as it can be removed.
fn remove_part(part: &Path) {
    let _ = fs::remove_file(part.join(JOURNAL));
    let _ = fs::remove_dir_all(part);
}
