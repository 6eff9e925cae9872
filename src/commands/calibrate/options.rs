//! What a calibration is asked for.

use std::path::PathBuf;

use crate::corpus::Corpus;

/// What is to be calibrated, on which text, and how.
#[derive(Clone, Debug)]
pub struct Calibration {
    /// Path or hub name of the model.
    pub model: String,
    /// The text.
    pub corpus: Corpus,
    /// The output folder.
    pub out: PathBuf,
    /// Rows of a sketch, at most.
    pub k: usize,
    /// Seed of the sketches.
    pub seed: u64,
    /// Threads that compute.
    pub threads: usize,
    /// Peak resident memory of the process in bytes.
    pub memory: u64,
    /// Throw away what the output folder holds of an earlier run.
    pub overwrite: bool,
}
