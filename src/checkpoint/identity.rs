//! The identity of a checkpoint when it was opened, so that a resumed run can tell what has changed.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::container::safetensors::header::Header;
use crate::storage::{FileDigest, Folder, Storage, Version};

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
    /// A server's tag of it differs: its content does.
    Replaced(String),
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
            Change::Replaced(name) => write!(f, "{name} was replaced at the server"),
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
                Some(new) if new.modified == old.modified => {}
                Some(FileIdentity { modified: Some(Version::Tag(_)), .. })
                    if matches!(old.modified, Some(Version::Tag(_))) =>
                {
                    changes.push(Change::Replaced(name));
                }
                Some(_) => changes.push(Change::Touched(name)),
            }
        }
        let added = now.files.iter().filter(|new| find(&self.files, &new.name).is_none());
        changes.extend(added.map(|new| Change::Added(new.name.clone())));
        changes
    }
}

/// Names of the files beside the weights that determine how they are read: the configs, and the index.
pub(crate) fn beside(index: Option<&str>) -> impl Iterator<Item = &str> {
    CONFIGS.into_iter().chain(index)
}

/// The identity of a checkpoint's files and of those of the files `beside` them that exist.
pub(crate) fn of<'a>(
    folder: &dyn Folder,
    beside: impl Iterator<Item = &'a str>,
    files: &[Box<dyn Storage>],
    headers: &[Header],
) -> Result<Identity> {
    let mut identities = Vec::new();
    for name in beside {
        let Some(FileDigest { size, digest, version }) = folder.digest(name)? else { continue };
        identities.push(FileIdentity {
            name: name.to_owned(),
            size,
            header: digest.to_hex().to_string(),
            modified: version,
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
