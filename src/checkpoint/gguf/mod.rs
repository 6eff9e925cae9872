//! GGUF models, llama.cpp's container: one self-contained file, or several made by `gguf-split`.
//!
//! The metadata takes the place of a config, and tensors get their names in Hugging Face's files, so that a GGUF model
//! pairs with a safetensors checkpoint. A tensor without such a name keeps its own.

pub(crate) mod names;
pub(crate) mod targets;

use std::collections::BTreeMap;

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
use crate::storage::{Folder, Storage};
use crate::{Error, Result};

/// The headers of a GGUF model's files, with the config and scheme from their metadata.
pub(crate) struct Model {
    pub(crate) config: Config,
    pub(crate) scheme: Scheme,
    pub(crate) headers: Vec<Header>,
}

/// Whether a file is GGUF, by its name.
pub(crate) fn is_gguf(name: &str) -> bool {
    name.ends_with(".gguf")
}

/// Reads the headers of a model's files, all of them in order.
pub(crate) fn read(files: &[Box<dyn Storage>]) -> Result<Model> {
    let read: Vec<gguf::Header> = files.iter().map(|file| gguf::read(&**file)).collect::<Result<_>>()?;
    let (first, path) = (&read[0].metadata, files[0].location());
    for (file, header) in files.iter().zip(&read) {
        let count = header.metadata.get("split.count").and_then(Value::as_u64).unwrap_or(1);
        if count.max(1) != files.len() as u64 {
            let what = format!("the file is one of {count} parts of a model, but {} were found", files.len());
            return Err(Error::input(what)
                .path(file.location())
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
            let (tensor, layout) = described(&entry, &family).map_err(|e| e.path(file.location()))?;
            layouts.extend(layout.map(|layout| (tensor.name.clone(), layout)));
            stored.push((tensor, entry.bytes));
        }
        headers.push(Header { tensors: stored, digest });
    }
    config["tie_word_embeddings"] = json!(tied);
    config["vocab_size"] = json!(rows);
    Ok(Model { config: Config::of(config), scheme: Scheme::of(Box::new(Gguf::new(layouts))), headers })
}

/// A tensor with its name in Hugging Face's files, and the layout that its format needs if it is a weight or a stack of
/// them.
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
            Some(Layout { kind: entry.kind, shape: [out, inner], head, experts: Vec::new() })
        }
        [count, out, inner] => family.experts(&entry.name, count).map(|experts| Layout {
            kind: entry.kind,
            shape: [out, inner],
            head: None,
            experts,
        }),
        _ => None,
    };
    Ok((TensorInfo::new(name, entry.kind.plain().unwrap_or(Dtype::U8), shape), layout))
}

/// The file's name without `-00001-of-00003.gguf`, and the number of parts.
fn part(name: &str) -> Option<(&str, usize)> {
    let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    (digits(number) && digits(count)).then(|| Some((stem, count.parse().ok()?))).flatten()
}

/// All files of the model that the file `name` in `folder` belongs to.
pub(crate) fn parts(folder: &dyn Folder, name: &str) -> Result<Vec<String>> {
    let Some((stem, count)) = part(name) else { return Ok(vec![name.to_owned()]) };
    if count == 0 {
        let what = "the file's name says that it is one of no parts";
        return Err(Error::input(what)
            .path(folder.path(name))
            .hint("give it the name that gguf-split gave it"));
    }
    let mut parts = Vec::new();
    for number in 1..=count {
        let name = format!("{stem}-{number:05}-of-{count:05}.gguf");
        if !folder.has(&name)? {
            return Err(Error::input(format!("part {number} of {count} of the model is missing"))
                .path(folder.path(&name))
                .hint("the download is incomplete: fetch the model again"));
        }
        parts.push(name);
    }
    Ok(parts)
}

/// The files of the only GGUF model among a folder's file names; `None` without one. A vision projector does not count
/// as a model.
pub(crate) fn listed(folder: &dyn Folder, names: &[String]) -> Result<Option<Vec<String>>> {
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
                .path(folder.location())
                .hint("give the file of one of them"))
        }
    }
}
