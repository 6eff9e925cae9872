//! What is on disk: files of safetensors, an index, a config, or files of GGUF; read as a catalogue of modules.
//!
//! [`Checkpoint::open`] reads headers only. They are checked in full then and there, so that what follows can trust every
//! offset; the tensors' bytes are mapped window by window, and released with the window. This is the one room that maps files,
//! and `window.rs` the one file in it.

pub(crate) mod catalogue;
pub(crate) mod config;
pub(crate) mod error_policy;
pub mod gguf;
pub(crate) mod identity;
pub(crate) mod index;
pub(crate) mod json;
pub(crate) mod locate;
pub(crate) mod module;
pub(crate) mod reader;
pub use self::catalogue::{FileId, Tensor};
pub use self::config::Config;
pub use self::identity::{Change, FileIdentity, Identity};
pub use self::module::{Module, PackedRows};
pub use self::reader::{MappedRows, ModuleReader};

use crate::checkpoint::catalogue::Catalogue;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::checkpoint::error_policy::Faults;
use crate::checkpoint::index::Layout;
use crate::container::safetensors::header;
use crate::quant::expert::layout::Experts;
use crate::quant::registry::Scheme;
use crate::quant::weight::{SMALL, TensorInfo, Tensors};
use crate::storage::mmap::DataFile;
use crate::storage::mmap::Window;
use crate::{Error, Result};

/// How much of a tensor is mapped at once while it is hashed.
const HASH_WINDOW: u64 = 4 << 20;

/// An open checkpoint. Everything is behind `&self` and safe to use from several threads.
#[derive(Debug)]
pub struct Checkpoint {
    root: PathBuf,
    config: Config,
    scheme: Scheme,
    files: Vec<DataFile>,
    tensors: Catalogue,
    modules: BTreeMap<String, Module>,
    identity: Identity,
}

/// The tensors with the files that hold them: what a format may look at while a checkpoint is opened.
struct Shelf<'a> {
    tensors: &'a Catalogue,
    files: &'a [DataFile],
}

impl Tensors for Shelf<'_> {
    fn stored(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.0.get(name).map(|tensor| &tensor.stored)
    }

    fn content(&self, name: &str) -> Result<Vec<u8>> {
        let tensor = self.tensors.0.get(name);
        let tensor = tensor.ok_or_else(|| Error::input("this tensor is missing").tensor(name))?;
        if tensor.size() > SMALL as u64 {
            let what = format!("{} bytes are too many for a description of a weight", tensor.size());
            return Err(Error::input(what).tensor(name).hint("export the checkpoint again"));
        }
        let window = self.files[tensor.file.0].window(tensor.bytes.clone()).map_err(|e| e.tensor(name))?;
        Ok(window.to_vec())
    }
}

impl Checkpoint {
    /// Opens a folder, one `.safetensors` or `.gguf` file, or a name such as `Qwen/Qwen3-32B` that is in the Hugging Face cache.
    ///
    /// # Errors
    /// Whatever is wrong with the checkpoint's files or headers, or a quantization that is not supported. All of it is bad input,
    /// but for a file that the system refuses to open.
    pub fn open(spec: &str) -> Result<Checkpoint> {
        Self::open_with(spec, &mut Faults::Stop)
    }

    /// Opens what can be opened of a checkpoint, and keeps what is wrong with the rest: a missing file, a damaged header, an index
    /// that does not fit, an unknown quantization, a weight without its scale. In the order in which they were met.
    ///
    /// # Errors
    /// Nothing is there to be opened.
    pub fn inspect(spec: &str) -> Result<(Checkpoint, Vec<Error>)> {
        let mut faults = Faults::Keep(Vec::new());
        let checkpoint = Self::open_with(spec, &mut faults)?;
        match faults {
            Faults::Keep(kept) => Ok((checkpoint, kept)),
            Faults::Stop => Ok((checkpoint, Vec::new())),
        }
    }

    fn open_with(spec: &str, faults: &mut Faults) -> Result<Checkpoint> {
        let source = locate::resolve(spec, |name| std::env::var_os(name))?;
        let layout = index::layout(&source, faults)?;
        if layout.is_gguf() {
            let mut opened = Self::gather_gguf(&source, &layout)?;
            opened.modules = module::catalogue(&opened.scheme, &opened.tensors, &opened.files, faults)?;
            return Ok(opened);
        }
        let config = faults.take(Config::load(source.folder()))?.unwrap_or_default();
        let types: Vec<&str> =
            [config.model_type(), config.text_model_type()].into_iter().flatten().collect();
        let scheme = |declared| Scheme::with_experts(declared, Experts::of(&types, config.hidden_size()));
        let known = faults.take(scheme(config.quantization()).map_err(|e| e.path(source.path())))?;
        let unknown = known.is_none();
        let scheme = match known {
            Some(known) => known,
            None => scheme(None)?,
        };
        let mut opened = Self::gather(&source, &layout, config, scheme, faults)?;
        // Under a scheme that is not read, nothing more is to be said of each of its weights.
        let mut ignored = Faults::Keep(Vec::new());
        let faults = if unknown { &mut ignored } else { faults };
        opened.modules = module::catalogue(&opened.scheme, &opened.tensors, &opened.files, faults)?;
        Ok(opened)
    }

    /// Opens one `.safetensors` file by itself, whatever config lies beside it, as a catalogue of tensors without modules: an
    /// adapter's weights.
    ///
    /// # Errors
    /// As [`open`](Self::open), of this one file.
    pub fn open_file(path: &Path) -> Result<Checkpoint> {
        let source = locate::Source::File(path.to_owned());
        let (config, scheme, faults) = (Config::default(), Scheme::default(), &mut Faults::Stop);
        Self::gather(&source, &index::layout(&source, faults)?, config, scheme, faults)
    }

    /// Everything but the modules.
    fn gather(
        source: &locate::Source,
        layout: &Layout,
        config: Config,
        scheme: Scheme,
        faults: &mut Faults,
    ) -> Result<Checkpoint> {
        let mut files = Vec::new();
        let mut headers = Vec::new();
        for (name, path) in &layout.files {
            let read = DataFile::open(name, path).and_then(|file| Ok((header::read(&file)?, file)));
            let Some((header, file)) = faults.take(read)? else { continue };
            headers.push(header);
            files.push(file);
        }
        let identity = identity::of(&identity::beside(source.folder(), layout.index()), &files, &headers)?;
        let tensors = index::resolve(layout, &files, headers, faults)?;
        let (root, modules) = (source.path().to_owned(), BTreeMap::new());
        Ok(Checkpoint { root, config, scheme, files, tensors, modules, identity })
    }

    /// The same of GGUF, whose files hold all there is to know.
    fn gather_gguf(source: &locate::Source, layout: &Layout) -> Result<Checkpoint> {
        let open = |(name, path): &(String, PathBuf)| DataFile::open(name, path);
        let files: Vec<DataFile> = layout.files.iter().map(open).collect::<Result<_>>()?;
        let gguf::Model { config, scheme, headers } = gguf::read(&files)?;
        let identity = identity::of(&[], &files, &headers)?;
        let tensors = index::resolve(layout, &files, headers, &mut Faults::Stop)?;
        let (root, modules) = (source.path().to_owned(), BTreeMap::new());
        Ok(Checkpoint { root, config, scheme, files, tensors, modules, identity })
    }

    /// The folder or file that was opened, found in the cache where it was given by name.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The model's config, empty where there is none.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// How its weights are stored.
    pub fn scheme(&self) -> &Scheme {
        &self.scheme
    }

    /// The files' names, sizes, headers and times.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Every 2-D weight, by name.
    pub fn modules(&self) -> impl ExactSizeIterator<Item = &Module> {
        self.modules.values()
    }

    /// The module of that name (without `.weight`). An output head that is not stored is the input embedding where the config ties
    /// the two; the module that is returned then bears the embedding's name.
    pub fn module(&self, name: &str) -> Option<&Module> {
        let tied = || self.is_tied_head(name).then(|| self.input_embedding()).flatten();
        self.modules.get(name).or_else(tied)
    }

    fn is_tied_head(&self, name: &str) -> bool {
        name.rsplit('.').next() == Some("lm_head") && self.config.tie_word_embeddings()
    }

    /// The input embedding. Of several, as in a model that sees and reads, it is the shallowest named.
    pub fn input_embedding(&self) -> Option<&Module> {
        const NAMES: [&str; 4] = ["embed_tokens", "wte", "word_embeddings", "tok_embeddings"];
        let named =
            |module: &&Module| module.name().rsplit('.').next().is_some_and(|last| NAMES.contains(&last));
        self.modules.values().filter(named).min_by_key(|module| module.name().split('.').count())
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.tensors.0.get(name)
    }

    /// Every tensor, by name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &Tensor> {
        self.tensors.0.values()
    }

    /// The tensors that no module is made of, by name: norms, biases, stacks of experts that no format reads, scales without a weight.
    pub fn others(&self) -> impl Iterator<Item = &Tensor> {
        let used: std::collections::HashSet<&str> =
            self.modules.values().flat_map(|module| module.tensors()).map(Tensor::name).collect();
        self.tensors.0.values().filter(move |tensor| !used.contains(tensor.name()))
    }

    /// The path of a file.
    pub fn path(&self, file: FileId) -> &Path {
        self.files[file.0].path()
    }

    /// The name of a file, relative to the folder.
    pub fn file_name(&self, file: FileId) -> &str {
        self.files[file.0].name()
    }

    /// Maps a range of a tensor's bytes (from the tensor's start).
    ///
    /// # Errors
    /// The file has another size than when it was opened, or cannot be read.
    ///
    /// # Panics
    /// If the range is not within the tensor.
    pub fn read(&self, tensor: &Tensor, range: Range<u64>) -> Result<Window> {
        self.files[tensor.file.0].window(within(tensor, range)).map_err(|e| e.tensor(tensor.name()))
    }

    /// Looks whether every file is as it was when the checkpoint was opened, by size and time. What was read is to be trusted only
    /// if this holds afterwards.
    ///
    /// # Errors
    /// [`Kind::Input`](crate::Kind::Input) with the first file that was written to since.
    pub fn check_unchanged(&self) -> Result<()> {
        self.files.iter().try_for_each(DataFile::check_unchanged)
    }

    /// Asks the system to read a range of a tensor ahead. Best effort: what it cannot do is not an error.
    ///
    /// # Panics
    /// If the range is not within the tensor.
    pub fn prefetch(&self, tensor: &Tensor, range: Range<u64>) {
        self.files[tensor.file.0].prefetch(within(tensor, range));
    }

    /// The blake3 of a tensor's bytes, read in windows of a few MiB.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn hash(&self, tensor: &Tensor) -> Result<blake3::Hash> {
        self.hash_range(tensor, 0..tensor.size())
    }

    /// The same of a range of its bytes.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    ///
    /// # Panics
    /// If the range is not within the tensor.
    pub fn hash_range(&self, tensor: &Tensor, range: Range<u64>) -> Result<blake3::Hash> {
        let mut hasher = blake3::Hasher::new();
        for start in range.clone().step_by(HASH_WINDOW as usize) {
            hasher.update(&self.read(tensor, start..(start + HASH_WINDOW).min(range.end))?);
        }
        Ok(hasher.finalize())
    }
}

/// The folder or file that `spec` means: a path, or the snapshot of a repository in the Hugging Face cache.
///
/// # Errors
/// Nothing is there, or it is a file in a container that is not read.
pub fn find(spec: &str) -> Result<PathBuf> {
    locate::resolve(spec, |name| std::env::var_os(name)).map(|source| source.path().to_owned())
}

/// A range of a tensor as a range of its file.
fn within(tensor: &Tensor, range: Range<u64>) -> Range<u64> {
    assert!(
        range.start <= range.end && range.end <= tensor.size(),
        "bytes {range:?} of '{}', which has {}",
        tensor.name(),
        tensor.size()
    );
    tensor.bytes.start + range.start..tensor.bytes.start + range.end
}
