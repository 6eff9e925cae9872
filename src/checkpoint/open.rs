//! Opening: from a path, a repository or an address, from one file, or from any storage.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::checkpoint::catalogue::Catalogue;
use crate::checkpoint::config::Config;
use crate::checkpoint::error_policy::Faults;
use crate::checkpoint::identity::Identity;
use crate::checkpoint::index::Layout;
use crate::checkpoint::module::arrange;
use crate::checkpoint::room::Room;
use crate::checkpoint::{Checkpoint, gguf, identity, index, locate, unaccounted};
use crate::container::safetensors::header;
use crate::quant::declared::Declared;
use crate::quant::expert::layout::Experts;
use crate::quant::registry::Scheme;
use crate::storage::{Folder, LocalFolder, Storage};
use crate::{Error, Result};

impl Checkpoint {
    /// Opens a folder, one `.safetensors` or `.gguf` file, or a repository in the Hugging Face cache such
    /// as `Qwen/Qwen3-32B`.
    ///
    /// # Errors
    /// The first error in the checkpoint's files or headers, or an unsupported quantization. All are bad input, except
    /// for a file that the system cannot open.
    pub fn open(spec: &str) -> Result<Checkpoint> {
        Self::open_within(spec, &mut Room::boundless())
    }

    /// Opens a checkpoint if what its tensors take fits into `room`, from which it is taken.
    ///
    /// # Errors
    /// The errors of [`open`](Self::open); [`Kind::Decide`](crate::Kind::Decide) where there is no room.
    pub fn open_within(spec: &str, room: &mut Room) -> Result<Checkpoint> {
        Self::open_with(spec, room, &mut Faults::Stop)
    }

    /// Opens what can be opened of a checkpoint, and returns the errors of the rest in the order in which they
    /// occurred: a missing file, a damaged header, an index that does not match, an unknown quantization, a weight
    /// without its scale.
    ///
    /// # Errors
    /// There is nothing to open.
    pub fn inspect(spec: &str) -> Result<(Checkpoint, Vec<Error>)> {
        let mut faults = Faults::Keep(Vec::new());
        let checkpoint = Self::open_with(spec, &mut Room::boundless(), &mut faults)?;
        match faults {
            Faults::Keep(kept) => Ok((checkpoint, kept)),
            Faults::Stop => Ok((checkpoint, Vec::new())),
        }
    }

    fn open_with(spec: &str, room: &mut Room, faults: &mut Faults) -> Result<Checkpoint> {
        let source = locate::resolve(spec, |name| std::env::var_os(name))?;
        let folder = source.folder();
        let layout = index::layout(&*folder, source.file().as_deref(), faults)?;
        if layout.is_gguf() {
            let mut opened = Self::gather_gguf(&source, &layout, room)?;
            opened.modules = arrange::catalogue(&opened.scheme, &opened.tensors, &opened.files, faults)?;
            return Ok(opened);
        }
        let config = faults.take(Config::read(&*folder))?.unwrap_or_default();
        let known =
            faults.take(scheme_of(&config, config.quantization()).map_err(|e| e.path(source.path())))?;
        let unknown = known.is_none();
        let scheme = match known {
            Some(known) => known,
            None => scheme_of(&config, None)?,
        };
        let mut opened = Self::gather(&source, &layout, (config, scheme), room, faults)?;
        // The unsupported scheme is reported already; errors of its single weights would only repeat that.
        let mut ignored = Faults::Keep(Vec::new());
        let faults = if unknown { &mut ignored } else { faults };
        opened.find_modules(faults)?;
        let tree = opened.tree();
        arrange::turn(&mut opened.modules, |name| tree.is_conv1d(name));
        arrange::split(&mut opened.modules, |name| tree.layers_of(name))
            .map_err(|e| e.path(source.path()))?;
        arrange::join(&mut opened.modules, |name| tree.half_of(name)).map_err(|e| e.path(source.path()))?;
        Ok(opened)
    }

    /// Opens one `.safetensors` file as a catalogue of tensors without modules, ignoring any config beside it: the
    /// weights of an adapter.
    ///
    /// # Errors
    /// The errors of [`open`](Self::open) for this one file.
    pub fn open_file(path: &Path) -> Result<Checkpoint> {
        let source = locate::Source::File(path.to_owned());
        Self::open_tensors(&source)
    }

    /// The same for the file `name` in the folder at an address.
    ///
    /// # Errors
    /// The errors of [`open_file`](Self::open_file).
    pub(crate) fn open_tensors_of(spec: &str, name: &str) -> Result<Checkpoint> {
        let source = locate::resolve(spec, |name| std::env::var_os(name))?;
        let (folder, root) = (source.folder(), source.path().to_owned());
        Self::open_tensors(&locate::Source::Remote { folder, file: Some(name.to_owned()), root })
    }

    /// The same for one file that was located already.
    fn open_tensors(source: &locate::Source) -> Result<Checkpoint> {
        let (config, scheme, faults) = (Config::default(), Scheme::default(), &mut Faults::Stop);
        let layout = index::layout(&*source.folder(), source.file().as_deref(), faults)?;
        Self::gather(source, &layout, (config, scheme), &mut Room::boundless(), faults)
    }

    /// Opens a safetensors checkpoint whose objects come from any [`Storage`]; `root` is its name in messages. All
    /// tensors of all objects are taken, without an index.
    ///
    /// # Errors
    /// The errors of [`open`](Self::open).
    pub fn from_storage(root: &Path, config: Config, files: Vec<Box<dyn Storage>>) -> Result<Checkpoint> {
        let faults = &mut Faults::Stop;
        let scheme = scheme_of(&config, config.quantization()).map_err(|e| e.path(root))?;
        let headers = files.iter().map(|file| header::read(&**file)).collect::<Result<Vec<_>>>()?;
        let identity = identity::of(&LocalFolder::new(root), std::iter::empty(), &files, &headers)?;
        let tensors = index::resolve(&Layout::default(), &files, headers, faults)?;
        let mut opened =
            Self::without_modules(root.to_owned(), None, (config, scheme), files, tensors, identity);
        opened.find_modules(faults)?;
        Ok(opened)
    }

    /// Opens everything except the modules.
    fn gather(
        source: &locate::Source,
        layout: &Layout,
        declared: (Config, Scheme),
        room: &mut Room,
        faults: &mut Faults,
    ) -> Result<Checkpoint> {
        let mut files = Vec::new();
        let mut headers = Vec::new();
        let folder = source.folder();
        for file in open_all(&*folder, layout) {
            let read = file.and_then(|file| Ok((header::read(&*file)?, file)));
            let Some((mut header, file)) = faults.take(read)? else { continue };
            room.count(&mut header);
            headers.push(header);
            files.push(file);
        }
        room.check().map_err(|e| e.path(source.path()))?;
        let identity = identity::of(&*folder, identity::beside(layout.index()), &files, &headers)?;
        let tensors = index::resolve(layout, &files, headers, faults)?;
        let (root, folder) = (source.path().to_owned(), Some(folder));
        Ok(Self::without_modules(root, folder, declared, files, tensors, identity))
    }

    /// The same for GGUF, whose files contain the config.
    fn gather_gguf(source: &locate::Source, layout: &Layout, room: &mut Room) -> Result<Checkpoint> {
        let folder = source.folder();
        let files = open_all(&*folder, layout).into_iter().collect::<Result<Vec<_>>>()?;
        let gguf::Model { config, scheme, mut headers } = gguf::read(&files)?;
        headers.iter_mut().for_each(|header| room.count(header));
        room.check().map_err(|e| e.path(source.path()))?;
        let identity = identity::of(&*folder, std::iter::empty(), &files, &headers)?;
        let tensors = index::resolve(layout, &files, headers, &mut Faults::Stop)?;
        let (root, folder) = (source.path().to_owned(), Some(folder));
        Ok(Self::without_modules(root, folder, (config, scheme), files, tensors, identity))
    }

    /// Finds the modules, and refuses codes that belong to none.
    fn find_modules(&mut self, faults: &mut Faults) -> Result<()> {
        self.modules = arrange::catalogue(&self.scheme, &self.tensors, &self.files, faults)?;
        unaccounted::check(&self.scheme, &self.tensors, &self.modules, &self.files, faults)
    }

    fn without_modules(
        root: PathBuf,
        folder: Option<Arc<dyn Folder>>,
        (config, scheme): (Config, Scheme),
        files: Vec<Box<dyn Storage>>,
        tensors: Catalogue,
        identity: Identity,
    ) -> Checkpoint {
        let names = files.iter().map(|file| file.name().into()).collect();
        let modules = BTreeMap::new();
        Checkpoint { root, folder, config, scheme, files, names, tensors, modules, identity }
    }
}

fn open_all(folder: &dyn Folder, layout: &Layout) -> Vec<Result<Box<dyn Storage>>> {
    let names: Vec<&str> = layout.files.iter().map(|(name, _)| name.as_str()).collect();
    folder.open_all(&names)
}

/// The declared scheme, for a model with this config.
fn scheme_of(config: &Config, declared: Option<&Declared>) -> Result<Scheme> {
    let types: Vec<&str> = [config.model_type(), config.text_model_type()].into_iter().flatten().collect();
    Scheme::with_experts(declared, Experts::of(&types, config.hidden_size()))
}
