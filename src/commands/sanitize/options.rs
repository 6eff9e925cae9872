//! What to sanitize, for whom, and where to.

use crate::lora::factor_dtype::FactorType;
use crate::lora::rules::Loader;
use std::path::PathBuf;

/// What is to be sanitized, and for whom.
#[derive(Clone, Debug)]
pub struct Sanitizing {
    /// The adapter: a folder, or a name in the Hugging Face cache.
    pub adapter: String,
    /// The folder to write to.
    pub out: PathBuf,
    /// The programs that are to load it.
    pub consumers: Vec<Loader>,
    /// The rank that no module may be above.
    pub max_rank: Option<usize>,
    /// The base: its shapes, its kind, and what whole weights are held against. Needed only where the adapter does not tell.
    pub base: Option<String>,
    /// How the factors are stored; as they were, the widest of them, where nothing is said.
    pub dtype: Option<FactorType>,
    /// How much memory the whole process may use, in bytes.
    pub memory: u64,
    /// Whether an earlier result in `out` is thrown away.
    pub overwrite: bool,
    /// Whether a run that was begun at another SIMD level is continued.
    pub other_simd: bool,
}
