//! The options of a calibration.

use std::path::PathBuf;

use crate::corpus::Corpus;

/// What to calibrate, on which text, and how.
#[derive(Clone, Debug)]
pub struct Calibration {
    /// Path or hub name of the model.
    pub model: String,
    /// The text.
    pub corpus: Corpus,
    /// The output folder.
    pub out: PathBuf,
    /// Maximum rows of a sketch.
    pub k: usize,
    /// Seed of the sketches.
    pub seed: u64,
    /// Number of compute threads.
    pub threads: usize,
    /// Limit on the peak resident memory of the process, in bytes.
    pub memory: u64,
    /// Whether to discard an earlier run in the output folder.
    pub overwrite: bool,
}
