//! The files beside the weights that an adapter does not carry: tokenizer, chat template, generation config.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::Result;
use crate::checkpoint::mirror::leads_inside;
use crate::checkpoint::{Checkpoint, LocalFiles};
use crate::storage::regular_file;

/// The files of a tokenizer and its chat template.
const TOKENIZER: [&str; 9] = [
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
];

/// How a model is sampled from.
const GENERATION: &str = "generation_config.json";

/// A longer JSON file is not compared by its fields.
const LONGEST: u64 = 4 << 20;

/// The names of the files of `checkpoint` that can lie beside an adapter.
///
/// # Errors
/// A server that is out of reach.
pub fn names(checkpoint: &Checkpoint) -> Result<Vec<&'static str>> {
    let mut found = Vec::new();
    for name in TOKENIZER.into_iter().chain([GENERATION]) {
        let is_there = match checkpoint.folder().filter(|_| checkpoint.is_remote()) {
            Some(folder) => folder.open_if_any(name)?.is_some(),
            None => checkpoint.root().is_dir() && own(checkpoint.root(), name) == Some(true),
        };
        found.extend(is_there.then_some(name));
    }
    Ok(found)
}

/// Whether a file of this name in a folder is its own; false for a link that leads out of it, to what nobody meant to
/// publish. `None` where there is no such file.
fn own(folder: &Path, name: &str) -> Option<bool> {
    let path = folder.join(name);
    let root = folder.canonicalize().ok()?;
    path.is_file().then(|| !path.is_symlink() || leads_inside(&root, &path))
}

/// A note on the links that are not copied.
fn links(tuned: &Path) -> Option<String> {
    let names = TOKENIZER.into_iter().chain([GENERATION]);
    let left: Vec<&str> = names.filter(|name| own(tuned, name) == Some(false)).collect();
    let is = if left.len() == 1 { "is a link" } else { "are links" };
    (!left.is_empty())
        .then(|| format!("not copied: {} {is} out of the tuned checkpoint's folder", left.join(", ")))
}

/// These files on this machine, each with its name, for as long as the first value lives.
///
/// # Errors
/// A server that is out of reach; a full disk.
pub fn carried(checkpoint: &Checkpoint) -> Result<(LocalFiles, Vec<(&'static str, PathBuf)>)> {
    let names = names(checkpoint)?;
    let files = checkpoint.local_files(&|name| names.contains(&name))?;
    let paths = names.iter().map(|name| (*name, files.path().join(name))).collect();
    Ok((files, paths))
}

/// A note if the tuned checkpoint's tokenizer, chat template or generation config differs from the base's; or, where
/// they are copied, on those that are not.
pub fn note(base: &Checkpoint, tuned: &Checkpoint, copied: bool) -> Option<String> {
    if copied {
        return links(tuned.root());
    }
    if !base.root().is_dir() || !tuned.root().is_dir() {
        return None;
    }
    let folders = [base.root(), tuned.root()];
    let mut differ = Vec::new();
    let vocabularies = ["tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt"];
    if vocabularies.iter().any(|name| bytes_differ(folders.map(|folder| folder.join(name)))) {
        differ.push("tokenizer".to_owned());
    }
    if folders.map(chat_template).windows(2).any(|pair| pair[1].is_some() && pair[0] != pair[1]) {
        differ.push("chat template".to_owned());
    }
    if let Some(keys) = generation(folders) {
        differ.push(format!("generation config ({keys})"));
    }
    (!differ.is_empty()).then(|| {
        format!(
            "the tuned checkpoint has another {} than the base, which an adapter does not carry: --copy-tokenizer copies \
             these files into its folder",
            differ.join(", another ")
        )
    })
}

/// Whether both files exist and differ.
fn bytes_differ(paths: [PathBuf; 2]) -> bool {
    let [Ok(a), Ok(b)] = paths.map(|path| regular_file::open(&path)) else { return false };
    let lengths = [&a, &b].map(|file| file.metadata().map_or(0, |data| data.len()));
    if lengths[0] != lengths[1] {
        return true;
    }
    let (mut a, mut b) = (std::io::BufReader::new(a).bytes(), std::io::BufReader::new(b).bytes());
    loop {
        match (a.next(), b.next()) {
            (None, None) => return false,
            (Some(Ok(one)), Some(Ok(other))) if one == other => {}
            _ => return true,
        }
    }
}

fn json(path: &Path) -> Option<Value> {
    serde_json::from_slice(&regular_file::read_within(path, LONGEST).ok()?).ok()
}

/// The chat template, in a file of its own or in the tokenizer's config.
fn chat_template(folder: &Path) -> Option<String> {
    let own = regular_file::read_within(&folder.join("chat_template.jinja"), LONGEST).ok();
    own.map(|text| String::from_utf8_lossy(&text).into_owned()).or_else(|| {
        Some(json(&folder.join("tokenizer_config.json"))?.get("chat_template")?.as_str()?.to_owned())
    })
}

/// The keys whose values differ, apart from those that no program acts on.
fn generation(folders: [&Path; 2]) -> Option<String> {
    let [base, tuned] = folders.map(|folder| json(&folder.join(GENERATION)));
    let (base, tuned) = (base.unwrap_or_default(), tuned?);
    let keys: BTreeSet<&String> =
        [&base, &tuned].into_iter().filter_map(Value::as_object).flat_map(|map| map.keys()).collect();
    let of_no_effect = |key: &str| key == "transformers_version" || key.starts_with('_');
    let differs = |key: &&&String| !of_no_effect(key) && base.get(key) != tuned.get(key);
    let keys: Vec<&str> = keys.iter().filter(differs).map(|key| key.as_str()).collect();
    (!keys.is_empty()).then(|| keys.join(", "))
}
