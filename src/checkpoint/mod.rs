//! Checkpoints on disk, read as a catalogue of modules: safetensors files with an index and a config, or GGUF files.
//!
//! [`Checkpoint::open`] reads only headers. It checks them in full, so later code can trust every offset. The bytes of
//! tensors come from a [`storage`](crate::storage) in windows, and are released with the window.

pub(crate) mod catalogue;
pub(crate) mod config;
pub(crate) mod error_policy;
pub mod gguf;
pub(crate) mod identity;
pub(crate) mod index;
pub(crate) mod json;
pub(crate) mod locate;
pub(crate) mod mirror;
pub(crate) mod module;
pub mod module_tree;
mod open;
pub(crate) mod reader;
pub(crate) mod room;
pub(crate) mod unaccounted;
pub(crate) mod weight_map;
pub use self::catalogue::{FileId, Tensor};
pub use self::config::Config;
pub use self::identity::{Change, FileIdentity, Identity};
pub use self::mirror::LocalFiles;
pub use self::module::{Module, PackedRows};
pub use self::reader::{MappedRows, ModuleReader};
pub use self::room::Room;

use crate::checkpoint::catalogue::Catalogue;
use crate::checkpoint::module_tree::kinds::kind_of_module;
use crate::checkpoint::module_tree::table::is_without_generation;
use crate::checkpoint::module_tree::{ModuleKind, ModuleTree};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::quant::registry::Scheme;
use crate::quant::weight::{SMALL, TensorInfo, Tensors};
use crate::shared::Name;
use crate::storage::{Folder, Keeper, Kept, Storage, Window, has_scratch};
use crate::{Error, Result};

/// Bytes of a tensor that are mapped at once while it is hashed.
pub(crate) const HASH_WINDOW: u64 = 4 << 20;

/// An open checkpoint. Every method takes `&self` and is safe to use from several threads.
#[derive(Debug)]
pub struct Checkpoint {
    root: PathBuf,
    /// Where its files lie together, unless its objects were given singly.
    folder: Option<Arc<dyn Folder>>,
    config: Config,
    scheme: Scheme,
    files: Vec<Box<dyn Storage>>,
    /// The names of the files, for records.
    names: Vec<Name>,
    tensors: Catalogue,
    modules: BTreeMap<Name, Module>,
    identity: Identity,
}

/// The tensors and their files, as formats see them while a checkpoint is opened.
struct Shelf<'a> {
    tensors: &'a Catalogue,
    files: &'a [Box<dyn Storage>],
}

impl Tensors for Shelf<'_> {
    fn stored(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name).map(|tensor| &tensor.stored)
    }

    fn content(&self, name: &str) -> Result<Vec<u8>> {
        let tensor = self.tensors.get(name);
        let tensor = tensor.ok_or_else(|| Error::input("this tensor is missing").tensor(name))?;
        if tensor.size() > SMALL as u64 {
            let what = format!("{} bytes is too large for the description of a weight", tensor.size());
            return Err(Error::input(what).tensor(name).hint("export the checkpoint again"));
        }
        let window =
            self.files[tensor.file.0].read_range(tensor.bytes.clone()).map_err(|e| e.tensor(name))?;
        Ok(window.to_vec())
    }
}

impl Checkpoint {
    /// The folder or file that was opened; for a repository, its snapshot in the cache.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The model's config, empty if there is none.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// How its weights are stored.
    pub fn scheme(&self) -> &Scheme {
        &self.scheme
    }

    /// The names, sizes, header digests and modification times of the files.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Every 2-D weight, by name.
    pub fn modules(&self) -> impl ExactSizeIterator<Item = &Module> {
        self.modules.values()
    }

    /// The module of that name (without `.weight`). For an output head that is not stored and that the config ties to
    /// the input embedding, it is the embedding under its own name.
    pub fn module(&self, name: &str) -> Option<&Module> {
        let tied = || self.is_tied_head(name).then(|| self.input_embedding()).flatten();
        self.modules.get(name).or_else(tied)
    }

    /// PEFT's `task_type` for an adapter of this model: [`Config::task_type`], but for classes that do not generate
    /// text although their name says so.
    pub fn task_type(&self) -> Option<&'static str> {
        let silent = self.config.architecture().is_some_and(is_without_generation);
        self.config.task_type().filter(|_| !silent)
    }

    /// Whether a module or a tensor is stored under that name.
    pub(crate) fn stores(&self, name: &str) -> bool {
        self.modules.contains_key(name) || self.tensors.get(name).is_some()
    }

    /// What transformers makes of its modules.
    pub fn tree(&self) -> ModuleTree {
        ModuleTree::of(&self.config)
    }

    fn is_tied_head(&self, name: &str) -> bool {
        let head = self.tree().head();
        let is_head = name == head || head == "lm_head" && name.rsplit('.').next() == Some("lm_head");
        is_head && self.config.tie_word_embeddings()
    }

    /// The input embedding. If there are several, as in a multimodal model, it is the one with the shallowest name.
    pub fn input_embedding(&self) -> Option<&Module> {
        const NAMES: [&str; 4] = ["embed_tokens", "wte", "word_embeddings", "tok_embeddings"];
        let is_embedding =
            |name: &str| kind_of_module(name, self.config.model_type()) == Some(ModuleKind::Embedding);
        let named = |module: &&Module| {
            let last = module.name().rsplit('.').next();
            is_embedding(module.name()) || last.is_some_and(|last| NAMES.contains(&last))
        };
        self.modules.values().filter(named).min_by_key(|module| module.name().split('.').count())
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// Every tensor, by name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &Tensor> {
        self.tensors.iter()
    }

    /// The tensors that belong to no module, by name: norms, biases, stacks of experts that no format reads, scales
    /// without a weight.
    pub fn others(&self) -> impl Iterator<Item = &Tensor> {
        let used: std::collections::HashSet<&str> =
            self.modules.values().flat_map(|module| module.tensors()).map(Tensor::name).collect();
        self.tensors.iter().filter(move |tensor| !used.contains(tensor.name()))
    }

    /// The path of a file.
    pub fn path(&self, file: FileId) -> &Path {
        self.files[file.0].location()
    }

    /// The name of a file, relative to the folder.
    pub fn file_name(&self, file: FileId) -> &str {
        self.files[file.0].name()
    }

    /// The same, to be kept in records.
    pub(crate) fn shared_file_name(&self, file: FileId) -> Name {
        self.names[file.0].clone()
    }

    /// Maps a range of a tensor's bytes, relative to the tensor's start.
    ///
    /// # Errors
    /// A file whose size has changed since it was opened, or that cannot be read.
    ///
    /// # Panics
    /// If the range is not within the tensor.
    pub fn read(&self, tensor: &Tensor, range: Range<u64>) -> Result<Window> {
        self.files[tensor.file.0].read_range(within(tensor, range)).map_err(|e| e.tensor(tensor.name()))
    }

    /// Looks whether every file is as it was when the checkpoint was opened, by size and time. What was read is to
    /// be trusted only if this holds afterwards.
    ///
    /// # Errors
    /// [`Kind::Input`](crate::Kind::Input) with the first file that was written to since.
    pub fn check_unchanged(&self) -> Result<()> {
        self.files.iter().try_for_each(|file| file.check_unchanged())
    }

    /// Asks the system to read a range of a tensor ahead. This is best effort: a failure is ignored.
    ///
    /// # Panics
    /// If the range is not within the tensor.
    pub fn prefetch(&self, tensor: &Tensor, range: Range<u64>) {
        self.files[tensor.file.0].prefetch(within(tensor, range));
    }

    /// The same for what is read after that, if there is room for it.
    ///
    /// # Panics
    /// If the range is not within the tensor.
    pub fn prefetch_later(&self, tensor: &Tensor, range: Range<u64>) {
        self.files[tensor.file.0].prefetch_later(within(tensor, range));
    }

    /// Announces a pass over a range of a tensor: see [`Storage::begin_pass`].
    ///
    /// # Panics
    /// If the range is not within the tensor.
    pub fn begin_pass(&self, tensor: &Tensor, range: Range<u64>) {
        self.files[tensor.file.0].begin_pass(within(tensor, range));
    }

    /// Whether every byte that is read has to be fetched from a server.
    pub fn is_remote(&self) -> bool {
        self.files.iter().any(|file| file.is_remote())
    }

    /// Bytes of memory that it takes to read a module more than once and fetch it only once: its stored bytes, if they
    /// come from a server and there is no scratch folder for them.
    pub fn memory_to_reread(&self, module: &Module) -> u64 {
        if self.is_remote() && !has_scratch() { module.size() } else { 0 }
    }

    /// Keeps the stored bytes of a module that is read more than once: in the scratch folder if there is one,
    /// otherwise in memory, of which [`memory_to_reread`](Self::memory_to_reread) is what the caller accounts for.
    ///
    /// # Errors
    /// See [`Storage::keep`].
    pub fn keep_to_reread(&self, module: &Module) -> Result<Vec<Box<dyn Keeper>>> {
        if !self.is_remote() {
            return Ok(Vec::new());
        }
        self.keep(module, if has_scratch() { Kept::Scratch } else { Kept::Memory })
    }

    /// Keeps the stored bytes of a module here once they are fetched, until the result is dropped: see
    /// [`Storage::keep`].
    ///
    /// # Errors
    /// See [`Storage::keep`].
    pub fn keep(&self, module: &Module, kept: Kept) -> Result<Vec<Box<dyn Keeper>>> {
        let mut ranges: BTreeMap<FileId, Vec<Range<u64>>> = BTreeMap::new();
        for (tensor, extent) in module.extents() {
            ranges.entry(tensor.file).or_default().push(within(tensor, extent));
        }
        let kept = ranges.iter().map(|(file, ranges)| self.files[file.0].keep(ranges, kept));
        kept.filter_map(Result::transpose).collect()
    }

    /// The folder that its files lie in, where they lie together.
    pub(crate) fn folder(&self) -> Option<&dyn Folder> {
        self.folder.as_deref()
    }

    /// The blake3 of a tensor's bytes, read in windows of a few MiB.
    ///
    /// # Errors
    /// The errors of [`read`](Self::read).
    pub fn hash(&self, tensor: &Tensor) -> Result<blake3::Hash> {
        self.hash_range(tensor, 0..tensor.size())
    }

    /// The blake3 of a range of a tensor's bytes. Where they come from a server and there was a pass over them, they
    /// were hashed in it.
    ///
    /// # Errors
    /// The errors of [`read`](Self::read).
    ///
    /// # Panics
    /// If the range is not within the tensor.
    pub fn hash_range(&self, tensor: &Tensor, range: Range<u64>) -> Result<blake3::Hash> {
        let passed = self.files[tensor.file.0].end_pass(within(tensor, range.clone()));
        if let Some(hash) = passed.map_err(|e| e.tensor(tensor.name()))? {
            return Ok(hash);
        }
        let mut hasher = blake3::Hasher::new();
        for start in range.clone().step_by(HASH_WINDOW as usize) {
            hasher.update(&self.read(tensor, start..(start + HASH_WINDOW).min(range.end))?);
        }
        Ok(hasher.finalize())
    }
}

/// The folder or file for `spec`: a path, the snapshot of a repository in the Hugging Face cache, or an address.
///
/// # Errors
/// A path or repository that does not exist, or a file in an unsupported container.
pub fn find(spec: &str) -> Result<PathBuf> {
    locate::resolve(spec, |name| std::env::var_os(name)).map(|source| source.path().to_owned())
}

/// The range in the file for a range in the tensor.
fn within(tensor: &Tensor, range: Range<u64>) -> Range<u64> {
    assert!(
        range.start <= range.end && range.end <= tensor.size(),
        "bytes {range:?} of '{}', which has {}",
        tensor.name(),
        tensor.size()
    );
    tensor.bytes.start + range.start..tensor.bytes.start + range.end
}
