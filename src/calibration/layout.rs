//! The layout of a calibration's files: names, metadata, the index.
//!
//! For every distinct input of a model's linear layers there are three tensors, named by the first module that it feeds:
//!
//! | tensor | type | |
//! |---|---|---|
//! | `<input>.sketch` | BF16 `[rows, n]` | `S·X` with the expectation `(S·X)ᵀ·(S·X) = Xᵀ·X`, for the inputs `X` `[count, n]`; at most `k` rows. With `count <= k` the inputs themselves. May be absent |
//! | `<input>.diagonal` | F32 `[n]` | the exact diagonal of `Xᵀ·X` |
//! | `<input>.count` | I64 `[1]` | rows of `X` |
//!
//! Sums over tokens, not means. A folder has one file for each decoder layer (`calibration-00000.safetensors`), one for what lies outside
//! them, [`INDEX`], and a `B3SUMS`; every file describes itself by its metadata, so that one may be used alone.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// `format` in the metadata of every file, and in the index.
pub const FORMAT: &str = "trephine-calibration";

/// The version that is written, and the newest that is read.
pub const VERSION: u32 = 1;

/// The index of a folder.
pub const INDEX: &str = "calibration.json";

/// What the sketch's name adds to the input's.
pub const SKETCH: &str = "sketch";

/// What the diagonal's name adds.
pub const DIAGONAL: &str = "diagonal";

/// What the count's name adds.
pub const COUNT: &str = "count";

/// The file of a decoder layer, or of what lies outside all layers.
pub fn file_name(layer: Option<usize>) -> String {
    layer.map_or("calibration-other.safetensors".to_owned(), |layer| {
        format!("calibration-{layer:05}.safetensors")
    })
}

/// The index: `calibration.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Index {
    /// [`FORMAT`].
    pub format: String,
    /// At most [`VERSION`].
    pub version: u32,
    /// The model, as given; of a path the last part.
    pub model: String,
    /// The blake3, in hex, of all token ids as little-endian u32, each sequence closed by `u32::MAX`.
    pub text_digest: String,
    /// Tokens in all.
    pub tokens: u64,
    /// The largest number of a sketch's rows.
    pub k: u64,
    /// The seed of the sketches.
    pub seed: u64,
    /// `gaussian`, `samples` where every input is kept whole, `none` for diagonals alone.
    pub sketch: String,
    /// Mean next-token loss of the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// The inputs, by name.
    pub inputs: BTreeMap<String, IndexInput>,
}

/// One input, in the index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexInput {
    /// Its file, in the folder.
    pub file: String,
    /// `n`.
    pub width: usize,
    /// Rows of its sketch; 0 without one.
    pub rows: usize,
    /// Rows of `X`.
    pub count: u64,
    /// The modules that it feeds, itself first.
    pub modules: Vec<String>,
}
