//! llama.cpp's importance matrix as GGUF: for each tensor `in_sum2`, sums of squares of its inputs, and `counts`, over
//! how many tokens; of a stack of experts, one row and one count each.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use serde_json::Value;

use super::names::ggml_name;
use super::{CalibrationFile, CalibrationKind, CalibrationSource, Inputs, OpenCalibration};
use crate::container::gguf::{self, GgufTensor};
use crate::quant::format::gguf::GgmlType;
use crate::storage::{MappedFile, Storage};
use crate::{Error, Result};

/// What a tensor's name adds to the weight's for its sums of squares.
const SUMS: &str = ".in_sum2";

/// The same for its counts.
const COUNTS: &str = ".counts";

/// An importance matrix: which tensors it knows.
#[derive(Debug, Default)]
pub(super) struct Imatrix {
    pub entries: HashMap<String, Importance>,
}

/// One tensor's sums.
#[derive(Clone, Debug)]
pub(super) struct Importance {
    /// Where they begin in the file.
    pub start: u64,
    /// How many there are, those of all experts.
    pub values: usize,
    /// Over how many inputs: one number for each expert, or one for all.
    pub counts: Vec<f64>,
    /// Which expert is meant.
    pub expert: Option<usize>,
}

impl Imatrix {
    /// What it has of a module.
    pub fn find(&self, module: &str) -> Option<Importance> {
        let (name, expert) = ggml_name(module)?;
        Some(Importance { expert, ..self.entries.get(&name)?.clone() })
    }
}

impl Importance {
    /// How many experts of `width` inputs the sums are of; `None` where they are of another width.
    pub fn width(&self, width: usize) -> Option<usize> {
        let experts = self.values.checked_div(width).filter(|experts| experts * width == self.values)?;
        let fits = self.expert.map_or(experts == 1, |expert| expert < experts);
        (fits && [1, experts].contains(&self.counts.len())).then_some(experts)
    }

    /// The bytes of the sums of the expert that is meant, or of the one tensor, and over how many inputs they are.
    pub fn part(&self, width: usize) -> Option<(Range<u64>, f64)> {
        self.width(width)?;
        let expert = self.expert.unwrap_or(0);
        let start = self.start + (4 * expert * width) as u64;
        let count = self.counts.get(expert).or(self.counts.first())?;
        Some((start..start + 4 * width as u64, *count))
    }
}

/// What the records say of an importance matrix.
pub(super) fn source(name: String) -> CalibrationSource {
    let kind = CalibrationKind::Diagonal;
    CalibrationSource { name, kind, model: None, tokens: None, text_digest: None, k: None }
}

/// Opens an importance matrix in a GGUF file.
pub(super) fn open(path: &Path, name: String) -> Result<OpenCalibration> {
    let file = MappedFile::open(&name, path)?;
    let header = gguf::read(&file)?;
    if header.metadata.get("general.type").and_then(Value::as_str) != Some("imatrix") {
        return Err(Error::input("the GGUF file is not an importance matrix").path(path).hint(
            "llama-imatrix writes them; a model is calibrated by `trephine calibrate --model FILE --text ...`",
        ));
    }
    let mut entries = HashMap::new();
    let counts: HashMap<&str, &GgufTensor> =
        header.tensors.iter().filter_map(|t| Some((t.name.strip_suffix(COUNTS)?, t))).collect();
    for tensor in &header.tensors {
        let Some(weight) = tensor.name.strip_suffix(SUMS) else { continue };
        let counts = counts.get(weight).ok_or_else(|| {
            Error::input("the importance matrix has sums without counts").tensor(weight).path(path)
        })?;
        if tensor.kind != GgmlType::F32 || counts.kind != GgmlType::F32 {
            return Err(Error::input("the importance matrix holds other numbers than F32")
                .tensor(weight)
                .path(path));
        }
        let window = file.read_range(counts.bytes.clone())?;
        let counts = super::floats(&window).into_iter().map(f64::from).collect();
        let values = tensor.shape.iter().product();
        let entry = Importance { start: tensor.bytes.start, values, counts, expert: None };
        entries.insert(weight.to_owned(), entry);
    }
    opened(path, name, entries)
}

/// The opened file.
pub(super) fn opened(
    path: &Path,
    name: String,
    entries: HashMap<String, Importance>,
) -> Result<OpenCalibration> {
    let files = vec![CalibrationFile::open_existing(&name, path)?];
    let inputs = Inputs::Importance(Imatrix { entries });
    Ok(OpenCalibration { root: path.to_owned(), source: source(name), files, inputs })
}
