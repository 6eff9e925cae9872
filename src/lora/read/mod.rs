//! Reads any LoRA adapter in PEFT's format.
//!
//! [`PeftAdapter::open`] reads only the config and the header of the weights. Every tensor is then one of three things:
//! a factor of a [`PeftModule`], which pairs `lora_A` `[r, in]` with `lora_B` `[out, r]`; an [`Extra`], for example a
//! norm that was saved whole; or part of a [`Problem`], for example a `lora_A` without its `lora_B`. The adapter adds
//! `scale · B·A` to a weight, for an embedding its transpose.
//!
//! ```no_run
//! # fn main() -> trephine::Result<()> {
//! let adapter = trephine::lora::read::PeftAdapter::open("path/to/adapter")?;
//! for module in adapter.modules() {
//!     let factors = adapter.factors(module)?;
//!     println!("{} {:?} {} {}", module.name(), module.shape(), module.rank(), factors.a.len());
//! }
//! # Ok(())
//! # }
//! ```

pub(crate) mod classify;
pub(crate) mod config;
pub(crate) mod keys;
pub use self::classify::{Extra, ExtraKind, Fault, PeftModule, Problem};
pub use self::config::{PeftConfig, Targets};

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::checkpoint::Checkpoint;
use crate::checkpoint::catalogue::Tensor;
use crate::checkpoint::identity::{FileIdentity, Identity};
use crate::checkpoint::locate::{self, Source};
#[cfg(feature = "remote")]
use crate::checkpoint::mirror::Mirror;
use crate::checkpoint::module::Module;
use crate::durable::digest::hash_file;
use crate::durable::folder;
use crate::lora::read::classify::sort;
use crate::lora::tree::BaseModules;
use crate::lora::{CONFIG, WEIGHTS};
use crate::storage::Window;
use crate::storage::regular_file;
use crate::{Error, Result};

/// The longest `adapter_config.json`. One that gives every module a rank of its own may have some megabytes.
const LONGEST_CONFIG: u64 = 16 << 20;

/// How many bytes of a factor are mapped and decoded at once.
const WINDOW: u64 = 4 << 20;

/// An open adapter. Safe to use from several threads.
#[derive(Debug)]
pub struct PeftAdapter {
    root: PathBuf,
    files: Vec<String>,
    config: PeftConfig,
    file: Checkpoint,
    modules: BTreeMap<String, PeftModule>,
    extras: Vec<Extra>,
    problems: Vec<Problem>,
    /// The copy that it is read from, if it comes from a server.
    #[cfg(feature = "remote")]
    _mirror: Option<Mirror>,
}

/// Both factors of a module in f32, without the scale.
#[derive(Clone, Debug, PartialEq)]
pub struct Factors {
    /// `[r, in]`, row-major.
    pub a: Vec<f32>,
    /// `[out, r]`, row-major.
    pub b: Vec<f32>,
}

impl PeftAdapter {
    /// The identity of its files, by digests of their whole content: an adapter is small.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn identity(&self) -> Result<Identity> {
        let file = |name: &str| {
            let written = hash_file(&self.root().join(name))?;
            let header = written.blake3.to_hex().to_string();
            Ok(FileIdentity { name: name.to_owned(), size: written.bytes, header, modified: None })
        };
        Ok(Identity { files: [CONFIG, WEIGHTS].into_iter().map(file).collect::<Result<_>>()? })
    }

    /// Whether [`open`](Self::open) would take `folder` for an adapter, valid or not.
    pub fn is_at(folder: &Path) -> bool {
        folder.join(CONFIG).is_file()
    }

    /// Whether [`open`](Self::open) would take what `spec` names for an adapter, valid or not.
    ///
    /// # Errors
    /// Nothing is there, or a server is out of reach.
    pub fn is_named_by(spec: &str) -> Result<bool> {
        let source = locate::resolve(spec, |name| std::env::var_os(name))?;
        match &source {
            Source::Remote { folder, .. } => Ok(folder.small(CONFIG, LONGEST_CONFIG)?.is_some()),
            local => Ok(Self::is_at(local.path())),
        }
    }

    /// Opens a folder, the weight file in it, a name such as `owner/adapter` that is in the Hugging Face cache, or an
    /// address, whose adapter is copied for as long as it is open.
    ///
    /// What is wrong with single tensors is not an error but a [`Problem`].
    ///
    /// # Errors
    /// No adapter; weights in several files or not in safetensors; a damaged file; a config that cannot be read, or is
    /// not for LoRA; two tensors that are the same factor.
    pub fn open(spec: &str) -> Result<PeftAdapter> {
        let source = locate::resolve(spec, |name| std::env::var_os(name))?;
        #[cfg(feature = "remote")]
        if let Source::Remote { folder, .. } = &source {
            // Of what else lies there, which may be large, the names are enough.
            let mirror = Mirror::of(&**folder, &|name| [CONFIG, WEIGHTS].contains(&name))?;
            let listed = folder.listed()?.map(|all| all.into_iter().filter(|name| !name.contains('/')));
            let files = listed.map_or_else(|| names(mirror.path()), |files| Ok(files.collect()))?;
            let opened = Self::open_files(mirror.path(), files)?;
            return Ok(PeftAdapter { _mirror: Some(mirror), ..opened });
        }
        let found = source.path();
        Self::open_folder(if found.is_dir() { found } else { folder::parent(found) })
    }

    /// Opens the folder `root` itself.
    ///
    /// # Errors
    /// See [`open`](Self::open).
    pub fn open_folder(root: &Path) -> Result<PeftAdapter> {
        Self::open_files(root, names(root)?)
    }

    /// Opens the folder `root`, which holds `files`.
    fn open_files(root: &Path, files: Vec<String>) -> Result<PeftAdapter> {
        let weights = weights(root, &files)?;
        let path = root.join(CONFIG);
        let text = regular_file::read_within(&path, LONGEST_CONFIG).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::input("the adapter has no config")
                .path(&path)
                .hint("it holds the rank and lora_alpha: download the complete adapter again"),
            _ => regular_file::cannot_read(&path, e),
        })?;
        let text = String::from_utf8(text)
            .map_err(|_| Error::input("the adapter's config is no text").path(&path))?;
        let config = PeftConfig::parse(&text, &path)?;
        let file = Checkpoint::open_file(&weights)?;
        let sorted = sort(file.tensors(), &config).map_err(|e| e.path(&weights))?;
        let classify::Sorted { modules, extras, problems } = sorted;
        Ok(PeftAdapter {
            root: root.to_owned(),
            files,
            config,
            file,
            modules,
            extras,
            problems,
            #[cfg(feature = "remote")]
            _mirror: None,
        })
    }

    /// The same adapter with its modules and whole parameters named as the files of `base` name them, and how many of
    /// its modules the base has. Those that it does not have keep their names.
    ///
    /// # Errors
    /// It has modules, and the base has none of them; two of them are the same one of the base.
    pub fn named_for(mut self, base: &BaseModules) -> Result<(PeftAdapter, usize)> {
        let (all, mut matched) = (self.modules.len(), 0);
        let mut modules = BTreeMap::new();
        for (name, module) in std::mem::take(&mut self.modules) {
            let stored = stored_name(&name, base);
            matched += usize::from(stored.is_some());
            let renamed = stored.unwrap_or(name);
            if let Some(other) = modules.insert(renamed.clone(), module.renamed(renamed)) {
                return Err(Error::input("two modules of the adapter are the same one of the base")
                    .tensor(other.name())
                    .path(&self.root));
            }
        }
        if matched == 0 && all > 0 {
            return Err(Error::input(format!("0 of {all} modules match the base"))
                .tensor(modules.keys().next().map_or("", String::as_str))
                .path(&self.root)
                .hint("the adapter belongs to another base: its config names which"));
        }
        self.modules = modules;
        for extra in &mut self.extras {
            if let Some(stored) = base.resolve_tensor(&extra.target) {
                extra.target = stored.to_owned();
            }
        }
        Ok((self, matched))
    }

    /// The folder it was opened from.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The names of everything in the folder, sorted.
    pub fn files(&self) -> &[String] {
        &self.files
    }

    /// Its config.
    pub fn config(&self) -> &PeftConfig {
        &self.config
    }

    /// The modules that have a valid pair of factors, by name.
    pub fn modules(&self) -> impl ExactSizeIterator<Item = &PeftModule> {
        self.modules.values()
    }

    /// The module that the base calls `name` (without `.weight`).
    pub fn module(&self, name: &str) -> Option<&PeftModule> {
        self.modules.get(name)
    }

    /// The tensors that are not factors, by name.
    pub fn extras(&self) -> &[Extra] {
        &self.extras
    }

    /// What is wrong with its tensors, in the order of their names.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Every tensor of the weight file, by name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &Tensor> {
        self.file.tensors()
    }

    /// The largest rank of a module; zero if there is no module.
    pub fn rank(&self) -> usize {
        self.modules.values().map(PeftModule::rank).max().unwrap_or(0)
    }

    /// Looks whether its weights are as they were when it was opened, as [`Checkpoint::check_unchanged`] does.
    ///
    /// # Errors
    /// A file that was written to since.
    pub fn check_unchanged(&self) -> Result<()> {
        self.file.check_unchanged()
    }

    /// Maps a range of the bytes of a tensor of this adapter.
    ///
    /// # Errors
    /// A file that cannot be read or has changed.
    ///
    /// # Panics
    /// If the range is not within the tensor.
    pub fn window(&self, tensor: &Tensor, range: Range<u64>) -> Result<Window> {
        self.file.read(tensor, range)
    }

    /// Reads `rows` of a dense `tensor` of this adapter, as [`Module::flattened`] lays it out (a vector is one row),
    /// into `out` in f32, row-major.
    ///
    /// # Errors
    /// A dtype that is not F32, F64, BF16 or F16; a file that cannot be read or has changed.
    ///
    /// # Panics
    /// If the rows are not the tensor's, or `out` is of another length.
    pub fn read(&self, tensor: &Tensor, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        self.flat(tensor)?.panel(&self.file, rows, out)
    }

    fn flat(&self, tensor: &Tensor) -> Result<Module> {
        Module::flattened(tensor).ok_or_else(|| {
            let what = format!("a tensor of {} cannot be read as numbers", tensor.stored.dtype);
            Error::input(what).tensor(tensor.name()).path(self.file.path(tensor.file))
        })
    }

    /// Passes all of a dense `tensor` to `take` in order, in f32, in panels of whole rows of at most about 4 MiB as
    /// stored (or one row, if that is larger). `take` also gets the range of rows.
    ///
    /// # Errors
    /// As [`read`](Self::read); what `take` returns.
    pub fn panels(
        &self,
        tensor: &Tensor,
        mut take: impl FnMut(Range<usize>, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let [rows, width] = self.flat(tensor)?.shape();
        let row = (tensor.size() / rows.max(1) as u64).max(1);
        let step = usize::try_from(WINDOW / row).unwrap_or(rows).clamp(1, rows.max(1));
        let mut values = vec![0.0; step * width];
        for start in (0..rows).step_by(step) {
            let part = start..rows.min(start + step);
            let values = &mut values[..part.len() * width];
            self.read(tensor, part.clone(), values)?;
            take(part, values)?;
        }
        Ok(())
    }

    /// Passes the bytes of `tensor` to `take` in order, as stored, in pieces of at most 4 MiB.
    ///
    /// # Errors
    /// A file that cannot be read or has changed; what `take` returns.
    pub fn copy(&self, tensor: &Tensor, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        for start in (0..tensor.size()).step_by(WINDOW as usize) {
            take(&self.file.read(tensor, start..tensor.size().min(start + WINDOW))?)?;
        }
        Ok(())
    }

    /// Reads both factors of `module` in f32: `4 · r · (in + out)` bytes, plus a window of the file at a time.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn factors(&self, module: &PeftModule) -> Result<Factors> {
        let whole = |tensor: &Tensor| {
            let mut values = Vec::with_capacity(tensor.stored.shape.iter().product());
            self.panels(tensor, |_, part| {
                values.extend_from_slice(part);
                Ok(())
            })?;
            Ok(values)
        };
        Ok(Factors { a: whole(module.a())?, b: whole(module.b())? })
    }
}

/// The name in the base's files of an adapter's module; for the factors of a stack of experts by PEFT's name for them.
fn stored_name(name: &str, base: &BaseModules) -> Option<String> {
    if let Some(module) = base.resolve(name) {
        return Some(module.stored.clone());
    }
    base.stored_name_of_wrapper(name)
}

/// The names of everything in `root`, sorted.
fn names(root: &Path) -> Result<Vec<String>> {
    let failed = |e| Error::unexpected("cannot list").path(root).because(e);
    let name = |entry: std::fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    let entries = std::fs::read_dir(root).map_err(failed)?;
    let mut names = entries.map(|entry| entry.map(name).map_err(failed)).collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// The weight file of the adapter in `root`, which contains `names`.
fn weights(root: &Path, names: &[String]) -> Result<PathBuf> {
    let path = root.join(WEIGHTS);
    // A dangling link into a cache has a name too: opening it reports the error.
    if names.iter().any(|name| name == WEIGHTS) {
        return Ok(path);
    }
    let shards =
        |name: &&String| name.starts_with("adapter_model-") || name.starts_with("adapter_model.safetensors.");
    if let Some(shard) = names.iter().find(shards) {
        return Err(Error::input("the adapter's weights are in several files, which no program loads")
            .path(root.join(shard))
            .hint("save it with PEFT, which writes one adapter_model.safetensors"));
    }
    if let Some(pickle) =
        ["adapter_model.bin", "adapter_model.pt"].iter().find(|end| names.iter().any(|n| n == *end))
    {
        return Err(Error::input("the adapter's weights are in PyTorch's pickle format, not in safetensors")
            .path(root.join(pickle))
            .hint("load it with PEFT and save it again: that writes adapter_model.safetensors"));
    }
    let what = if names.iter().any(|name| name == CONFIG) {
        "the adapter has a config but no weights"
    } else {
        "this is not an adapter"
    };
    Err(Error::input(what)
        .path(&path)
        .hint("give a folder with adapter_config.json and adapter_model.safetensors"))
}
