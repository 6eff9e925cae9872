//! Verification of an adapter: its files against their checksums, and, with both checkpoints, its content.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use rayon::prelude::*;
use serde::Serialize;

use crate::checkpoint::module_tree::ExpertConversion;
use crate::commands::extract::fetch::ahead::{Ahead, Read};
use crate::commands::extract::fetch::keep::keep_both;
use crate::commands::extract::inputs::Inputs;
use crate::commands::extract::module::difference;
use crate::commands::extract::options::{Allowances, Extraction};
use crate::commands::extract::output::files::MANIFEST;
use crate::commands::extract::output::manifest::Manifest;
use crate::commands::extract::plan::{ExtractionPlan, PlannedModule};
use crate::delta::difference::Keep;
use crate::delta::module_record::{ModuleRecord, Quality};
use crate::delta::recomputed::Recomputed;
use crate::delta::record::{Side, TensorRecord};
use crate::durable::checksums::Checksums;
use crate::durable::digest::hash_file;
use crate::durable::finding;
use crate::factorize::residual;
use crate::lora::loader::Loader;
use crate::lora::names::{Place, expert_of, place_of};
use crate::lora::read::PeftAdapter;
use crate::lora::rules;
use crate::lora::rules::RuleFinding;
use crate::lora::tree::BaseModules;
use crate::lora::write::expert_stacks::{ModuleFactors, read_factors};
use crate::lora::write::shard::Shard;
use crate::pipeline::options::RunOptions;
use crate::pipeline::pool::pool;
use crate::quant::format::dense::to_f32;
use crate::run::layout::{LOG, LONGEST_RECORD};
use crate::run::progress::Progress;
use crate::storage::regular_file;
use crate::{Error, Result, lora};

/// The checkpoints that an adapter's content is checked against.
#[derive(Clone, Debug)]
pub struct Content {
    /// The base that the adapter is added to.
    pub base: String,
    /// The tuned checkpoint that base and adapter together approximate.
    pub tuned: String,
}

/// One thing that the content check found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mismatch {
    /// The module, tensor or file.
    pub at: String,
    /// What is wrong with it.
    pub why: String,
}

/// Everything that a verification found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct AdapterVerification {
    /// Number of files that match their checksums.
    pub files: usize,
    /// Total size of the files in bytes.
    pub bytes: u64,
    /// Findings of the checksum check; some are only notes.
    pub checksums: Vec<finding::Finding>,
    /// Number of modules whose content was measured again.
    pub modules: usize,
    /// Findings of the content check. Each is a failure.
    pub content: Vec<Mismatch>,
}

impl AdapterVerification {
    /// How many findings are failures.
    pub fn failures(&self) -> usize {
        self.content.len() + self.checksums.iter().filter(|f| f.level == finding::Level::Error).count()
    }
}

impl fmt::Display for AdapterVerification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.checksums {
            let word = if finding.level == finding::Level::Error { "error" } else { "note" };
            writeln!(f, "{word}: {finding}")?;
        }
        self.content.iter().try_for_each(|found| writeln!(f, "error: {} {}", found.at, found.why))
    }
}

/// Checks `folder` against its `B3SUMS` and, with `content`, an adapter's factors against the checkpoints.
///
/// # Errors
/// A folder that cannot be checked at all. Findings are returned, not raised as errors.
pub fn verify(
    folder: &Path,
    content: Option<&Content>,
    running: &RunOptions,
    progress: &dyn Progress,
) -> Result<AdapterVerification> {
    let checksums = Checksums::read(folder)?;
    let bytes = checksums.bytes();
    let pool = pool(running.threads)?;
    let count = |bytes| progress.read(bytes);
    if content.is_none() {
        progress.begin(0, bytes, 0, 0);
    }
    let checked = pool.install(|| checksums.verify(&[LOG], &count));
    let mut verification = AdapterVerification {
        files: checked.matched,
        bytes,
        checksums: checked.findings,
        ..AdapterVerification::default()
    };
    if let Some(content) = content {
        pool.install(|| check_content(folder, content, running, progress, &mut verification))?;
    }
    Ok(verification)
}

fn check_content(
    folder: &Path,
    content: &Content,
    running: &RunOptions,
    progress: &dyn Progress,
    verification: &mut AdapterVerification,
) -> Result<()> {
    let manifest = read_manifest(folder)?;
    let options = serde_json::Value::Object(manifest.options.clone());
    let deciding = serde_json::from_value(options).map_err(|e| {
        Error::input("the manifest's options cannot be read").path(folder.join(MANIFEST)).because(e)
    })?;
    let (base, tuned) = (content.base.clone(), content.tuned.clone());
    let job = Extraction {
        base,
        tuned,
        served: None,
        calibration: None,
        hybrid: None,
        out: folder.to_owned(),
        deciding,
        allow: Allowances::ALL,
        running: running.clone(),
    };
    let inputs = Inputs::open(&job)?;
    let plan = ExtractionPlan::make(&inputs, &job)?;
    let weights = folder.join(lora::WEIGHTS);
    let opened = hash_file(&weights).and_then(|written| Shard::open(&weights, written));
    let adapter = match opened {
        Ok(adapter) => adapter,
        Err(why) => {
            verification.content.push(mismatch(lora::WEIGHTS, why.to_string()));
            return Ok(());
        }
    };
    let tree = BaseModules::of(&inputs.base).for_loader(job.deciding.loader);
    check_rules(folder, &tree, job.deciding.loader, &mut verification.content);
    check_digests(&manifest, &adapter, &tree, &mut verification.content);
    let read = plan.modules.iter().map(|module| module.read_bytes).sum();
    progress.begin(plan.modules.len(), read, 0, 0);
    let recorded: BTreeMap<&str, &ModuleRecord> =
        manifest.modules.iter().map(|m| (m.name.as_str(), m)).collect();
    let planned: BTreeSet<&str> = plan
        .modules
        .iter()
        .map(|m| m.name.as_str())
        .chain(plan.zeros.iter().map(|(zero, _)| zero.as_str()))
        .collect();
    for name in recorded.keys().filter(|name| !planned.contains(**name)) {
        let why = "is in the manifest, but these checkpoints have no such pair";
        verification.content.push(mismatch(name, why));
    }
    let tensors = manifest.tensors.iter().map(|tensor| (key(tensor), tensor)).collect();
    let count = |bytes| progress.read(bytes);
    let is_recorded = |module: &&PlannedModule| recorded.contains_key(module.name.as_str());
    let ahead = Ahead::new(&inputs, plan.modules.iter().filter(is_recorded).map(Read::Module).collect());
    for module in &plan.modules {
        match recorded.get(module.name.as_str()) {
            None => verification.content.push(mismatch(&module.name, "is not in the adapter")),
            Some(record) => {
                ahead.begin(Read::Module(module));
                let found = check_module(
                    &inputs,
                    &job,
                    module,
                    record,
                    &tensors,
                    (&adapter, &tree, manifest.rank),
                    &count,
                )?;
                verification.content.extend(found);
                verification.modules += 1;
            }
        }
    }
    Ok(())
}

/// Identifies a tensor, or a part of one.
type TensorKey<'a> = (Side, &'a str, Option<[u64; 2]>);

fn key(tensor: &TensorRecord) -> TensorKey<'_> {
    (tensor.checkpoint, &tensor.name, tensor.part)
}

fn mismatch(at: &str, why: impl Into<String>) -> Mismatch {
    Mismatch { at: at.to_owned(), why: why.into() }
}

fn read_manifest(folder: &Path) -> Result<Manifest> {
    let path = folder.join(MANIFEST);
    let text = regular_file::read_within(&path, LONGEST_RECORD).map_err(|e| {
        let hint = "--base and --tuned only work for an adapter that Trephine extracted";
        Error::input("the folder has no manifest").path(&path).because(e).hint(hint)
    })?;
    serde_json::from_slice(&text).map_err(|e| {
        let hint = "run verify without --base and --tuned to see which files are damaged";
        Error::input("the manifest cannot be read").path(&path).because(e).hint(hint)
    })
}

fn check_rules(folder: &Path, base: &BaseModules, loader: Option<Loader>, found: &mut Vec<Mismatch>) {
    match PeftAdapter::open_folder(folder) {
        Err(why) => found.push(mismatch(lora::CONFIG, why.to_string())),
        Ok(adapter) => {
            // What `extract` itself has told: the rank of fused experts has to be said for PEFT, though the tensors are
            // of one rank, and some experts it does not take.
            let said = |finding: &RuleFinding| match base.expert_conversion() {
                Some(ExpertConversion::Keys) => finding.at.ends_with("_pattern"),
                Some(ExpertConversion::Nothing) => expert_of(&finding.at).is_some(),
                _ => false,
            };
            // An adapter for one program need not please the others.
            let concerns = |finding: &RuleFinding| loader.is_none_or(|loader| finding.concerns(&[loader]));
            let broken = rules::portable(&adapter, Some(base)).into_iter();
            let broken = broken.filter(|finding| concerns(finding) && !said(finding));
            found.extend(broken.map(|finding| mismatch(&finding.at, &*finding.why)));
        }
    }
}

/// Checks that the factors, zeros and padding included, match the manifest byte for byte: their error alone would not
/// show a small change.
fn check_digests(manifest: &Manifest, adapter: &Shard, tree: &BaseModules, found: &mut Vec<Mismatch>) {
    for module in &manifest.modules {
        match read_factors(adapter, tree, &module.name, place_of(&module.name), manifest.rank) {
            Err(why) => found.push(mismatch(&module.name, format!("cannot be read: {why}"))),
            Ok(ModuleFactors { a, b, .. }) => {
                let digest = blake3::Hasher::new().update(&a.1).update(&b.1).finalize();
                if digest.to_hex().as_str() != module.blake3 {
                    found
                        .push(mismatch(&module.name, "has factors whose digest differs from the manifest's"));
                }
            }
        }
    }
}

/// Measures one module again: the tensors' digests, the norm of the delta, the error of the stored factors.
fn check_module(
    inputs: &Inputs,
    job: &Extraction,
    module: &PlannedModule,
    record: &ModuleRecord,
    tensors: &BTreeMap<TensorKey<'_>, &TensorRecord>,
    (adapter, tree, rank): (&Shard, &BaseModules, usize),
    read: &(dyn Fn(u64) + Sync),
) -> Result<Vec<Mismatch>> {
    let mut found = Vec::new();
    let _kept = keep_both(inputs, module)?;
    let difference = difference(inputs, module, job)?;
    let survey = difference.survey(Keep::Sums, read)?;
    let known = |now: &TensorRecord| tensors.get(&key(now)).copied();
    for now in &survey.tensors {
        match known(now) {
            Some(then) if then.blake3 == now.blake3 => {}
            Some(_) => found.push(mismatch(
                &now.name,
                format!("in the {} is not the tensor that was read", now.checkpoint),
            )),
            None => found.push(mismatch(
                &now.name,
                format!("in the {} was not read for this adapter", now.checkpoint),
            )),
        }
    }
    let (left, right) = match factors(adapter, tree, module, rank) {
        Ok(factors) => factors,
        Err(why) => {
            found.push(mismatch(&module.name, why.to_string()));
            return Ok(found);
        }
    };
    let delta = Recomputed::new(difference, module.in_f32.visitors.max(1));
    let measured = residual::residual(&delta, &left, &right)?;
    let quality = Quality::of(survey.norm2, measured.residual2);
    let (then, now) = (record.quality.relative_error, quality.relative_error);
    if !close(then * then, now * now) {
        found.push(mismatch(
            &module.name,
            format!("has a relative error of {now:.6}, but the manifest says {then:.6}"),
        ));
    }
    if (quality.delta_norm - record.quality.delta_norm).abs() > 1e-6 * quality.delta_norm {
        let (then, now) = (record.quality.delta_norm, quality.delta_norm);
        found
            .push(mismatch(&module.name, format!("has a delta of norm {now}, but the manifest says {then}")));
    }
    Ok(found)
}

/// Whether two squared relative errors agree within the precision of f32 sums: the recorded one is mostly a difference
/// of norms.
fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 2e-6 + 0.005 * a.max(b)
}

/// The adapter's factors of the weight: `left` `[rows, r]` and `right` `[r, cols]`.
fn factors(
    adapter: &Shard,
    tree: &BaseModules,
    module: &PlannedModule,
    rank: usize,
) -> Result<(Vec<f32>, Vec<f32>)> {
    let stored = read_factors(adapter, tree, &module.name, module.pair.place, rank)?;
    let ((a_shape, a), (b_shape, b)) = (stored.a, stored.b);
    let (a, b) = (to_f32(stored.dtype, &a)?, to_f32(stored.dtype, &b)?);
    let [rows, cols] = module.shape;
    let embedding = module.pair.place == Place::Embedding;
    let (out, inner) = if embedding { (cols, rows) } else { (rows, cols) };
    let r = a_shape[0];
    if a_shape != [r, inner] || b_shape != [out, r] {
        let what = format!("the factors are {a_shape:?} and {b_shape:?} for a weight of {:?}", module.shape);
        return Err(Error::input(what).tensor(&module.name));
    }
    let (mut left, right) = if embedding { (transpose(&a, r, rows), transpose(&b, cols, r)) } else { (b, a) };
    left.truncate(module.pair.rows * r);
    Ok((left, right))
}

fn transpose(values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let mut transposed = vec![0.0; values.len()];
    transposed.par_chunks_mut(rows.max(1)).enumerate().for_each(|(col, out)| {
        out.iter_mut().enumerate().for_each(|(row, out)| *out = values[row * cols + col]);
    });
    transposed
}
