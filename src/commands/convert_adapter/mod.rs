//! Writes a PEFT adapter in the format of another program: a GGUF LoRA for llama.cpp, or an adapter of mlx-lm.
//!
//! Factors are rounded at most once, to `dtype`. Both formats have one rank and one scale; where the modules' own
//! differ, factors are padded with zeros (MLX), and the rest of a scale is multiplied into `lora_B`.

mod factors;
mod gguf;
mod mlx;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::checkpoint;
use crate::checkpoint::config::Config;
use crate::durable::{checksums, folder};
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

/// Converts an adapter.
///
/// # Errors
/// An adapter that cannot be read, or that is more than factors; modules that the format has no place for, by name; an
/// output folder that is not empty; a failing disk.
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
    folder::create(&job.out)?;
    folder::refuse_others(&job.out, |_| false)?;
    let dtype =
        job.dtype.unwrap_or_else(|| FactorType::common(adapter.modules().flat_map(PeftModule::dtypes)));
    let files = match job.format {
        AdapterFormat::Gguf => {
            let config = config.ok_or_else(|| {
                Error::decide("a GGUF adapter depends on its base's architecture and heads")
                    .hint("give --base: only its config.json is read")
            })?;
            gguf::write(&job.out, &adapter, &config, dtype)?
        }
        AdapterFormat::Mlx => mlx::write(&job.out, &adapter, dtype)?,
    };
    let digests: BTreeMap<String, blake3::Hash> = files;
    checksums::write(&job.out, &digests)?;
    Ok(ConvertedAdapter {
        format: job.format,
        files: digests.into_keys().collect(),
        modules: adapter.modules().len(),
        rank: adapter.rank(),
        dtype: dtype.dtype().to_string(),
    })
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
