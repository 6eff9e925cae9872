//! The files of `trephine calibrate`: see [`layout`](crate::calibration::layout).

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::ops::Range;
use std::path::Path;

use safetensors::Dtype;

use super::{CalibrationKind, CalibrationSource, Inputs, OpenCalibration, SketchedInput};
use crate::calibration::layout::{COUNT, DIAGONAL, FORMAT, INDEX, Index, SKETCH, VERSION};
use crate::container::safetensors::layout;
use crate::container::safetensors::layout::Placed;
use crate::shared::Name;
use crate::storage::positioned::read_exact_at;
use crate::{Error, Result};

/// A folder, by its index.
pub(super) fn open(root: &Path, name: String) -> Result<OpenCalibration> {
    let path = root.join(INDEX);
    let text = fs::read_to_string(&path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::input("the folder holds no finished calibration")
            .path(&path)
            .hint("`trephine calibrate` with the same options finishes one that was stopped"),
        _ => Error::unexpected("cannot read").path(&path).because(e),
    })?;
    let index: Index = serde_json::from_str(&text)
        .map_err(|e| Error::input("the index of the calibration cannot be read").path(&path).because(e))?;
    check_format(&index.format, index.version).map_err(|e| e.path(&path))?;
    let mut names: Vec<&str> = index.inputs.values().map(|input| input.file.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let mut files = vec![(INDEX.to_owned(), path)];
    let mut inputs = HashMap::new();
    for file in names {
        if Path::new(file).components().count() != 1 {
            return Err(
                Error::input(format!("the index names a file outside of its folder: {file}")).path(root)
            );
        }
        let path = root.join(file);
        let of_file = index.inputs.iter().filter(|(_, input)| input.file == file);
        let shares = of_file.map(|(name, input)| (name.clone(), input.modules.clone())).collect();
        read_file(&path, files.len(), &shares, &mut inputs)?;
        files.push((file.to_owned(), path));
    }
    for (name, input) in &index.inputs {
        let found = &inputs.get(name).ok_or_else(|| missing(name, root))?;
        if found.count != input.count || found.width != input.width {
            return Err(Error::input("the calibration's index and its file differ").tensor(name).path(root));
        }
    }
    let source = CalibrationSource {
        name,
        kind: kind(&inputs),
        model: Some(index.model),
        tokens: Some(index.tokens),
        text_digest: Some(index.text_digest),
        k: Some(index.k),
    };
    Ok(OpenCalibration { root: root.to_owned(), source, files, inputs: Inputs::Sketched(inputs) })
}

/// One file alone, by its metadata.
pub(super) fn open_file(path: &Path, name: String) -> Result<OpenCalibration> {
    let metadata = header(path)?.1;
    let text = |key: &str| metadata.get(key).cloned();
    let number = |key: &str| text(key).and_then(|text| text.parse::<u64>().ok());
    let version = number("version").and_then(|version| u32::try_from(version).ok());
    check_format(&text("format").unwrap_or_default(), version.unwrap_or(0)).map_err(|e| e.path(path))?;
    let shares = text("inputs").and_then(|text| serde_json::from_str(&text).ok());
    let shares: BTreeMap<String, Vec<String>> = shares
        .ok_or_else(|| Error::input("the file does not say which modules share an input").path(path))?;
    let mut inputs = HashMap::new();
    read_file(path, 0, &shares, &mut inputs)?;
    let source = CalibrationSource {
        kind: kind(&inputs),
        model: text("model"),
        tokens: number("tokens"),
        text_digest: text("text_digest"),
        k: number("k"),
        name: name.clone(),
    };
    let files = vec![(name, path.to_owned())];
    Ok(OpenCalibration { root: path.to_owned(), source, files, inputs: Inputs::Sketched(inputs) })
}

fn kind(inputs: &HashMap<String, SketchedInput>) -> CalibrationKind {
    let sketched = inputs.values().any(|input| input.sketch.is_some());
    if sketched || inputs.is_empty() { CalibrationKind::SecondMoments } else { CalibrationKind::Diagonal }
}

fn check_format(format: &str, version: u32) -> Result<()> {
    if format != FORMAT {
        return Err(Error::input("this is not a calibration")
            .hint("`trephine calibrate --model CHECKPOINT --text FILE --out DIR` makes one"));
    }
    if version > VERSION {
        return Err(Error::input(format!("version {version} of a calibration's layout is not known"))
            .hint("a newer trephine reads it"));
    }
    Ok(())
}

fn missing(name: &str, path: &Path) -> Error {
    Error::input("the calibration lacks an input that its index names").tensor(name).path(path)
}

/// A file's tensors by name, and its metadata.
fn header(path: &Path) -> Result<(HashMap<Name, Placed>, BTreeMap<String, String>)> {
    let failed = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => Error::input("a file of the calibration is missing").path(path),
        _ => Error::unexpected("cannot read").path(path).because(e),
    };
    let file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    let header = layout::parse(&file, length).map_err(|e| e.path(path))?;
    let tensors = header.layout.into_iter().map(|placed| (placed.stored.name.clone(), placed)).collect();
    Ok((tensors, header.metadata.into_iter().collect()))
}

/// Adds the inputs of a file, each under the names of all modules that it feeds.
fn read_file(
    path: &Path,
    at: usize,
    shares: &BTreeMap<String, Vec<String>>,
    inputs: &mut HashMap<String, SketchedInput>,
) -> Result<()> {
    let (tensors, _) = header(path)?;
    for (name, modules) in shares {
        let input = input(path, at, name, &tensors).map_err(|e| e.tensor(name).path(path))?;
        for module in std::iter::once(name).chain(modules) {
            inputs.insert(module.clone(), input.clone());
        }
    }
    Ok(())
}

fn input(path: &Path, file: usize, name: &str, tensors: &HashMap<Name, Placed>) -> Result<SketchedInput> {
    let tensor = |end: &str| tensors.get(format!("{name}.{end}").as_str());
    let wrong =
        |end: &str| Error::input(format!("the calibration's tensor '{end}' has another type or shape"));
    let (Some(diagonal), Some(count)) = (tensor(DIAGONAL), tensor(COUNT)) else {
        return Err(missing(name, path));
    };
    let &[width] = diagonal.stored.shape.as_slice() else { return Err(wrong(DIAGONAL)) };
    if diagonal.stored.dtype != Dtype::F32 {
        return Err(wrong(DIAGONAL));
    }
    let sketch = match tensor(SKETCH) {
        None => None,
        Some(placed) => match (placed.stored.shape.as_slice(), placed.stored.dtype) {
            (&[0, _], _) => None,
            (&[rows, columns], dtype @ (Dtype::BF16 | Dtype::F32)) if columns == width => {
                Some((rows, dtype, placed.range.clone()))
            }
            _ => return Err(wrong(SKETCH)),
        },
    };
    if count.stored.dtype != Dtype::I64 || count.len() != 8 {
        return Err(wrong(COUNT));
    }
    let count = number(path, &count.range)?;
    Ok(SketchedInput { name: name.to_owned(), file, width, count, diagonal: diagonal.range.clone(), sketch })
}

fn number(path: &Path, bytes: &Range<u64>) -> Result<u64> {
    let mut buffer = [0; 8];
    let read = File::open(path).and_then(|file| read_exact_at(&file, &mut buffer, bytes.start));
    read.map_err(|e| Error::unexpected("cannot read").path(path).because(e))?;
    u64::try_from(i64::from_le_bytes(buffer)).map_err(|_| Error::input("a count is negative"))
}
