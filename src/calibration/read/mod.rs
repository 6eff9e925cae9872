//! Calibrations, read: what `trephine calibrate` or `scripts/calibrate.py` wrote, and llama.cpp's importance matrices.

mod folder;
mod imatrix;
mod imatrix_dat;
mod names;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use half::bf16;
use safetensors::Dtype;
use serde::{Deserialize, Serialize};

use self::imatrix::Imatrix;
use crate::checkpoint::identity::{FileIdentity, Identity};
use crate::durable::digest::digest;
use crate::factorize::weighted::Root;
use crate::storage::positioned::read_exact_at;
use crate::storage::regular_file;
use crate::{Error, Result};

/// What a calibration knows of a layer's inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CalibrationKind {
    /// Their second moments, by a sketch.
    SecondMoments,
    /// The mean square of each, as an importance matrix has it. The weaker one: on an FP8 base it does not reach plain
    /// Method A.
    Diagonal,
}

/// A calibration, in few words, for the records of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CalibrationSource {
    /// As given on the command line; of a path the last part.
    pub name: String,
    /// What it knows.
    pub kind: CalibrationKind,
    /// The model whose inputs they are, where it says.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub model: Option<String>,
    /// Tokens of its text, where it says.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tokens: Option<u64>,
    /// Digest of the text's tokens, where it says.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub text_digest: Option<String>,
    /// The most rows of a sketch, where it says.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub k: Option<u64>,
}

/// A calibration, opened: headers alone are in memory.
#[derive(Debug)]
pub struct OpenCalibration {
    root: PathBuf,
    source: CalibrationSource,
    /// Every file of it.
    files: Vec<CalibrationFile>,
    inputs: Inputs,
}

/// One file, which is to stay as it was when it was opened.
#[derive(Debug)]
struct CalibrationFile {
    name: String,
    path: PathBuf,
    file: File,
    size: u64,
    modified: Option<SystemTime>,
}

impl CalibrationFile {
    /// Opens the file `path`, called `name` in identities.
    ///
    /// # Errors
    /// See [`regular_file::open`].
    fn open(name: &str, path: &Path) -> io::Result<CalibrationFile> {
        let file = regular_file::open(path)?;
        let data = file.metadata()?;
        let (name, path) = (name.to_owned(), path.to_owned());
        Ok(CalibrationFile { name, path, file, size: data.len(), modified: data.modified().ok() })
    }

    /// The same for a file that has to be there.
    fn open_existing(name: &str, path: &Path) -> Result<CalibrationFile> {
        CalibrationFile::open(name, path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::input("a file of the calibration is missing").path(path),
            _ => regular_file::cannot_read(path, e),
        })
    }

    /// Looks whether it is as it was when it was opened.
    fn check_unchanged(&self) -> Result<()> {
        let now = self.file.metadata();
        if now.is_ok_and(|now| now.len() == self.size && now.modified().ok() == self.modified) {
            return Ok(());
        }
        Err(Error::input("the calibration was written to after it had been opened")
            .path(&self.path)
            .hint("wait until it is whole, then run the command again"))
    }

    /// Fills `buffer` from `start` on.
    fn read(&self, start: u64, buffer: &mut [u8]) -> Result<()> {
        let read = read_exact_at(&self.file, buffer, start);
        read.map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => Error::input("the calibration was cut short").path(&self.path),
            _ => Error::unexpected("cannot read the calibration").path(&self.path).because(e),
        })?;
        self.check_unchanged()
    }
}

#[derive(Debug)]
enum Inputs {
    /// By the names of the modules that they feed.
    Sketched(HashMap<String, SketchedInput>),
    /// By llama.cpp's names of tensors.
    Importance(Imatrix),
}

/// Where an input's moments lie.
#[derive(Clone, Debug, PartialEq)]
struct SketchedInput {
    name: String,
    file: usize,
    width: usize,
    count: u64,
    diagonal: Range<u64>,
    /// Its rows, their type and their bytes, where there is a sketch.
    sketch: Option<(usize, Dtype, Range<u64>)>,
}

/// An input of a module that a calibration knows.
#[derive(Clone, Debug)]
pub struct KnownInput {
    /// Rows of its sketch; 0 for a diagonal.
    pub rows: usize,
    at: KnownAt,
}

#[derive(Clone, Debug)]
enum KnownAt {
    Sketched(SketchedInput),
    /// Bytes of the sums of squares, and of how many inputs.
    Importance(Range<u64>, f64),
}

impl OpenCalibration {
    /// Opens the calibration `spec`: a folder with a `calibration.json`, one `.safetensors` file of such a folder, or
    /// an importance matrix of llama.cpp (`.gguf`, or the older `.dat`).
    ///
    /// # Errors
    /// [`Kind::Input`](crate::Kind::Input) for what is none of these, or is damaged.
    pub fn open(spec: &str) -> Result<OpenCalibration> {
        let path = Path::new(spec);
        let end = path.extension().map(|end| end.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
        let name = last_part(path).unwrap_or_else(|| spec.to_owned());
        if path.is_dir() {
            return folder::open(path, name);
        }
        if !path.exists() {
            return Err(Error::input("there is no such calibration").path(path).hint(
                "`trephine calibrate --model CHECKPOINT --text FILE --out DIR` makes one; so does scripts/calibrate.py",
            ));
        }
        match end.as_str() {
            "safetensors" => folder::open_file(path, name),
            "gguf" => imatrix::open(path, name),
            "dat" | "imatrix" => imatrix_dat::open(path, name),
            _ => Err(Error::input("this is not a calibration").path(path).hint(
                "give the folder of `trephine calibrate`, a .safetensors file of one, or an imatrix (.gguf or .dat)",
            )),
        }
    }

    /// What the records of a run say of it.
    pub fn source(&self) -> &CalibrationSource {
        &self.source
    }

    /// Whether it knows diagonals alone.
    pub fn is_diagonal(&self) -> bool {
        self.source.kind == CalibrationKind::Diagonal
    }

    /// Its files, by all of their content. Reads them whole.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn identity(&self) -> Result<Identity> {
        let file = |file: &CalibrationFile| {
            let reader = regular_file::open(&file.path).and_then(|open| digest(&open, &|_| ()));
            let written = reader.map_err(|e| regular_file::cannot_read(&file.path, e))?;
            file.check_unchanged()?;
            let header = written.blake3.to_hex().to_string();
            Ok(FileIdentity { name: file.name.clone(), size: written.bytes, header, modified: None })
        };
        Ok(Identity { files: self.files.iter().map(file).collect::<Result<_>>()? })
    }

    /// Looks whether its files are as they were when they were opened.
    ///
    /// # Errors
    /// [`Kind::Input`](crate::Kind::Input) for a file that was written to since.
    pub fn check_unchanged(&self) -> Result<()> {
        self.files.iter().try_for_each(CalibrationFile::check_unchanged)
    }

    /// The input of the module that has one of these names and `width` inputs: `None` where the calibration does not
    /// know it, or no token of the text reached it.
    ///
    /// # Errors
    /// [`Kind::Input`](crate::Kind::Input) where it knows the module by another width: it is of another model.
    pub fn input(&self, names: &[&str], width: usize) -> Result<Option<KnownInput>> {
        let other = |name: &str, found: usize| {
            Error::input(format!("the calibration has {found} inputs for this module, which has {width}"))
                .tensor(name)
                .path(&self.root)
                .hint("give a calibration of the tuned model, or of its base")
        };
        match &self.inputs {
            Inputs::Sketched(inputs) => {
                let Some(input) = names.iter().find_map(|name| inputs.get(*name)) else { return Ok(None) };
                if input.width != width {
                    return Err(other(names[0], input.width));
                }
                let rows = input.sketch.as_ref().map_or(0, |(rows, ..)| *rows);
                let known = || KnownInput { rows, at: KnownAt::Sketched(input.clone()) };
                Ok((input.count > 0).then(known))
            }
            Inputs::Importance(matrix) => {
                let Some(entry) = names.iter().find_map(|name| matrix.find(name)) else { return Ok(None) };
                if entry.width(width).is_none() {
                    return Err(other(names[0], entry.values));
                }
                let found = entry.part(width).filter(|(_, count)| *count > 0.0);
                Ok(found.map(|(bytes, count)| KnownInput { rows: 0, at: KnownAt::Importance(bytes, count) }))
            }
        }
    }

    /// Reads the moments of an input.
    ///
    /// # Errors
    /// What reading met; sums that are negative or not finite.
    pub fn load(&self, input: &KnownInput) -> Result<Root> {
        match &input.at {
            KnownAt::Importance(bytes, count) => {
                let diagonal = floats(&self.read(0, bytes)?);
                Root::of_diagonal(&diagonal, *count).map_err(|e| e.path(&self.root))
            }
            KnownAt::Sketched(at) => {
                let diagonal = floats(&self.read(at.file, &at.diagonal)?);
                let root = match &at.sketch {
                    None => Root::of_diagonal(&diagonal, at.count as f64),
                    Some((_, dtype, bytes)) => {
                        let sketch = self.sketch(at.file, *dtype, bytes)?;
                        Root::of_sketch(sketch, &diagonal, at.count as f64)
                    }
                };
                root.map_err(|e| e.tensor(&at.name).path(&self.files[at.file].path))
            }
        }
    }

    fn sketch(&self, file: usize, dtype: Dtype, bytes: &Range<u64>) -> Result<Vec<bf16>> {
        if dtype == Dtype::BF16 {
            let mut values = vec![bf16::ZERO; length(bytes) / 2];
            self.files[file].read(bytes.start, bytemuck::cast_slice_mut(&mut values))?;
            if cfg!(target_endian = "big") {
                values.iter_mut().for_each(|value| *value = bf16::from_bits(value.to_bits().swap_bytes()));
            }
            return Ok(values);
        }
        Ok(floats(&self.read(file, bytes)?).into_iter().map(bf16::from_f32).collect())
    }

    fn read(&self, file: usize, bytes: &Range<u64>) -> Result<Vec<u8>> {
        let mut buffer = vec![0; length(bytes)];
        self.files[file].read(bytes.start, &mut buffer)?;
        Ok(buffer)
    }
}

fn length(bytes: &Range<u64>) -> usize {
    (bytes.end - bytes.start) as usize
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// `.` and `..` have no last part, but what they lead to has.
fn last_part(path: &Path) -> Option<String> {
    let name = path.file_name().map(std::ffi::OsStr::to_owned);
    let name = name.or_else(|| path.canonicalize().ok()?.file_name().map(std::ffi::OsStr::to_owned))?;
    Some(name.to_string_lossy().into_owned())
}
