//! The files of `trephine calibrate`: see [`layout`](crate::calibration::layout).

use std::collections::{BTreeMap, HashMap};
use std::io::Seek;
use std::ops::Range;
use std::path::Path;

use safetensors::Dtype;

use super::{CalibrationFile, CalibrationKind, CalibrationSource, Inputs, OpenCalibration, SketchedInput};
use crate::calibration::layout::{COUNT, DIAGONAL, FORMAT, INDEX, Index, SKETCH, VERSION};
use crate::container::safetensors::layout;
use crate::container::safetensors::layout::Placed;
use crate::durable::inside::is_component;
use crate::shared::Name;
use crate::storage::regular_file;
use crate::{Error, Result};

/// A folder, by its index.
pub(super) fn open(root: &Path, name: String) -> Result<OpenCalibration> {
    let path = root.join(INDEX);
    let file = CalibrationFile::open(INDEX, &path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::input("the folder holds no finished calibration")
            .path(&path)
            .hint("`trephine calibrate` with the same options finishes one that was stopped"),
        _ => regular_file::cannot_read(&path, e),
    })?;
    let text = regular_file::read(&path).map_err(|e| regular_file::cannot_read(&path, e))?;
    let index: Index = serde_json::from_slice(&text)
        .map_err(|e| Error::input("the index of the calibration cannot be read").path(&path).because(e))?;
    check_format(&index.format, index.version).map_err(|e| e.path(&path))?;
    let mut shares: BTreeMap<&str, Shares> = BTreeMap::new();
    for (name, input) in &index.inputs {
        shares.entry(&input.file).or_default().insert(name.clone(), input.modules.clone());
    }
    let mut files = vec![file];
    let mut inputs = HashMap::new();
    for (name, shares) in shares {
        if !is_component(name) {
            return Err(
                Error::input(format!("the index names a file outside of its folder: {name}")).path(root)
            );
        }
        let file = CalibrationFile::open_existing(name, &root.join(name))?;
        read_file(&file, files.len(), &shares, &mut inputs)?;
        files.push(file);
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
    let file = CalibrationFile::open_existing(&name, path)?;
    let metadata = header(&file)?.1;
    let text = |key: &str| metadata.get(key).cloned();
    let number = |key: &str| text(key).and_then(|text| text.parse::<u64>().ok());
    let version = number("version").and_then(|version| u32::try_from(version).ok());
    check_format(&text("format").unwrap_or_default(), version.unwrap_or(0)).map_err(|e| e.path(path))?;
    let shares = text("inputs").and_then(|text| serde_json::from_str(&text).ok());
    let shares: Shares = shares
        .ok_or_else(|| Error::input("the file does not say which modules share an input").path(path))?;
    let mut inputs = HashMap::new();
    read_file(&file, 0, &shares, &mut inputs)?;
    let source = CalibrationSource {
        kind: kind(&inputs),
        model: text("model"),
        tokens: number("tokens"),
        text_digest: text("text_digest"),
        k: number("k"),
        name,
    };
    Ok(OpenCalibration { root: path.to_owned(), source, files: vec![file], inputs: Inputs::Sketched(inputs) })
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

/// The inputs of a file, each with the modules that it feeds.
type Shares = BTreeMap<String, Vec<String>>;

/// A file's tensors by name, and its metadata.
fn header(file: &CalibrationFile) -> Result<(HashMap<Name, Placed>, BTreeMap<String, String>)> {
    (&file.file).rewind().map_err(|e| Error::unexpected("cannot read").path(&file.path).because(e))?;
    let header = layout::parse(&file.file, file.size).map_err(|e| e.path(&file.path))?;
    let tensors = header.layout.into_iter().map(|placed| (placed.stored.name.clone(), placed)).collect();
    Ok((tensors, header.metadata.into_iter().collect()))
}

/// Adds the inputs of a file, each under the names of all modules that it feeds.
fn read_file(
    file: &CalibrationFile,
    at: usize,
    shares: &Shares,
    inputs: &mut HashMap<String, SketchedInput>,
) -> Result<()> {
    let (tensors, _) = header(file)?;
    for (name, modules) in shares {
        let input = input(file, at, name, &tensors).map_err(|e| e.tensor(name).path(&file.path))?;
        for module in std::iter::once(name).chain(modules) {
            inputs.insert(module.clone(), input.clone());
        }
    }
    Ok(())
}

fn input(
    file: &CalibrationFile,
    at: usize,
    name: &str,
    tensors: &HashMap<Name, Placed>,
) -> Result<SketchedInput> {
    let tensor = |end: &str| tensors.get(format!("{name}.{end}").as_str());
    let wrong =
        |end: &str| Error::input(format!("the calibration's tensor '{end}' has another type or shape"));
    let (Some(diagonal), Some(count)) = (tensor(DIAGONAL), tensor(COUNT)) else {
        return Err(missing(name, &file.path));
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
    let count = number(file, &count.range)?;
    Ok(SketchedInput {
        name: name.to_owned(),
        file: at,
        width,
        count,
        diagonal: diagonal.range.clone(),
        sketch,
    })
}

fn number(file: &CalibrationFile, bytes: &Range<u64>) -> Result<u64> {
    let mut buffer = [0; 8];
    file.read(bytes.start, &mut buffer)?;
    u64::try_from(i64::from_le_bytes(buffer)).map_err(|_| Error::input("a count is negative"))
}
