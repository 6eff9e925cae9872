//! The files besides the weights: copied files, the config, the index.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::checkpoint::config::Config;
use crate::checkpoint::mirror::leads_inside;
use crate::checkpoint::{Checkpoint, LocalFiles};
use crate::commands::convert::record::CONVERSION;
use crate::commands::convert::sharding::{OutTensor, Shard};
use crate::durable::atomic_file::Draft;
use crate::durable::checksums::can_be_listed;
use crate::durable::digest::Written;
use crate::durable::finding::B3SUMS;
use crate::durable::inside;
use crate::storage::regular_file;
use crate::{Error, Result};

/// The file name of the config.
pub(crate) const CONFIG: &str = "config.json";

/// The file name of the index.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// Files that are rewritten, or that describe only the input.
const NOT_COPIED: [&str; 6] =
    [CONFIG, "hf_quant_config.json", "quantize_config.json", "quanto_qmap.json", B3SUMS, CONVERSION];

/// Name endings of weight files in any container, and of their indices.
const WEIGHTS: [&str; 11] = [
    ".safetensors",
    ".index.json",
    ".bin",
    ".pt",
    ".pth",
    ".gguf",
    ".h5",
    ".msgpack",
    ".onnx",
    ".ckpt",
    ".safetensors.tmp",
];

/// A file to copy.
#[derive(Debug)]
pub(crate) struct Copy {
    /// Its name relative to the folder, with `/`.
    pub name: String,
    pub path: PathBuf,
    pub bytes: u64,
}

/// The files of a checkpoint's folder to copy: all except weights, their indices, and files that only describe the
/// quantization. A checkpoint given as a single file has none: other files in its folder need not belong to it.
///
/// # Errors
/// A folder that cannot be listed.
pub(crate) fn copies(checkpoint: &Checkpoint, out: &Path) -> Result<Copies> {
    let mut found = Copies { out: out.canonicalize().ok(), ..Copies::default() };
    let is_single = checkpoint.folder().is_some_and(|folder| folder.location() != checkpoint.root());
    let files = checkpoint.local_files(&|name| !is_single && is_copied(name))?;
    if files.path().is_dir() {
        let failed = |e| Error::unexpected("cannot list").path(files.path()).because(e);
        let root = files.path().canonicalize().map_err(failed)?;
        walk(&root, files.path(), "", &mut found)?;
    }
    found.from = Some(files);
    found.files.sort_by(|a, b| a.name.cmp(&b.name));
    found.left_out.sort();
    Ok(found)
}

/// Whether a file is copied, by its name below the folder.
fn is_copied(name: &str) -> bool {
    let own = name.rsplit('/').next().unwrap_or(name);
    !own.starts_with('.') && !WEIGHTS.iter().any(|end| own.ends_with(end)) && !NOT_COPIED.contains(&name)
}

/// What of a folder is copied, and what is not though it is neither weights nor hidden.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    pub files: Vec<Copy>,
    /// Names, each with why.
    pub left_out: Vec<String>,
    /// The output folder, which may lie in the input's and is no part of it.
    out: Option<PathBuf>,
    /// Where they lie until they are copied.
    from: Option<LocalFiles>,
}

fn walk(root: &Path, folder: &Path, prefix: &str, found: &mut Copies) -> Result<()> {
    let failed = |e| Error::unexpected("cannot list").path(folder).because(e);
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Ok(own) = entry.file_name().into_string() else {
            let shown = entry.file_name().to_string_lossy().escape_debug().to_string();
            found.left_out.push(format!("'{prefix}{shown}' is a name that is not UTF-8"));
            continue;
        };
        let name = format!("{prefix}{own}");
        if !is_copied(&name) {
            continue;
        }
        let path = entry.path();
        let linked = entry.file_type().is_ok_and(|kind| kind.is_symlink());
        if linked && !leads_inside(root, &path) {
            let leads =
                if path.exists() { "out of the checkpoint's folder" } else { "that leads to no file" };
            found.left_out.push(format!("{} is a link {leads}", name.escape_debug()));
            continue;
        }
        if !can_be_listed(&own) {
            found.left_out.push(format!("'{}' is a name that checksums cannot list", name.escape_debug()));
            continue;
        }
        // The Hugging Face cache consists of links to files; a link to a folder may form a cycle.
        match fs::metadata(&path) {
            Ok(data) if data.is_file() => found.files.push(Copy { name, path, bytes: data.len() }),
            Ok(data) if data.is_dir() && path.canonicalize().ok() == found.out => {}
            Ok(data) if data.is_dir() && !linked => walk(root, &path, &format!("{name}/"), found)?,
            Ok(_) => {}
            Err(e) => return Err(Error::unexpected("cannot read").path(path).because(e)),
        }
    }
    Ok(())
}

/// Copies one file, durably.
///
/// # Errors
/// A file that cannot be read; a full disk.
pub(crate) fn copy(file: &Copy, out: &Path) -> Result<Written> {
    let to = out.join(&file.name);
    inside::create_folders(out, &file.name)?;
    let failed = |e| Error::unexpected("cannot read").path(&file.path).because(e);
    let mut from = regular_file::open(&file.path).map_err(failed)?;
    let mut draft = Draft::create(&to)?.expecting(file.bytes);
    let mut piece = vec![0; 1 << 20];
    loop {
        match from.read(&mut piece).map_err(failed)? {
            0 => return draft.finish(),
            taken => draft.put(&piece[..taken])?,
        }
    }
}

/// What changes in the config.
#[derive(Clone, Debug, Default)]
pub(crate) struct Edits {
    /// The dtype to state, if weights were computed.
    pub dtype: Option<Dtype>,
    /// The new `quantization_config`.
    pub quantization: Option<Value>,
    /// Whether the head is no longer tied to the embedding.
    pub untie: bool,
}

/// The config of the output, if the input has one: with the new quantization only, and the dtype of the weights.
pub(crate) fn config(config: &Config, edits: &Edits) -> Option<Value> {
    let mut raw = config.raw()?.as_object()?.clone();
    let nested = ["text_config", "language_config", "llm_config", "thinker_config"];
    edit(&mut raw, edits, true);
    for key in nested {
        if let Some(Value::Object(inner)) = raw.get_mut(key) {
            edit(inner, edits, false);
        }
    }
    if let Some(quantization) = &edits.quantization {
        raw.insert("quantization_config".to_owned(), quantization.clone());
    }
    Some(Value::Object(raw))
}

fn edit(raw: &mut Map<String, Value>, edits: &Edits, top: bool) {
    raw.remove("quantization_config");
    raw.remove("compression_config");
    // MLX's.
    if raw.get("quantization").is_some_and(|raw| raw.get("bits").is_some()) {
        raw.remove("quantization");
    }
    if let Some(dtype) = edits.dtype {
        // transformers writes `dtype` since version 5 and reads both.
        let known: Vec<&str> =
            ["dtype", "torch_dtype"].into_iter().filter(|key| raw.contains_key(*key)).collect();
        let keys = if known.is_empty() && top { vec!["torch_dtype"] } else { known };
        let word = match dtype {
            Dtype::F16 => "float16",
            Dtype::F32 => "float32",
            _ => "bfloat16",
        };
        keys.into_iter().for_each(|key| drop(raw.insert(key.to_owned(), json!(word))));
    }
    if edits.untie && (top || raw.contains_key("tie_word_embeddings")) {
        raw.insert("tie_word_embeddings".to_owned(), json!(false));
    }
}

/// The index of several weight files.
#[derive(Serialize)]
pub(crate) struct Index<'a> {
    metadata: BTreeMap<&'static str, u64>,
    weight_map: BTreeMap<&'a str, &'a str>,
}

/// The index of `shards`; `None` for a single file.
pub(crate) fn index(shards: &[Shard]) -> Option<Index<'_>> {
    if shards.len() < 2 {
        return None;
    }
    let total: u64 = shards.iter().flat_map(|shard| &shard.tensors).map(OutTensor::bytes).sum();
    Some(Index {
        metadata: BTreeMap::from([("total_size", total)]),
        weight_map: shards
            .iter()
            .flat_map(|shard| shard.tensors.iter().map(|tensor| (&*tensor.stored.name, shard.name.as_str())))
            .collect(),
    })
}
