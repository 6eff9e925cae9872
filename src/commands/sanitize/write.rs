//! Writes the new folder: weights, config, record, model card, and the checksums last.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use crate::checkpoint::Checkpoint;
use crate::commands::sanitize::options::Sanitizing;
use crate::commands::sanitize::plan::{Planned, SanitizePlan};
use crate::commands::sanitize::pruned_norms;
use crate::commands::sanitize::record::{Completed, Refitted, Sanitized};
use crate::container::safetensors::writer::SafetensorsWriter;
use crate::durable::digest::Written;
use crate::durable::{atomic_file, checksums, json_file};
use crate::lora::config::{AdapterConfig, write_config};
use crate::lora::factor_dtype::FactorType;
use crate::lora::names::{Keys, Place};
use crate::lora::read::PeftAdapter;
use crate::lora::read::classify::{Extra, ExtraKind, PeftModule};
use crate::lora::rules::{Loader, RuleFinding};
use crate::lora::tree::BaseModules;
use crate::lora::write::shard::Shard;
use crate::lora::{CONFIG, WEIGHTS};
use crate::quant::weight::TensorInfo;
use crate::run::attempts::completed::Completed as CompletedUnits;
use crate::run::identity::RunIdentity;
use crate::run::unit::UnitId;
use crate::shared::Name;
use crate::{Error, Result};

/// File name of the record of what was done.
pub const RECORD: &str = "sanitized.json";

const CARD: &str = "README.md";

/// All files except the checksums, which come last: only they make the folder complete.
pub(crate) const FILES: [&str; 4] = [WEIGHTS, CONFIG, RECORD, CARD];

/// The name of `lora_A` in a shard.
pub(crate) const A: &str = "lora_A";

/// The name of `lora_B` in a shard.
pub(crate) const B: &str = "lora_B";

/// Writes the new folder of an adapter whose modules are all refitted.
///
/// # Errors
/// A shard that is not what was written; input that cannot be read; a failing disk.
pub(crate) fn write(
    job: &Sanitizing,
    adapter: &PeftAdapter,
    base: Option<&Checkpoint>,
    plan: &SanitizePlan<'_>,
    found: &[RuleFinding],
    identity: &RunIdentity,
    done: &CompletedUnits<Refitted>,
) -> Result<Sanitized> {
    let out = &job.out;
    let mut modules: Vec<Refitted> = done.units().map(|(_, unit)| unit.done.clone()).collect();
    modules.sort_by(|a, b| a.name.cmp(&b.name));
    let written = weights(&out.join(WEIGHTS), adapter, plan, done)?;
    let mut record = Sanitized {
        trephine: identity.trephine.clone(),
        options: identity.options.clone(),
        simd: identity.simd.clone().unwrap_or_default(),
        inputs: identity.timeless_inputs(),
        adapter: job.adapter.clone(),
        consumers: job.consumers.clone(),
        rank: plan.rank,
        dtype: plan.dtype.dtype().to_string(),
        found: found.to_vec(),
        modules,
        completed: plan.modules.iter().filter(|m| m.source.is_none()).map(completed).collect(),
        pruned: pruned_norms::measure(adapter, base, plan)?,
        kept: plan.kept.iter().map(|(_, key)| key.clone()).collect(),
        truncation_error: 0.0,
        rounding_error: 0.0,
        tensors: base.map_or(Ok(Vec::new()), |base| pruned_norms::digests(base, plan))?,
    };
    record.truncation_error = total(&record.modules, |module| module.truncation_error);
    record.rounding_error = total(&record.modules, |module| module.rounding_error);
    let failed = |e| Error::unexpected("cannot write the record as JSON").path(out).because(e);
    let config = config(job, adapter, base, plan).map_err(failed)?;
    let text = |name: &str, text: String| {
        atomic_file::write(&out.join(name), |file| file.write_all(text.as_bytes()))
    };
    let files = BTreeMap::from([
        (WEIGHTS.to_owned(), written.blake3),
        (CONFIG.to_owned(), text(CONFIG, config)?.blake3),
        (RECORD.to_owned(), json_file::write(&out.join(RECORD), &record)?.blake3),
        (CARD.to_owned(), text(CARD, card(&record))?.blake3),
    ]);
    checksums::write(out, &files)?;
    Ok(record)
}

/// The names of a module's factors. Fused experts are named like linear layers.
fn keys(module: &Planned<'_>) -> Keys {
    let place = if module.place == Place::Embedding { Place::Embedding } else { Place::Linear };
    Keys::of(&module.name, place)
}

fn completed(module: &Planned<'_>) -> Completed {
    Completed { name: module.name.clone(), shape: module.shape }
}

/// Writes the weights from the modules' shards, holding only a piece of one in memory at a time.
fn weights(
    path: &Path,
    adapter: &PeftAdapter,
    plan: &SanitizePlan<'_>,
    done: &CompletedUnits<Refitted>,
) -> Result<Written> {
    let dtype = plan.dtype.dtype();
    let mut layout = Vec::new();
    let mut owners = BTreeMap::new();
    for (index, module) in plan.modules.iter().enumerate() {
        let keys = keys(module);
        owners.extend([(keys.a.clone(), (index, true)), (keys.b.clone(), (index, false))]);
        let [a, b] = factors(module, plan);
        layout.push(TensorInfo { name: keys.a.into(), ..a });
        layout.push(TensorInfo { name: keys.b.into(), ..b });
    }
    let kept: BTreeMap<&str, _> = plan.kept.iter().map(|(extra, key)| (key.as_str(), *extra)).collect();
    layout.extend(kept.iter().map(|(key, extra)| TensorInfo {
        name: (*key).into(),
        dtype: if extra.kind == ExtraKind::LoraBias { dtype } else { extra.tensor.stored.dtype },
        shape: extra.tensor.stored.shape.clone(),
    }));
    let mut writer = SafetensorsWriter::create(path, layout)?;
    let order: Vec<Name> = writer.layout().iter().map(|placed| placed.stored.name.clone()).collect();
    // lora_B follows lora_A: each shard is opened, and so checked, once.
    let mut open: Option<(usize, Shard)> = None;
    for name in &order {
        match owners.get(name.as_str()) {
            None => {
                let Some(extra) = kept.get(name.as_str()) else { continue };
                match bias_of_factor(adapter, extra, plan.dtype)? {
                    Some(bytes) => writer.put(name, &bytes)?,
                    None => adapter.copy(&extra.tensor, |bytes| writer.put(name, bytes))?,
                }
            }
            Some((index, is_a)) => {
                let (module, factor) = (&plan.modules[*index], if *is_a { A } else { B });
                if module.source.is_none() {
                    let [a, b] = factors(module, plan);
                    let stored = if *is_a { a } else { b };
                    writer
                        .put(name, &vec![0; stored.shape.iter().product::<usize>() * plan.dtype.bytes()])?;
                    continue;
                }
                let shard = match open.take() {
                    Some((owner, shard)) if owner == *index => shard,
                    _ => shard_of(&module.name, done)?,
                };
                shard.copy(factor, |bytes| writer.put(name, bytes))?;
                open = Some((*index, shard));
            }
        }
    }
    writer.finish()
}

/// The two factors of a module as they are stored, by their names in a shard.
pub(crate) fn factors(module: &Planned<'_>, plan: &SanitizePlan<'_>) -> [TensorInfo; 2] {
    let ([out, inner], dtype) = (module.shape, plan.dtype.dtype());
    let width = plan.rank * module.source.map_or(1, PeftModule::experts);
    let stored = |name: &str, shape: [usize; 2]| TensorInfo::new(name, dtype, shape);
    [stored(A, [width, inner]), stored(B, [out, width])]
}

fn shard_of(name: &str, done: &CompletedUnits<Refitted>) -> Result<Shard> {
    let unit = done.get(&UnitId::module(name)).and_then(|unit| Some((&unit.path, unit.written?)));
    let (path, written) = unit.ok_or_else(|| {
        Error::unexpected("a module was never finished").tensor(name).hint("run the same command again")
    })?;
    Shard::open(path, written)
}

/// The bytes of a `lora_B.bias`, to which the module's scale applies as it does to the factors; `None` for other
/// tensors.
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

/// One relative error for all products together.
fn total(modules: &[Refitted], error: impl Fn(&Refitted) -> f64) -> f64 {
    let norm2: f64 = modules.iter().map(|module| module.norm.powi(2)).sum();
    let error2: f64 = modules.iter().map(|module| (module.norm * error(module)).powi(2)).sum();
    if norm2 > 0.0 { (error2 / norm2).sqrt() } else { 0.0 }
}

/// The portable config, and the settings that the kept whole weights need.
fn config(
    job: &Sanitizing,
    adapter: &PeftAdapter,
    base: Option<&Checkpoint>,
    plan: &SanitizePlan<'_>,
) -> serde_json::Result<String> {
    let old = adapter.config();
    let fused = |module: &&Planned<'_>| {
        module
            .source
            .is_some_and(|source| source.experts() > 1 || old.target_parameter(source.name()).is_some())
    };
    let names = plan.modules.iter().filter(|module| !fused(module)).map(|module| module.name.as_str());
    let base_name = old.base().unwrap_or_default();
    let other = job.consumers.first().copied().filter(|_| !job.consumers.contains(&Loader::Peft));
    let tree = base.map(BaseModules::of).unwrap_or_default().for_loader(other);
    let mut new = AdapterConfig::for_modules(base_name, plan.rank, names, &tree);
    // SGLang takes one rank and no pattern. Without them PEFT does not adapt single experts of some models.
    if job.consumers.contains(&Loader::Sglang) || !job.consumers.contains(&Loader::Peft) {
        (new.rank_pattern, new.alpha_pattern) = (BTreeMap::new(), BTreeMap::new());
    }
    new.base_model_name_or_path = old.base().map(str::to_owned).or_else(|| job.base.clone());
    // The adapter's task type is kept, even if it is null, for example for a classifier or an embedding model.
    if let Some(task_type) = old.raw().get("task_type") {
        new.task_type = task_type.as_str().map(str::to_owned);
    }
    new.fan_in_fan_out = old.is("fan_in_fan_out");
    // Full names: PEFT expects a whole weight for every module whose name ends with an entry. A whole weight that the
    // config did not list is loaded into the base's own weight, as before.
    let listed = |module: &&str| old.modules_to_save().iter().any(|saved| module.ends_with(saved.as_str()));
    let saved: BTreeSet<&str> = plan
        .kept
        .iter()
        .filter(|(extra, _)| matches!(extra.kind, ExtraKind::Norm | ExtraKind::FullWeight))
        .filter_map(|(extra, _)| extra.target.strip_suffix(".weight"))
        .filter(listed)
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
        let own = old.raw().get("target_parameters").and_then(Value::as_array).cloned().unwrap_or_default();
        let added = new.target_parameters.iter().flatten().map(|name| json!(name));
        value["target_parameters"] = own.into_iter().chain(added).collect();
    }
    serde_json::to_string_pretty(&value).map(|text| text + "\n")
}

/// The model card.
fn card(record: &Sanitized) -> String {
    let names: Vec<&str> = record.consumers.iter().map(|consumer: &Loader| consumer.name()).collect();
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
        "Relative error of all products together: {:.3e} from truncation to this rank, {:.3e} from rounding the factors.",
        record.truncation_error, record.rounding_error
    );
    if !record.completed.is_empty() {
        let _ = writeln!(text, "\nModules of zeros, added to complete a set: {}.", record.completed.len());
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
    text + "\n`sanitized.json` holds the figures of every module. `b3sum --check B3SUMS` or `trephine verify .` checks the files.\n"
}
