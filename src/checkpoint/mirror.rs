//! Small files of a folder at a server, copied to a temporary folder for as long as they are needed: a tokenizer, what
//! a converted checkpoint is to have beside its weights, an adapter.

use std::path::{Path, PathBuf};

use crate::Result;
use crate::checkpoint::Checkpoint;

/// Files beside the weights, on this machine.
#[derive(Debug)]
pub struct LocalFiles {
    path: PathBuf,
    #[cfg(feature = "remote")]
    _mirror: Option<Mirror>,
}

impl LocalFiles {
    /// The folder, or the one file, that they lie in or beside.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Whether a link in the folder `root`, a path without links, may be followed: it leads to a place inside the folder,
/// or to a blob of a Hugging Face cache. Any other may lead to what nobody meant to publish.
pub(crate) fn leads_inside(root: &Path, link: &Path) -> bool {
    let Ok(target) = link.canonicalize() else { return false };
    let named = |up: usize| target.ancestors().nth(up).and_then(Path::file_name).unwrap_or_default();
    let is_blob = named(1) == "blobs" && named(2).as_encoded_bytes().starts_with(b"models--");
    target.starts_with(root) || is_blob
}

impl Checkpoint {
    /// The files of its folder that `is_wanted` by their names, on this machine: its own folder, or copies that are
    /// removed with the result.
    ///
    /// # Errors
    /// A server that is out of reach; a full disk.
    pub fn local_files(&self, is_wanted: &dyn Fn(&str) -> bool) -> Result<LocalFiles> {
        #[cfg(feature = "remote")]
        if let Some(folder) = self.folder().filter(|_| self.is_remote()) {
            let mirror = Mirror::of(folder, is_wanted)?;
            return Ok(LocalFiles { path: mirror.path().to_owned(), _mirror: Some(mirror) });
        }
        let _ = is_wanted;
        let path = self.root().to_owned();
        #[cfg(feature = "remote")]
        return Ok(LocalFiles { path, _mirror: None });
        #[cfg(not(feature = "remote"))]
        Ok(LocalFiles { path })
    }
}

#[cfg(feature = "remote")]
pub(crate) use self::copied::Mirror;

#[cfg(feature = "remote")]
mod copied {
    use std::fs::File;
    use std::io::Write;
    use std::path::Path;

    use crate::durable::inside::is_inside;
    use crate::storage::{Folder, remote};
    use crate::{Error, Result};

    /// What a folder that lists nothing may have beside its weights.
    const USUAL: [&str; 15] = [
        "adapter_config.json",
        "adapter_model.safetensors",
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
        "config.json",
        "generation_config.json",
        "merges.txt",
        "preprocessor_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
    ];

    /// Bytes that are copied at once.
    const PIECE: u64 = 4 << 20;

    /// A temporary folder with copies.
    #[derive(Debug)]
    pub(crate) struct Mirror(tempfile::TempDir);

    impl Mirror {
        pub(crate) fn path(&self) -> &Path {
            self.0.path()
        }

        /// Copies of the files of `folder` that `is_wanted`.
        ///
        /// # Errors
        /// A server that is out of reach; a full disk.
        pub(crate) fn of(folder: &dyn Folder, is_wanted: &dyn Fn(&str) -> bool) -> Result<Mirror> {
            let failed = |e| Error::unexpected("cannot write a temporary copy").because(e);
            let mut builder = tempfile::Builder::new();
            let builder = builder.prefix("trephine-");
            let made = match remote::scratch() {
                Some(scratch) => std::fs::create_dir_all(scratch).and_then(|()| builder.tempdir_in(scratch)),
                None => builder.tempdir(),
            };
            let mirror = Mirror(made.map_err(failed)?);
            let listed = folder.listed()?;
            let names = listed.unwrap_or_else(|| USUAL.map(str::to_owned).to_vec());
            for name in names.iter().filter(|name| is_wanted(name) && is_inside(name)) {
                let Some(file) = folder.open_if_any(name)? else { continue };
                let path = mirror.path().join(name);
                std::fs::create_dir_all(path.parent().unwrap_or(mirror.path())).map_err(failed)?;
                let mut copy = File::create(&path).map_err(failed)?;
                file.prefetch(0..file.length());
                for start in (0..file.length()).step_by(PIECE as usize) {
                    let window = file.read_range(start..(start + PIECE).min(file.length()))?;
                    copy.write_all(&window).map_err(failed)?;
                }
            }
            Ok(mirror)
        }
    }
}
