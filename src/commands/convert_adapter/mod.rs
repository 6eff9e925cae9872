//! Writes a PEFT adapter in the format of another program: a GGUF LoRA for llama.cpp, or an adapter of mlx-lm.
//!
//! Factors are rounded at most once, to `dtype`. Both formats have one rank and one scale; where the modules' own
//! differ, factors are padded with zeros (MLX), and the rest of a scale is multiplied into `lora_B`.

mod factors;
mod gguf;
mod mlx;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};

use crate::checkpoint;
use crate::checkpoint::config::Config;
use crate::durable::checksums::Checksums;
use crate::durable::finding::B3SUMS;
use crate::durable::inside::{self, STATE};
use crate::durable::lock::Lock;
use crate::durable::{atomic_file, checksums, folder};
use crate::lora::factor_dtype::FactorType;
use crate::lora::read::PeftAdapter;
use crate::lora::read::classify::{ExtraKind, Fault, PeftModule};
use crate::{Error, Result};

/// The formats that an adapter is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum AdapterFormat {
    /// One GGUF file, which llama.cpp loads with `--lora`.
    Gguf,
    /// `adapters.safetensors` and `adapter_config.json`, which mlx-lm loads with `--adapter-path`.
    Mlx,
}

impl AdapterFormat {
    /// The files that are written.
    fn files(self) -> &'static [&'static str] {
        match self {
            AdapterFormat::Gguf => &[gguf::FILE],
            AdapterFormat::Mlx => &[mlx::WEIGHTS, mlx::CONFIG],
        }
    }
}

/// One conversion of an adapter.
#[derive(Clone, Debug)]
pub struct AdapterConversion {
    /// The adapter: a folder, or a name in the Hugging Face cache.
    pub adapter: String,
    /// The base, of which only the config is read. GGUF needs it.
    pub base: Option<String>,
    /// The folder to write to.
    pub out: PathBuf,
    /// The format.
    pub format: AdapterFormat,
    /// How the factors are stored; `None` keeps their common dtype, or takes f32 if they differ.
    pub dtype: Option<FactorType>,
}

/// What was written.
#[derive(Clone, Debug, Serialize)]
pub struct ConvertedAdapter {
    /// The format.
    pub format: AdapterFormat,
    /// The files, without the checksums.
    pub files: Vec<String>,
    /// Number of modules.
    pub modules: usize,
    /// The rank; the largest where modules differ.
    pub rank: usize,
    /// How the factors are stored.
    pub dtype: String,
}

/// Converts an adapter. A conversion that was stopped is begun anew by the same call; one that is finished is made
/// again, and left as it is if it is the same.
///
/// # Errors
/// An adapter that cannot be read, or that is more than factors; modules that the format has no place for, by name; an
/// output folder with other files or another conversion; a failing disk.
pub fn convert_adapter(job: &AdapterConversion) -> Result<ConvertedAdapter> {
    let adapter = PeftAdapter::open(&job.adapter)?;
    check(&adapter)?;
    let config = match &job.base {
        None => None,
        Some(base) => {
            let found = checkpoint::find(base)?;
            let root = if found.is_dir() { found } else { folder::parent(&found).to_owned() };
            let config = Config::load(&root)?;
            if config.raw().is_none() {
                return Err(Error::input("the base has no config.json").path(root).hint("give its folder"));
            }
            Some(config)
        }
    };
    let own = [job.format.files(), &[B3SUMS]].concat();
    folder::refuse_foreign(&job.out, &[STATE, B3SUMS], &own, &[])?;
    folder::refuse_input(&job.out, adapter.root())?;
    folder::create(&job.out)?;
    let lock = Lock::acquire(&job.out)?;
    let results = job.out.join(STATE).join(RESULTS);
    removed(&job.out)?;
    atomic_file::remove_leftovers(&job.out)?;
    folder::create(&results)?;
    let dtype =
        job.dtype.unwrap_or_else(|| FactorType::common(adapter.modules().flat_map(PeftModule::dtypes)));
    let made = match (job.format, config) {
        (AdapterFormat::Gguf, Some(config)) => gguf::write(&results, &adapter, &config, dtype),
        (AdapterFormat::Gguf, None) => {
            Err(Error::decide("a GGUF adapter depends on its base's architecture and heads")
                .hint("give --base: only its config.json is read"))
        }
        (AdapterFormat::Mlx, _) => mlx::write(&results, &adapter, dtype),
    };
    let kept = made.and_then(|digests| {
        adapter.check_unchanged()?;
        keep(&job.out, &results, &digests)?;
        Ok(digests)
    });
    removed(&job.out)?;
    lock.remove()?;
    let digests = kept?;
    Ok(ConvertedAdapter {
        format: job.format,
        files: digests.into_keys().collect(),
        modules: adapter.modules().len(),
        rank: adapter.rank(),
        dtype: dtype.dtype().to_string(),
    })
}

/// The folder, inside that of the state, where the files are made.
const RESULTS: &str = "results";

/// Removes what an earlier run has left there.
fn removed(out: &Path) -> Result<()> {
    let below = Path::new(STATE).join(RESULTS);
    let failed = |e| Error::unexpected("cannot remove").path(out.join(&below)).because(e);
    inside::remove(out, &below).map_err(failed)
}

/// Moves the finished files to the output folder, the checksums last; or nothing, where the same files are there. On an
/// error none of them stays: without checksums they would be somebody else's for the next run.
fn keep(out: &Path, results: &Path, digests: &BTreeMap<String, blake3::Hash>) -> Result<()> {
    if out.join(B3SUMS).symlink_metadata().is_ok() {
        let there = Checksums::read(out)?;
        let listed = there.entries().iter().map(|entry| (entry.name.clone(), entry.blake3));
        if listed.collect::<BTreeMap<_, _>>() == *digests && there.verify(&[], &|_| ()).passed() {
            return Ok(());
        }
        return Err(Error::decide("the output folder holds another conversion, or one that is damaged")
            .path(out)
            .hint("give another --out; nothing in it was touched"));
    }
    let moved = digests.keys().try_for_each(|name| {
        let place = out.join(name);
        let failed = |e: io::Error| Error::unexpected("cannot move a finished file").path(&place).because(e);
        fs::rename(results.join(name), &place).map_err(failed)
    });
    let kept = moved.and_then(|()| folder::sync(out)).and_then(|()| checksums::write(out, digests));
    if kept.is_err() {
        let all = digests.keys().map(String::as_str).chain([B3SUMS]);
        all.for_each(|name| drop(fs::remove_file(out.join(name))));
    }
    kept.map(drop)
}

/// Refuses an adapter that is more than the product of two factors for each module.
fn check(adapter: &PeftAdapter) -> Result<()> {
    let refuse = |what: String| {
        Err(Error::input(what)
            .path(adapter.root())
            .hint("`trephine sanitize` makes a plain adapter of it, or says why not"))
    };
    for (key, what) in [
        ("use_dora", "DoRA"),
        ("alora_invocation_tokens", "invocation tokens (aLoRA)"),
        ("layer_replication", "layer_replication"),
        ("fan_in_fan_out", "transposed weights (fan_in_fan_out)"),
    ] {
        if adapter.config().is(key) {
            return refuse(format!("adapters with {what} cannot be converted"));
        }
    }
    if let Some(init) = adapter.config().init_that_changes_the_base() {
        return refuse(format!(
            "init_lora_weights is {init}: the adapter belongs to a base that PEFT changes"
        ));
    }
    if let Some(extra) = adapter.extras().iter().find(|extra| extra.kind != ExtraKind::BaseCopy) {
        return refuse(format!("'{}' is not a factor: {}", extra.tensor.name(), extra.kind.words()));
    }
    let harmless =
        |fault: &Fault| matches!(fault, Fault::NoPrefix | Fault::Wrapper { .. } | Fault::AdapterName { .. });
    if let Some(problem) = adapter.problems().iter().find(|problem| !harmless(&problem.fault)) {
        return refuse(problem.to_string());
    }
    if adapter.modules().len() == 0 {
        return refuse("the adapter holds no factors".to_owned());
    }
    match adapter.modules().find(|module| module.experts() > 1) {
        Some(module) => refuse(format!("'{}' holds the factors of a stack of experts", module.name())),
        None => Ok(()),
    }
}
