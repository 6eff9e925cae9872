//! Locating a checkpoint: from what the user wrote to a folder or file.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::storage::regular_file;
use crate::storage::{Folder, LocalFolder};
use crate::{Error, Result};

/// The location of a checkpoint or an adapter.
#[derive(Debug)]
pub(crate) enum Source {
    /// A folder of files.
    Folder(PathBuf),
    /// One file.
    File(PathBuf),
    /// A place at a server, and the one file in it if it is one; `root` is the whole address.
    Remote { folder: Arc<dyn Folder>, file: Option<String>, root: PathBuf },
}

impl Source {
    pub(crate) fn path(&self) -> &Path {
        match self {
            Source::Folder(path) | Source::File(path) => path,
            Source::Remote { root, .. } => root,
        }
    }

    /// The folder with its files, the config among them.
    pub(crate) fn folder(&self) -> Arc<dyn Folder> {
        match self {
            Source::Folder(path) => Arc::new(LocalFolder::new(path)),
            Source::File(path) => Arc::new(LocalFolder::new(path.parent().unwrap_or(Path::new("")))),
            Source::Remote { folder, .. } => Arc::clone(folder),
        }
    }

    /// The name of the one file, if it is one.
    pub(crate) fn file(&self) -> Option<String> {
        match self {
            Source::Folder(_) => None,
            Source::File(path) => Some(path.file_name().unwrap_or_default().to_string_lossy().into_owned()),
            Source::Remote { file, .. } => file.clone(),
        }
    }
}

/// Finds the folder or file for `spec`: an address, an existing path, or otherwise a repository in the Hugging Face
/// cache. `variable` looks up an environment variable.
pub(crate) fn resolve(spec: &str, variable: impl Fn(&str) -> Option<OsString>) -> Result<Source> {
    if is_address(spec) {
        return remote(spec);
    }
    let path = Path::new(spec);
    if path.is_dir() {
        return Ok(Source::Folder(path.to_owned()));
    }
    if path.exists() {
        return single(path);
    }
    if path.is_symlink() {
        let hint = "what it leads to is gone, or it leads back to itself";
        return Err(Error::input("this link leads to no file or folder").path(path).hint(hint));
    }
    if is_repository(spec) {
        return cached(spec, variable).map(Source::Folder);
    }
    Err(Error::input("no such file or folder")
        .path(path)
        .hint("give a folder, a .safetensors or .gguf file, or a name such as Qwen/Qwen3-32B"))
}

/// Whether `spec` is an address, not a path.
fn is_address(spec: &str) -> bool {
    let scheme = spec.split_once("://").map_or("", |(scheme, _)| scheme);
    !scheme.is_empty() && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
}

#[cfg(feature = "remote")]
fn remote(spec: &str) -> Result<Source> {
    let place = crate::storage::remote::open(spec)?;
    if let Some(file) = &place.file {
        single(Path::new(file)).map_err(|e| e.path(&place.root))?;
    }
    Ok(Source::Remote { folder: place.folder, file: place.file, root: place.root })
}

#[cfg(not(feature = "remote"))]
fn remote(spec: &str) -> Result<Source> {
    Err(Error::decide("this build reads no addresses").path(spec).hint("build it with the feature `remote`"))
}

fn single(path: &Path) -> Result<Source> {
    match path.extension().and_then(|end| end.to_str()) {
        Some("safetensors" | "gguf") => Ok(Source::File(path.to_owned())),
        Some("json") => {
            Err(Error::input("this is not a checkpoint").path(path).hint("give the folder that contains it"))
        }
        Some(end) => Err(foreign(path, end)),
        None => Err(Error::input("this is neither a .safetensors nor a .gguf file")
            .path(path)
            .hint("give a folder, or a .safetensors or .gguf file")),
    }
}

/// The error for weights in an unsupported container.
pub(crate) fn foreign(path: &Path, extension: &str) -> Error {
    let (kind, cure) = match extension {
        "bin" | "pt" | "pth" => {
            ("PyTorch's pickle format", "convert them with `save_pretrained`, which writes safetensors")
        }
        _ => ("an unsupported format", "convert them to safetensors"),
    };
    Error::input(format!("the weights are in {kind} (.{extension}), not in safetensors"))
        .path(path)
        .hint(cure)
}

/// Whether `spec` can be the name of a repository, `model` or `owner/model`, and not a mistyped path.
fn is_repository(spec: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['.', '-'])
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    let parts: Vec<&str> = spec.split('/').collect();
    parts.len() <= 2
        && parts.iter().all(|p| part(p))
        && ![".safetensors", ".gguf"].iter().any(|end| spec.ends_with(end))
}

/// The snapshot that `refs/main` of a cached repository refers to.
fn cached(name: &str, variable: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf> {
    let missing = |what: &str, path: &Path| {
        // An address names the owner too.
        let place = if name.contains('/') { name } else { "OWNER/NAME" };
        Error::input(format!("'{name}' is not a file or folder here, and {what}"))
            .path(path)
            .hint(format!("download it: hf download {name}; or read it where it lies: hf://{place}"))
    };
    let Some(hub) = hub(variable) else {
        return Err(missing(
            "no Hugging Face cache is known (HF_HUB_CACHE, HF_HOME and HOME are unset)",
            Path::new(name),
        ));
    };
    let repository = hub.join(format!("models--{}", name.replace('/', "--")));
    let Ok(revision) = regular_file::read_text(&repository.join("refs/main")) else {
        return Err(missing("the Hugging Face cache does not hold it", &hub));
    };
    let revision = revision.trim();
    let snapshot = repository.join("snapshots").join(revision);
    // A reference must be a commit hash: nothing else may choose the folder.
    if revision.is_empty() || !revision.chars().all(|c| c.is_ascii_alphanumeric()) || !snapshot.is_dir() {
        return Err(missing("its snapshot is not in the Hugging Face cache", &repository));
    }
    Ok(snapshot)
}

/// The cache's folder, by the rules of `huggingface_hub` (`constants.py`).
fn hub(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let folder = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    folder("HF_HUB_CACHE")
        .or_else(|| folder("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| folder("HF_HOME").map(|home| home.join("hub")))
        .or_else(|| folder("XDG_CACHE_HOME").map(|cache| cache.join("huggingface/hub")))
        .or_else(|| folder("HOME").map(|home| home.join(".cache/huggingface/hub")))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn unset(_: &str) -> Option<OsString> {
        None
    }

    #[test]
    fn finds_a_snapshot_by_each_variable() {
        let home = tempfile::tempdir().unwrap();
        let hub = home.path().join(".cache/huggingface/hub");
        let repository = hub.join("models--Qwen--Qwen3-32B");
        let snapshot = repository.join("snapshots/9216db5781bf21249d130ec9da846c4624c16137");
        fs::create_dir_all(&snapshot).unwrap();
        fs::create_dir_all(repository.join("refs")).unwrap();
        fs::write(repository.join("refs/main"), "9216db5781bf21249d130ec9da846c4624c16137").unwrap();
        for (name, value) in [
            ("HOME", home.path().to_owned()),
            ("XDG_CACHE_HOME", home.path().join(".cache")),
            ("HF_HOME", home.path().join(".cache/huggingface")),
            ("HF_HUB_CACHE", hub.clone()),
        ] {
            let found =
                resolve("Qwen/Qwen3-32B", |asked| (asked == name).then(|| value.clone().into_os_string()));
            assert_eq!(found.unwrap().path(), snapshot, "{name}");
        }
        fs::write(repository.join("refs/main"), "../../..").unwrap();
        let refused = resolve("Qwen/Qwen3-32B", |asked| {
            (asked == "HF_HUB_CACHE").then(|| hub.clone().into_os_string())
        });
        assert!(refused.unwrap_err().to_string().contains("its snapshot is not in the Hugging Face cache"));
    }

    #[test]
    fn the_hint_for_a_name_without_an_owner_makes_up_none() {
        let error = resolve("gpt2", |asked| (asked == "HF_HOME").then(|| "/nowhere".into())).unwrap_err();
        let hint = "download it: hf download gpt2; or read it where it lies: hf://OWNER/NAME";
        assert_eq!(error.cure(), Some(hint));
    }

    #[test]
    fn the_hint_for_an_absent_repository_is_its_download() {
        let error =
            resolve("Qwen/Qwen3-32B", |asked| (asked == "HF_HOME").then(|| "/nowhere".into())).unwrap_err();
        insta::assert_snapshot!(error, @"
        'Qwen/Qwen3-32B' is not a file or folder here, and the Hugging Face cache does not hold it: /nowhere/hub
        ");
        assert_eq!(
            error.cure(),
            Some("download it: hf download Qwen/Qwen3-32B; or read it where it lies: hf://Qwen/Qwen3-32B")
        );
    }

    #[test]
    fn a_mistyped_path_is_not_taken_for_a_repository() {
        for spec in ["./no/such", "no/such/folder", "/no/such", "../base", "no.safetensors", ""] {
            assert!(
                resolve(spec, unset).unwrap_err().to_string().starts_with("no such file or folder"),
                "{spec}"
            );
        }
    }
}
