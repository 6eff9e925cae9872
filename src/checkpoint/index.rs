//! The files of a checkpoint, and which file holds which tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer};

use crate::checkpoint::catalogue::{Catalogue, FileId, Tensor};
use crate::checkpoint::error_policy::Faults;
use crate::checkpoint::gguf;
use crate::checkpoint::json::read_json;
use crate::checkpoint::locate::{Source, foreign};
use crate::container::safetensors::header::Header;
use crate::durable::inside::is_inside;
use crate::storage::Storage;
use crate::{Error, Result};

const INDEX: &str = "model.safetensors.index.json";

/// The longest index: that of some hundred thousand tensors has some tens of megabytes.
const LONGEST: u64 = 64 << 20;

/// The most tensors in all files together.
const MOST_TENSORS: usize = 1_000_000;

const ADAPTER: &str = "adapter_model.safetensors";

/// The files of a checkpoint.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    /// Name and path of each file, in the order of names.
    pub(crate) files: Vec<(String, PathBuf)>,
    /// The path of the index and its `weight_map` from tensor to file, if there is an index.
    index: Option<(PathBuf, BTreeMap<String, String>)>,
}

impl Layout {
    /// Whether the files are GGUF.
    pub(crate) fn is_gguf(&self) -> bool {
        self.files.iter().any(|(name, _)| gguf::is_gguf(name))
    }

    /// The path of the index, if there is one.
    pub(crate) fn index(&self) -> Option<&Path> {
        self.index.as_ref().map(|(path, _)| path.as_path())
    }
}

/// Lists the files, by the index if there is one.
pub(crate) fn layout(source: &Source, faults: &mut Faults) -> Result<Layout> {
    match source {
        Source::File(path) => {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if gguf::is_gguf(&name) {
                return Ok(Layout { files: gguf::parts(source.folder(), &name)?, index: None });
            }
            Ok(Layout { files: vec![(name, path.clone())], index: None })
        }
        Source::Folder(folder) => {
            let path = folder.join(INDEX);
            let index = faults.take(read_json::<Index>(&path, LONGEST))?.flatten();
            let indexed = index.map(|index| indexed(folder, path, index, faults)).transpose();
            match faults.take(indexed)?.flatten() {
                Some(layout) => Ok(layout),
                None => listed(folder),
            }
        }
    }
}

/// What an index says.
#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    weight_map: Option<BTreeMap<String, FileName>>,
}

/// An entry of the index: a name, or something else.
struct FileName(Option<String>);

impl<'de> Deserialize<'de> for FileName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<FileName, D::Error> {
        // Values that are not text are skipped.
        Ok(FileName(match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(name) => Some(name),
            _ => None,
        }))
    }
}

fn indexed(folder: &Path, path: PathBuf, index: Index, faults: &mut Faults) -> Result<Layout> {
    let bad = |what: &str| Error::input(what).path(&path).hint("download or export the index again");
    let map = index.weight_map.ok_or_else(|| bad("the index has no weight_map"))?;
    let mut weights = BTreeMap::new();
    let mut files = BTreeMap::new();
    for (tensor, file) in &map {
        let FileName(file) = file;
        let file = file.as_deref().ok_or_else(|| bad("the index's entry is not a file name").tensor(tensor));
        let Some(file) = faults.take(file)? else { continue };
        if !is_inside(file) {
            let what = format!("the index points outside its folder, to '{file}'");
            let error = Error::input(what).path(&path).tensor(tensor);
            faults.meet(error.hint("do not use this checkpoint: ask who made it"))?;
            continue;
        }
        files.entry(file.to_owned()).or_insert_with(|| folder.join(file));
        weights.insert(tensor.clone(), file.to_owned());
    }
    let mut present = Vec::new();
    for (file, at) in &files {
        // This includes a symlink into the cache whose blob is gone.
        if !at.exists() {
            let held = weights.values().filter(|f| *f == file).count();
            let what = format!("a file with {held} of the index's {} tensors is missing", weights.len());
            let error = Error::input(what).path(at);
            faults.meet(error.hint("the download is incomplete: fetch the checkpoint again"))?;
            continue;
        }
        present.push((file.clone(), at.clone()));
    }
    Ok(Layout { files: present, index: Some((path, weights)) })
}

/// The files of a folder without an index: all of its `.safetensors`, or its GGUF model.
fn listed(folder: &Path) -> Result<Layout> {
    let failed = |e| Error::unexpected("cannot list").path(folder).because(e);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    let ends = |end: &str| names.iter().find(|name| name.ends_with(end));
    let files: Vec<_> = names
        .iter()
        .filter(|name| name.ends_with(".safetensors") && *name != ADAPTER)
        .map(|name| (name.clone(), folder.join(name)))
        .collect();
    if !files.is_empty() {
        complete(folder, &files)?;
        return Ok(Layout { files, index: None });
    }
    if names.iter().any(|name| name == ADAPTER) {
        return Err(Error::input("this is an adapter, not a checkpoint")
            .path(folder)
            .hint("give a model that has it merged"));
    }
    if let Some(files) = gguf::listed(folder, &names)? {
        return Ok(Layout { files, index: None });
    }
    for end in ["bin", "pt", "pth"] {
        if ends(&format!(".{end}")).is_some() {
            return Err(foreign(folder, end));
        }
    }
    Err(Error::input("the folder holds no .safetensors and no .gguf")
        .path(folder)
        .hint("give the folder of a model"))
}

/// Checks that no part of a set of files is missing, by their names: `model-00001-of-00003.safetensors`.
///
/// # Errors
/// The first part that is missing. Nothing but the names says so where there is no index.
fn complete(folder: &Path, files: &[(String, PathBuf)]) -> Result<()> {
    let sets: BTreeSet<(&str, &str)> = files.iter().filter_map(|(name, _)| part_of_set(name)).collect();
    for (stem, count) in sets {
        // No folder has a million files: such a number is a name and not a count.
        let Some(parts) = count.parse::<usize>().ok().filter(|parts| *parts < 1_000_000) else { continue };
        let name =
            |number: usize| format!("{stem}-{number:0width$}-of-{count}.safetensors", width = count.len());
        let missing = (1..=parts).map(name).find(|name| !files.iter().any(|(file, _)| file == name));
        if let Some(missing) = missing {
            let held = files.iter().filter(|(file, _)| part_of_set(file) == Some((stem, count))).count();
            let what = format!("a part of the checkpoint is missing: {held} of {parts} files are there");
            return Err(Error::input(what)
                .path(folder.join(missing))
                .hint("the download is incomplete: fetch the checkpoint again"));
        }
    }
    Ok(())
}

/// The name of a set of files and its count, as digits, of a file that is one part of it.
fn part_of_set(name: &str) -> Option<(&str, &str)> {
    let (rest, count) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    (digits(number) && digits(count) && number.len() == count.len()).then_some((stem, count))
}

/// Gathers the tensors of all files by name. Where the index lists a tensor, only the file it names counts; tensors
/// that are not in the index are taken as well, as loaders do.
///
/// # Errors
/// Two files that hold the same tensor; an index that names a file without the tensor.
pub(crate) fn resolve(
    layout: &Layout,
    files: &[Box<dyn Storage>],
    headers: Vec<Header>,
    faults: &mut Faults,
) -> Result<Catalogue> {
    let mut catalogue = BTreeMap::<String, Tensor>::new();
    let weights = layout.index.as_ref().map(|(_, weights)| weights);
    for (id, header) in headers.into_iter().enumerate() {
        for (stored, bytes) in header.tensors {
            let owner = weights.and_then(|weights| weights.get(&stored.name));
            if owner.is_some_and(|owner| owner != files[id].name()) {
                continue;
            }
            if catalogue.len() == MOST_TENSORS {
                let what = format!("the checkpoint has more than {MOST_TENSORS} tensors");
                return Err(Error::input(what).path(files[id].location()));
            }
            let tensor = Tensor { stored, file: FileId(id), bytes };
            if let Some(first) = catalogue.insert(tensor.stored.name.clone(), tensor) {
                let what =
                    format!("two files hold the same tensor, this one and '{}'", files[first.file.0].name());
                let error = Error::input(what).path(files[id].location()).tensor(first.name());
                faults.meet(error.hint(
                    "the folder mixes two exports: keep one, or add the index that says which is meant",
                ))?;
            }
        }
    }
    if let Some((index, weights)) = &layout.index {
        // A file that was not read has been reported already.
        let read = |file: &String| files.iter().any(|read| read.name() == file);
        let absent = weights.iter().filter(|(name, file)| !catalogue.contains_key(*name) && read(file));
        for (name, file) in absent {
            let what = format!("the index puts a tensor in '{file}', which does not hold it");
            let error = Error::input(what).path(index).tensor(name);
            faults.meet(
                error.hint("index and files come from different exports: fetch the checkpoint again"),
            )?;
        }
    }
    Ok(Catalogue(catalogue))
}
