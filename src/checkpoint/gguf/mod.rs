//! GGUF, llama.cpp's container: one file, or one split by `gguf-split`, that has everything in it.
//!
//! Its metadata takes the place of a config, and its tensors are given the names that Hugging Face's files have, so that a GGUF
//! model pairs with a checkpoint of safetensors. What has no such name keeps its own.

pub(crate) mod names;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::{Value, json};

use crate::checkpoint::config::Config;
use crate::checkpoint::gguf::names::Family;
use crate::container::gguf;
use crate::container::gguf::GgufTensor;
use crate::container::safetensors::header::Header;
use crate::quant::format::gguf::{Gguf, Layout};
use crate::quant::registry::Scheme;
use crate::quant::weight::TensorInfo;
use crate::storage::mmap::DataFile;
use crate::{Error, Result};

/// What the files of a GGUF model say.
pub(crate) struct Model {
    pub(crate) config: Config,
    pub(crate) scheme: Scheme,
    pub(crate) headers: Vec<Header>,
}

/// Whether a file is to be read as GGUF.
pub(crate) fn is_gguf(name: &str) -> bool {
    name.ends_with(".gguf")
}

/// Reads the headers of a model's files, all of them in order.
pub(crate) fn read(files: &[DataFile]) -> Result<Model> {
    let read: Vec<gguf::Header> = files.iter().map(gguf::read).collect::<Result<_>>()?;
    let (first, path) = (&read[0].metadata, files[0].path());
    for (file, header) in files.iter().zip(&read) {
        let count = header.metadata.get("split.count").and_then(Value::as_u64).unwrap_or(1);
        if count.max(1) != files.len() as u64 {
            let what = format!("the file is one of {count} parts of a model, but here are {}", files.len());
            return Err(Error::input(what)
                .path(file.path())
                .hint("keep all parts in one folder, under the names that gguf-split gave them"));
        }
    }
    let family = Family::of(first).map_err(|e| e.path(path))?;
    let mut config = family.config(first);
    let (mut layouts, mut headers, mut tied, mut rows) = (BTreeMap::new(), Vec::new(), true, None);
    for (file, gguf::Header { tensors, digest, .. }) in files.iter().zip(read) {
        let mut stored = Vec::new();
        for entry in tensors {
            tied &= entry.name != "output.weight";
            if entry.name == "token_embd.weight" {
                rows = entry.shape.first().copied();
            }
            let (tensor, layout) = described(&entry, &family).map_err(|e| e.path(file.path()))?;
            layouts.extend(layout.map(|layout| (tensor.name.clone(), layout)));
            stored.push((tensor, entry.bytes));
        }
        headers.push(Header { tensors: stored, digest });
    }
    config["tie_word_embeddings"] = json!(tied);
    config["vocab_size"] = json!(rows);
    Ok(Model { config: Config::of(config), scheme: Scheme::of(Box::new(Gguf::new(layouts))), headers })
}

/// A tensor by its name in Hugging Face's files, and what its format has to know where it is 2-D.
fn described(entry: &GgufTensor, family: &Family) -> Result<(TensorInfo, Option<Layout>)> {
    let name = family.name(&entry.name);
    let (values, bytes) = entry.kind.block();
    let mut shape = entry.shape.clone();
    if let Some(inner) = shape.last_mut().filter(|_| entry.kind.plain().is_none()) {
        *inner = *inner / values * bytes;
    }
    let layout = match *entry.shape.as_slice() {
        [out, inner] => {
            let head = family.head(&entry.name, out).map_err(|e| e.tensor(&entry.name))?;
            Some(Layout { kind: entry.kind, shape: [out, inner], head })
        }
        _ => None,
    };
    Ok((TensorInfo { name, dtype: entry.kind.plain().unwrap_or(Dtype::U8), shape }, layout))
}

/// The file's name without `-00001-of-00003.gguf`, and how many parts there are.
fn part(name: &str) -> Option<(&str, usize)> {
    let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    (digits(number) && digits(count)).then(|| Some((stem, count.parse().ok()?))).flatten()
}

/// All files of the model that the file `name` of `folder` is of.
pub(crate) fn parts(folder: &Path, name: &str) -> Result<Vec<(String, PathBuf)>> {
    let Some((stem, count)) = part(name) else { return Ok(vec![(name.to_owned(), folder.join(name))]) };
    if count == 0 {
        let what = "the file's name says that it is one of no parts";
        return Err(Error::input(what)
            .path(folder.join(name))
            .hint("give it the name that gguf-split gave it"));
    }
    let mut parts = Vec::new();
    for number in 1..=count {
        let name = format!("{stem}-{number:05}-of-{count:05}.gguf");
        let path = folder.join(&name);
        if !path.exists() {
            return Err(Error::input(format!("a part of the model is missing, {number} of {count}"))
                .path(path)
                .hint("the download is incomplete: fetch the model again"));
        }
        parts.push((name, path));
    }
    Ok(parts)
}

/// The one model among the names of a folder's files, if any is GGUF. A vision projector is no model by itself.
pub(crate) fn listed(folder: &Path, names: &[String]) -> Result<Option<Vec<(String, PathBuf)>>> {
    let files = names.iter().filter(|name| is_gguf(name) && !name.starts_with("mmproj"));
    let mut models = BTreeMap::<&str, &str>::new();
    for name in files {
        models.entry(part(name).map_or(name, |(stem, _)| stem)).or_insert(name);
    }
    let mut models = models.into_values();
    match (models.next(), models.next()) {
        (None, _) => Ok(None),
        (Some(name), None) => parts(folder, name).map(Some),
        (Some(name), Some(other)) => {
            Err(Error::decide(format!("the folder holds more than one model, '{name}' and '{other}'"))
                .path(folder)
                .hint("give the file that is meant"))
        }
    }
}
