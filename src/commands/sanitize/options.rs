//! The options of sanitizing: the adapter, the programs it is for, and the output.

use crate::lora::factor_dtype::FactorType;
use crate::lora::rules::Loader;
use std::path::PathBuf;

/// One run of sanitizing: its inputs, its output, and its options.
#[derive(Clone, Debug)]
pub struct Sanitizing {
    /// The adapter: a folder, or a name in the Hugging Face cache.
    pub adapter: String,
    /// The folder to write to.
    pub out: PathBuf,
    /// The programs that should load it.
    pub consumers: Vec<Loader>,
    /// The largest rank that a module may have.
    pub max_rank: Option<usize>,
    /// The base: its shapes, its model type, and the weights that whole weights are compared with. Needed only where
    /// the adapter does not give these.
    pub base: Option<String>,
    /// How the factors are stored; `None` keeps their common dtype, or takes f32 if they differ.
    pub dtype: Option<FactorType>,
    /// How much memory the whole process may use, in bytes.
    pub memory: u64,
    /// Whether an earlier result in `out` is discarded.
    pub overwrite: bool,
    /// Whether a run that was started at another SIMD level is continued.
    pub other_simd: bool,
}
