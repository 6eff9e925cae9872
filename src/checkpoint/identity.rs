//! The identity of a checkpoint when it was opened, so that a resumed run can tell what has changed.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::container::safetensors::header::Header;
use crate::storage::mmap::nanoseconds;
use crate::storage::regular_file;
use crate::storage::{Storage, Version};

/// The files that determine how the others are read.
const CONFIGS: [&str; 4] =
    ["config.json", "hf_quant_config.json", "quantize_config.json", "quanto_qmap.json"];

/// The identity of one file: enough to detect a different file without reading its data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    /// Its name, relative to the checkpoint's folder.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// The blake3, in hex, of its header, or of the whole file for JSON.
    pub header: String,
    /// Modification time, or the tag at a server, where the source reports one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub modified: Option<Version>,
}

/// All files of a checkpoint, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Identity {
    /// The files.
    pub files: Vec<FileIdentity>,
}

/// A change of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// It is new.
    Added(String),
    /// It was removed.
    Removed(String),
    /// Its size differs: name, old size, new size.
    Resized(String, u64, u64),
    /// Its header, or a config's content, differs.
    Header(String),
    /// Only its modification time differs: a copy, or the same shapes with other values. The tensors' digests
    /// would tell.
    Touched(String),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Added(name) => write!(f, "{name} was not there before"),
            Change::Removed(name) => write!(f, "{name} was removed"),
            Change::Resized(name, old, new) => write!(f, "{name} had {old} bytes and now has {new}"),
            Change::Header(name) if name.ends_with(".json") => write!(f, "{name} has different content"),
            Change::Header(name) => write!(f, "{name} has a different header"),
            Change::Touched(name) => write!(f, "{name} was modified"),
        }
    }
}

impl Identity {
    /// The identity without modification times, for records that must not depend on when a copy was made.
    pub fn timeless(&self) -> Identity {
        let timeless = |file: &FileIdentity| FileIdentity { modified: None, ..file.clone() };
        Identity { files: self.files.iter().map(timeless).collect() }
    }

    /// The changes from `self` to `now`, by name; at most one for each file, the most serious.
    pub fn changes(&self, now: &Identity) -> Vec<Change> {
        let find = |files: &[FileIdentity], name: &str| files.iter().find(|file| file.name == name).cloned();
        let mut changes = Vec::new();
        for old in &self.files {
            let name = old.name.clone();
            match find(&now.files, &name) {
                None => changes.push(Change::Removed(name)),
                Some(new) if new.size != old.size => changes.push(Change::Resized(name, old.size, new.size)),
                Some(new) if new.header != old.header => changes.push(Change::Header(name)),
                Some(new) if new.modified != old.modified => changes.push(Change::Touched(name)),
                Some(_) => {}
            }
        }
        let added = now.files.iter().filter(|new| find(&self.files, &new.name).is_none());
        changes.extend(added.map(|new| Change::Added(new.name.clone())));
        changes
    }
}

/// Files beside the weights that determine how they are read, if they exist: the configs in the folder, and the index.
pub(crate) fn beside(folder: &Path, index: Option<&Path>) -> Vec<PathBuf> {
    CONFIGS.map(|name| folder.join(name)).into_iter().chain(index.map(Path::to_owned)).collect()
}

/// The identity of a checkpoint's files and of the existing files [`beside`] them.
pub(crate) fn of(beside: &[PathBuf], files: &[Box<dyn Storage>], headers: &[Header]) -> Result<Identity> {
    let mut identities = Vec::new();
    for path in beside {
        let Some((size, digest)) = regular_file::hash_if_any(path)? else { continue };
        identities.push(FileIdentity {
            name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            size,
            header: digest.to_hex().to_string(),
            modified: modified(path),
        });
    }
    identities.extend(files.iter().zip(headers).map(|(file, header)| FileIdentity {
        name: file.name().to_owned(),
        size: file.length(),
        header: header.digest.to_hex().to_string(),
        modified: file.version(),
    }));
    identities.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Identity { files: identities })
}

fn modified(path: &Path) -> Option<Version> {
    let time = path.metadata().and_then(|data| data.modified()).ok()?;
    nanoseconds(time).map(Version::Modified)
}
