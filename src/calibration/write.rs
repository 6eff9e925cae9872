//! Writes a calibration file: the inputs of one layer, each as soon as it is complete.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;

use super::accumulate::Accumulator;
use crate::container::safetensors::SafetensorsWriter;
use crate::durable::Written;
use crate::quant::TensorInfo;
use crate::{Error, Result};

/// Rows of a sketch that are transposed from feature-major to row-major at a time.
const ROWS: usize = 64;

/// An input that a file will hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    /// The name, which is that of the first module that it feeds.
    pub name: String,
    /// The number of values in a row.
    pub width: usize,
    /// The number of rows of the sketch.
    pub rows: usize,
    /// The number of rows that were seen.
    pub count: usize,
}

/// A file being written: counts first, then sketches in the order of the inputs, then diagonals.
#[derive(Debug)]
pub struct FileWriter {
    writer: SafetensorsWriter,
    inputs: Vec<Announced>,
    diagonals: Vec<Vec<f32>>,
}

impl FileWriter {
    /// Begins a file for these inputs with this metadata.
    ///
    /// # Errors
    /// The folder cannot be written, or the disk is full.
    pub fn create(
        path: &Path,
        inputs: Vec<Announced>,
        metadata: &BTreeMap<String, String>,
    ) -> Result<FileWriter> {
        let tensor = |input: &Announced, end: &str, dtype, shape: Vec<usize>| TensorInfo {
            name: format!("{}.{end}", input.name).into(),
            dtype,
            shape: shape.into(),
        };
        let counts = inputs.iter().map(|input| tensor(input, "count", Dtype::I64, vec![1]));
        let sketches = inputs
            .iter()
            .map(|input| tensor(input, "sketch", sketch_type(input), vec![input.rows, input.width]));
        let diagonals = inputs.iter().map(|input| tensor(input, "diagonal", Dtype::F32, vec![input.width]));
        let tensors = counts.chain(sketches).chain(diagonals).collect();
        let mut writer = SafetensorsWriter::in_order_with(path, tensors, metadata)?;
        for input in &inputs {
            writer.put(&format!("{}.count", input.name), &(input.count as i64).to_le_bytes())?;
        }
        Ok(FileWriter { writer, inputs, diagonals: Vec::new() })
    }

    /// Writes the next input.
    ///
    /// # Errors
    /// Rows are missing or not finite, or the disk is full.
    pub fn put(&mut self, input_moments: &Accumulator) -> Result<()> {
        let Some(input) = self.inputs.get(self.diagonals.len()) else {
            return Err(Error::unexpected("more inputs than were announced"));
        };
        input_moments.check(&input.name)?;
        if (input_moments.width(), input_moments.rows(), input_moments.count())
            != (input.width, input.rows, input.count)
        {
            return Err(Error::unexpected("an input has another shape than announced").tensor(&input.name));
        }
        let name = format!("{}.sketch", input.name);
        for start in (0..input_moments.rows()).step_by(ROWS) {
            let rows = input_moments.sketch(start..(start + ROWS).min(input_moments.rows()));
            if sketch_type(input) == Dtype::BF16 {
                self.writer.put(&name, bytemuck::cast_slice(&rows))?;
            } else {
                let wide: Vec<f32> = rows.iter().map(|value| value.to_f32()).collect();
                self.writer.put(&name, bytemuck::cast_slice(&wide))?;
            }
        }
        self.diagonals.push(input_moments.diagonal());
        Ok(())
    }

    /// Finishes the file.
    ///
    /// # Errors
    /// An input was not written, or the disk is full.
    pub fn finish(mut self) -> Result<Written> {
        for (input, diagonal) in self.inputs.iter().zip(&self.diagonals) {
            self.writer.put(&format!("{}.diagonal", input.name), bytemuck::cast_slice(diagonal))?;
        }
        self.writer.finish()
    }
}

/// BF16, or F32 if the number of columns is odd, where BF16 would leave the following data unaligned.
fn sketch_type(input: &Announced) -> Dtype {
    if input.width.is_multiple_of(2) { Dtype::BF16 } else { Dtype::F32 }
}
