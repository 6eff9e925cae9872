//! The files of a checkpoint, and which file holds which tensor.

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;

use crate::checkpoint::catalogue::{Catalogue, FileId, Tensor};
use crate::checkpoint::error_policy::Faults;
use crate::checkpoint::gguf;
use crate::checkpoint::json::read_json;
use crate::checkpoint::locate::foreign;
use crate::checkpoint::weight_map::{Index, MOST_TENSORS, WeightMap};
use crate::container::safetensors::header::Header;
use crate::durable::inside::is_inside;
use crate::storage::{Folder, Storage};
use crate::{Error, Result};

const INDEX: &str = "model.safetensors.index.json";

/// The longest index: that of some hundred thousand tensors has some tens of megabytes.
const LONGEST: u64 = 64 << 20;

const ADAPTER: &str = "adapter_model.safetensors";

/// The files of a checkpoint.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    /// Name and path of each file, in the order of names.
    pub(crate) files: Vec<(String, PathBuf)>,
    /// The path of the index and what it says, if there is an index.
    index: Option<(PathBuf, WeightMap)>,
}

impl Layout {
    /// The files of these names, without an index.
    fn of(folder: &dyn Folder, names: Vec<String>) -> Layout {
        let files = names.into_iter().map(|name| (name.clone(), folder.path(&name))).collect();
        Layout { files, index: None }
    }

    /// Whether the files are GGUF.
    pub(crate) fn is_gguf(&self) -> bool {
        self.files.iter().any(|(name, _)| gguf::is_gguf(name))
    }

    /// The name of the index, if there is one.
    pub(crate) fn index(&self) -> Option<&'static str> {
        self.index.as_ref().map(|_| INDEX)
    }
}

/// Lists the files, by the index if there is one. `file` is the one file that was asked for, if it was one.
pub(crate) fn layout(folder: &dyn Folder, file: Option<&str>, faults: &mut Faults) -> Result<Layout> {
    if let Some(name) = file {
        let names = if gguf::is_gguf(name) { gguf::parts(folder, name)? } else { vec![name.to_owned()] };
        return Ok(Layout::of(folder, names));
    }
    let index = faults.take(read_json::<Index>(folder, INDEX, LONGEST))?.flatten();
    let indexed = index.map(|index| indexed(folder, index, faults)).transpose();
    match faults.take(indexed)?.flatten() {
        Some(layout) => Ok(layout),
        None => listed(folder),
    }
}

fn indexed(folder: &dyn Folder, index: Index, faults: &mut Faults) -> Result<Layout> {
    let path = folder.path(INDEX);
    let bad = |what: &str| Error::input(what).path(&path).hint("download or export the index again");
    let mut map = index.weight_map.ok_or_else(|| bad("the index has no weight_map"))?;
    let inside: Vec<bool> = map.files.iter().map(|file| is_inside(file)).collect();
    let mut met = Ok(());
    map.tensors.retain(|(tensor, file)| {
        let error = match file.map(|file| (inside[file], &map.files[file])) {
            None => bad("the index's entry is not a file name").tensor(&**tensor),
            Some((false, file)) => {
                let what = format!("the index points outside its folder, to '{file}'");
                let error = Error::input(what).path(&path).tensor(&**tensor);
                error.hint("do not use this checkpoint: ask who made it")
            }
            Some((true, _)) => return true,
        };
        if met.is_ok() {
            met = faults.meet(error);
        }
        false
    });
    met?;
    let mut held = vec![0usize; map.files.len()];
    map.tensors.iter().filter_map(|(_, file)| *file).for_each(|file| held[file] += 1);
    let named = map.files.iter().zip(&held).filter(|(_, held)| **held > 0);
    let mut files: Vec<_> = named.map(|(file, held)| (file.clone(), folder.path(file), *held)).collect();
    files.sort();
    let mut present = Vec::new();
    for (file, at, held) in files {
        // This includes a symlink into the cache whose blob is gone.
        if !folder.has(&file)? {
            let what = format!("a file with {held} of the index's {} tensors is missing", map.tensors.len());
            let error = Error::input(what).path(at);
            faults.meet(error.hint("the download is incomplete: fetch the checkpoint again"))?;
            continue;
        }
        present.push((file, at));
    }
    Ok(Layout { files: present, index: Some((path, map)) })
}

/// The files of a folder without an index: all of its `.safetensors`, or its GGUF model.
fn listed(folder: &dyn Folder) -> Result<Layout> {
    let names = folder.names()?;
    let ends = |end: &str| names.iter().find(|name| name.ends_with(end));
    let files = names.iter().filter(|name| name.ends_with(".safetensors") && *name != ADAPTER);
    let files: Vec<String> = files.cloned().collect();
    if !files.is_empty() {
        complete(folder, &files)?;
        return Ok(Layout::of(folder, files));
    }
    let place = folder.location();
    if names.iter().any(|name| name == ADAPTER) {
        return Err(Error::input("this is an adapter, not a checkpoint")
            .path(place)
            .hint("give a model that has it merged"));
    }
    if let Some(files) = gguf::listed(folder, &names)? {
        return Ok(Layout::of(folder, files));
    }
    for end in ["bin", "pt", "pth"] {
        if ends(&format!(".{end}")).is_some() {
            return Err(foreign(place, end));
        }
    }
    Err(Error::input("the folder holds no .safetensors and no .gguf")
        .path(place)
        .hint("give the folder of a model"))
}

/// Checks that no part of a set of files is missing, by their names: `model-00001-of-00003.safetensors`.
///
/// # Errors
/// The first missing part. Without an index, only the files' names tell.
fn complete(folder: &dyn Folder, files: &[String]) -> Result<()> {
    let sets: BTreeSet<(&str, &str)> = files.iter().filter_map(|name| part_of_set(name)).collect();
    for (stem, count) in sets {
        // No folder has a million files: such a number is a name and not a count.
        let Some(parts) = count.parse::<usize>().ok().filter(|parts| *parts < 1_000_000) else { continue };
        let name =
            |number: usize| format!("{stem}-{number:0width$}-of-{count}.safetensors", width = count.len());
        let missing = (1..=parts).map(name).find(|name| !files.iter().any(|file| file == name));
        if let Some(missing) = missing {
            let held = files.iter().filter(|file| part_of_set(file) == Some((stem, count))).count();
            let what = format!("a part of the checkpoint is missing: {held} of {parts} files are there");
            return Err(Error::input(what)
                .path(folder.path(&missing))
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
    let weights = layout.index.as_ref().map(|(_, weights)| weights);
    let mut tensors = Vec::with_capacity(headers.iter().map(|header| header.tensors.len()).sum());
    for (id, header) in headers.into_iter().enumerate() {
        let name = files[id].name();
        for (stored, bytes) in header.tensors {
            let owner = weights.and_then(|weights| weights.file(&stored.name));
            if owner.is_some_and(|owner| owner != name) {
                continue;
            }
            if tensors.len() == MOST_TENSORS {
                let what = format!("the checkpoint has more than {MOST_TENSORS} tensors");
                return Err(Error::input(what).path(files[id].location()));
            }
            tensors.push(Tensor { stored, file: FileId(id), bytes });
        }
    }
    let catalogue = Catalogue::of(tensors, |first, again| {
        let what = format!("two files hold the same tensor, this one and '{}'", files[first.file.0].name());
        let error = Error::input(what).path(files[again.file.0].location()).tensor(first.name());
        faults.meet(
            error.hint("the folder mixes two exports: keep one, or add the index that says which is meant"),
        )
    })?;
    if let Some((index, weights)) = &layout.index {
        // A file that was not read has been reported already.
        let read: HashSet<&str> = files.iter().map(|read| read.name()).collect();
        let absent =
            weights.entries().filter(|(name, file)| read.contains(file) && catalogue.get(name).is_none());
        for (name, file) in absent {
            let what = format!("the index puts a tensor in '{file}', which does not hold it");
            let error = Error::input(what).path(index).tensor(name);
            faults.meet(
                error.hint("index and files come from different exports: fetch the checkpoint again"),
            )?;
        }
    }
    Ok(catalogue)
}
