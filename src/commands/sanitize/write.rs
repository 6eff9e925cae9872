//! The new folder: weights, config, record, card, and the checksums last.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::checkpoint::Checkpoint;
use crate::commands::sanitize::factors::{Encoded, refit, zeros};
use crate::commands::sanitize::options::Sanitizing;
use crate::commands::sanitize::plan::{Plan, Planned};
use crate::commands::sanitize::pruned_norms;
use crate::commands::sanitize::record::{Completed, Refitted, Sanitized};
use crate::container::safetensors::writer::SafetensorsWriter;
use crate::durable::checksums;
use crate::durable::digest::Written;
use crate::durable::finding::B3SUMS;
use crate::durable::lock::Lock;
use crate::durable::lock::STATE;
use crate::durable::{atomic_file, folder};
use crate::lora::config::{AdapterConfig, write_config};
use crate::lora::factor_dtype::FactorType;
use crate::lora::names::{Keys, Place, kind_of};
use crate::lora::read::PeftAdapter;
use crate::lora::read::classify::{Extra, ExtraKind, PeftModule};
use crate::lora::rules::{Consumer, Finding};
use crate::lora::{CONFIG, WEIGHTS};
use crate::quant::weight::Stored;
use crate::{Error, Result};

/// File name of the record of what was done.
pub const RECORD: &str = "sanitized.json";

const CARD: &str = "README.md";

/// All files, in the order in which they are written; the checksums come last, and only then is the folder whole.
const FILES: [&str; 5] = [WEIGHTS, CONFIG, RECORD, CARD, B3SUMS];

/// Refuses to write where something else lies, or over a finished result that is not to be thrown away.
///
/// # Errors
/// Both are the user's to decide.
pub(crate) fn refuse(job: &Sanitizing, adapter: &PeftAdapter) -> Result<()> {
    let out = &job.out;
    let same = |a: &Path, b: &Path| matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b);
    if same(out, adapter.root()) {
        return Err(Error::decide("the output folder is the adapter itself")
            .path(out)
            .hint("give another --out"));
    }
    folder::refuse_foreign(out, &[RECORD, STATE], &FILES, &[])?;
    let state = fs::read_dir(out.join(STATE)).into_iter().flatten().flatten();
    if state.into_iter().any(|entry| entry.file_name() != "lock") {
        return Err(Error::decide("the output folder holds an unfinished run of another command")
            .path(out)
            .hint("give another --out; nothing in it was touched"));
    }
    if out.join(B3SUMS).exists() && !job.overwrite {
        return Err(Error::decide("the output folder holds a finished adapter")
            .path(out)
            .hint("give another --out, or --overwrite to write it anew"));
    }
    Ok(())
}

/// Writes everything.
///
/// # Errors
/// As [`refit`]; a folder that another process writes to; a failing disk.
pub(crate) fn write(
    job: &Sanitizing,
    adapter: &PeftAdapter,
    base: Option<&Checkpoint>,
    plan: &Plan<'_>,
    found: Vec<Finding>,
    read: &dyn Fn(u64),
) -> Result<Sanitized> {
    let out = &job.out;
    folder::create(out)?;
    let lock = Lock::acquire(out)?;
    clear(out)?;
    let (written, modules) = weights(&out.join(WEIGHTS), adapter, plan, read)?;
    let mut record = Sanitized {
        trephine: env!("CARGO_PKG_VERSION").into(),
        adapter: job.adapter.clone(),
        consumers: job.consumers.clone(),
        rank: plan.rank,
        dtype: plan.dtype.dtype().to_string(),
        found,
        modules,
        completed: plan.modules.iter().filter(|m| m.source.is_none()).map(completed).collect(),
        pruned: pruned_norms::measure(adapter, base, plan, read)?,
        kept: plan.kept.iter().map(|(_, key)| key.clone()).collect(),
        truncation_error: 0.0,
        rounding_error: 0.0,
    };
    record.truncation_error = total(&record.modules, |module| module.truncation_error);
    record.rounding_error = total(&record.modules, |module| module.rounding_error);
    let failed = |e| Error::unexpected("cannot write the record as JSON").path(out).because(e);
    let config = config(job, adapter, plan).map_err(failed)?;
    let text = serde_json::to_string_pretty(&record).map_err(failed)? + "\n";
    let mut files = BTreeMap::from([(WEIGHTS.to_owned(), written.blake3)]);
    for (name, text) in [(CONFIG, config), (RECORD, text), (CARD, card(&record))] {
        let written = atomic_file::write(&out.join(name), |file| file.write_all(text.as_bytes()))?;
        files.insert(name.to_owned(), written.blake3);
    }
    checksums::write(out, &files)?;
    lock.remove()?;
    folder::sync(out)?;
    Ok(record)
}

/// Removes an earlier result, checksums first: from then on the folder does not pass for whole.
fn clear(out: &Path) -> Result<()> {
    atomic_file::remove_leftovers(out)?;
    for file in FILES.iter().rev() {
        let path = out.join(file);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::unexpected("cannot remove an earlier result").path(&path).because(e));
            }
            _ => {}
        }
    }
    folder::sync(out)
}

/// The names of a module's factors. Fused experts are linear by name.
fn keys(module: &Planned<'_>) -> Keys {
    let place = if module.place == Place::Embedding { Place::Embedding } else { Place::Linear };
    Keys::of(&module.name, place)
}

fn completed(module: &Planned<'_>) -> Completed {
    Completed { name: module.name.clone(), shape: module.shape }
}

/// Writes the weights module by module; only one module's factors are in memory at a time.
fn weights(
    path: &Path,
    adapter: &PeftAdapter,
    plan: &Plan<'_>,
    read: &dyn Fn(u64),
) -> Result<(Written, Vec<Refitted>)> {
    let dtype = plan.dtype.dtype();
    let mut layout = Vec::new();
    let mut owners = BTreeMap::new();
    for (at, module) in plan.modules.iter().enumerate() {
        let ([out, inner], keys) = (module.shape, keys(module));
        let width = plan.rank * module.source.map_or(1, PeftModule::experts);
        owners.extend([(keys.a.clone(), (at, true)), (keys.b.clone(), (at, false))]);
        layout.push(Stored { name: keys.a, dtype, shape: vec![width, inner] });
        layout.push(Stored { name: keys.b, dtype, shape: vec![out, width] });
    }
    let kept: BTreeMap<&str, _> = plan.kept.iter().map(|(extra, key)| (key.as_str(), *extra)).collect();
    layout.extend(kept.iter().map(|(key, extra)| Stored {
        name: (*key).to_owned(),
        dtype: if extra.kind == ExtraKind::LoraBias { dtype } else { extra.tensor.stored.dtype },
        shape: extra.tensor.stored.shape.clone(),
    }));
    let mut writer = SafetensorsWriter::create(path, layout)?;
    let order: Vec<String> = writer.layout().iter().map(|placed| placed.stored.name.clone()).collect();
    let (mut refitted, mut held) = (Vec::new(), None);
    for name in &order {
        match owners.get(name) {
            None => {
                let Some(extra) = kept.get(name.as_str()) else { continue };
                match bias_of_factor(adapter, extra, plan.dtype)? {
                    Some(bytes) => writer.put(name, &bytes)?,
                    None => adapter.copy(&extra.tensor, |bytes| writer.put(name, bytes))?,
                }
                read(extra.tensor.size());
            }
            Some((at, is_a)) => {
                // lora_B follows lora_A: both are computed once.
                let encoded = match held.take() {
                    Some((owner, encoded)) if owner == *at => encoded,
                    _ => encode(adapter, &plan.modules[*at], plan, &mut refitted, read)?,
                };
                writer.put(name, if *is_a { &encoded.a } else { &encoded.b })?;
                held = is_a.then_some((*at, encoded));
            }
        }
    }
    refitted.sort_by(|a: &Refitted, b| a.name.cmp(&b.name));
    Ok((writer.finish()?, refitted))
}

/// A `lora_B.bias`, to which the module's scale applies as to its factors.
fn bias_of_factor(adapter: &PeftAdapter, extra: &Extra, dtype: FactorType) -> Result<Option<Vec<u8>>> {
    let Some(module) = adapter.module(&extra.target).filter(|_| extra.kind == ExtraKind::LoraBias) else {
        return Ok(None);
    };
    let mut scaled = Vec::new();
    adapter.panels(&extra.tensor, |_, values| {
        scaled.extend(values.iter().map(|value| (f64::from(*value) * module.scale()) as f32));
        Ok(())
    })?;
    Ok(Some(dtype.round(&mut scaled)))
}

fn encode(
    adapter: &PeftAdapter,
    module: &Planned<'_>,
    plan: &Plan<'_>,
    refitted: &mut Vec<Refitted>,
    read: &dyn Fn(u64),
) -> Result<Encoded> {
    let Some(source) = module.source else { return Ok(zeros(module, plan.rank, plan.dtype)) };
    let (encoded, record) = refit(adapter, source, plan.rank, plan.dtype)?;
    refitted.push(record);
    read(source.a().size() + source.b().size());
    Ok(encoded)
}

/// One relative error for all products together.
fn total(modules: &[Refitted], error: impl Fn(&Refitted) -> f64) -> f64 {
    let norm2: f64 = modules.iter().map(|module| module.norm.powi(2)).sum();
    let error2: f64 = modules.iter().map(|module| (module.norm * error(module)).powi(2)).sum();
    if norm2 > 0.0 { (error2 / norm2).sqrt() } else { 0.0 }
}

/// The portable config, and beside it what the kept whole weights ask for.
fn config(job: &Sanitizing, adapter: &PeftAdapter, plan: &Plan<'_>) -> serde_json::Result<String> {
    let old = adapter.config();
    let fused = |module: &&Planned<'_>| module.source.is_some_and(|source| source.experts() > 1);
    let kinds: BTreeSet<String> = plan
        .modules
        .iter()
        .filter(|module| !fused(module))
        .map(|module| kind_of(&module.name).to_owned())
        .collect();
    let mut new = AdapterConfig::portable(old.base().unwrap_or_default(), plan.rank, kinds);
    new.base_model_name_or_path = old.base().map(str::to_owned).or_else(|| job.base.clone());
    new.task_type = old.text("task_type").map(str::to_owned).or(new.task_type);
    new.fan_in_fan_out = old.is("fan_in_fan_out");
    // Whole names: PEFT asks for a whole weight of every module whose name ends as an entry does. What the settings did not ask for
    // is loaded into the base's own weight, as it was.
    let asked = |module: &&str| old.modules_to_save().iter().any(|saved| module.ends_with(saved.as_str()));
    let saved: BTreeSet<&str> = plan
        .kept
        .iter()
        .filter(|(extra, _)| matches!(extra.kind, ExtraKind::Norm | ExtraKind::FullWeight))
        .filter_map(|(extra, _)| extra.target.strip_suffix(".weight"))
        .filter(asked)
        .collect();
    new.modules_to_save = (!saved.is_empty()).then(|| saved.into_iter().map(str::to_owned).collect());
    if plan.kept.iter().any(|(extra, _)| extra.kind == ExtraKind::Bias) {
        new.bias = old.text("bias").unwrap_or("none").to_owned();
    }
    let mut value: Value = serde_json::from_str(&write_config(&new)?)?;
    if plan.kept.iter().any(|(extra, _)| extra.kind == ExtraKind::LoraBias) {
        value["lora_bias"] = json!(true);
    }
    if plan.modules.iter().any(|module| fused(&module)) {
        value["target_parameters"] = old.raw().get("target_parameters").cloned().unwrap_or_default();
    }
    serde_json::to_string_pretty(&value).map(|text| text + "\n")
}

/// The model card.
fn card(record: &Sanitized) -> String {
    let names: Vec<&str> = record.consumers.iter().map(|consumer: &Consumer| consumer.name()).collect();
    let mut text = format!(
        "---\nlibrary_name: peft\ntags:\n- lora\n- trephine\n---\n\n# {} for {}\n\nA LoRA of rank {} on {} modules in {}, made by \
         Trephine {} from `{}` for {}: one rank, `lora_alpha` equal to it.\n\n",
        record.adapter.trim_end_matches('/').rsplit('/').next().unwrap_or_default(),
        names.join(", "),
        record.rank,
        record.modules.len() + record.completed.len(),
        record.dtype,
        record.trephine,
        record.adapter,
        names.join(", "),
    );
    let _ = writeln!(
        text,
        "Relative error of all products together: {:.3e} by the cut to this rank, {:.3e} by storing the factors.",
        record.truncation_error, record.rounding_error
    );
    if !record.completed.is_empty() {
        let _ = writeln!(text, "\nModules of zeros that complete a set: {}.", record.completed.len());
    }
    if !record.pruned.is_empty() {
        text += "\n## Left out\n\n| name | what | elements | norm | change from the base |\n|---|---|---:|---:|---:|\n";
        for pruned in &record.pruned {
            let what = pruned.kind.map_or("factors", |kind| kind.words());
            let change =
                pruned.relative_change.map_or("unknown".into(), |change| format!("{:.2} %", 100.0 * change));
            let _ = writeln!(
                text,
                "| {} | {what} | {} | {:.4} | {change} |",
                pruned.name, pruned.elements, pruned.norm
            );
        }
    }
    text + "\n`sanitized.json` has the figures of every module. `b3sum --check B3SUMS` or `trephine verify .` checks the files.\n"
}
