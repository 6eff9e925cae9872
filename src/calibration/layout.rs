//! The layout of calibration files: names, metadata, the index.
//!
//! Every distinct input of a model's linear layers has three tensors, named after the first module that it feeds:
//!
//! | tensor | type | content |
//! |---|---|---|
//! | `<input>.sketch` | BF16 `[rows, n]` | `S·X`, at most `k` rows; may be absent |
//! | `<input>.diagonal` | F32 `[n]` | the exact diagonal of `Xᵀ·X` |
//! | `<input>.count` | I64 `[1]` | the number of rows of `X` |
//!
//! `X` `[count, n]` are the inputs. The expectation of `(S·X)ᵀ·(S·X)` is `Xᵀ·X`; with `count <= k` the sketch is the
//! inputs themselves. All are sums over tokens, not means. A folder has one file per decoder layer
//! (`calibration-00000.safetensors`), one for everything outside the layers, [`INDEX`], and a `B3SUMS`; every file
//! describes itself in its metadata, so it can be used alone.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The `format` in the metadata of every file, and in the index.
pub const FORMAT: &str = "trephine-calibration";

/// The version that is written, and the newest that is read.
pub const VERSION: u32 = 1;

/// The index of a folder.
pub const INDEX: &str = "calibration.json";

/// The suffix of a sketch's name.
pub const SKETCH: &str = "sketch";

/// The suffix of a diagonal's name.
pub const DIAGONAL: &str = "diagonal";

/// The suffix of a count's name.
pub const COUNT: &str = "count";

/// The file of a decoder layer, or of everything outside the layers.
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
    /// The model, as given; for a path, its last component.
    pub model: String,
    /// The blake3, in hex, of all token ids as little-endian u32, with `u32::MAX` after each sequence.
    pub text_digest: String,
    /// The number of tokens in total.
    pub tokens: u64,
    /// The most rows of a sketch.
    pub k: u64,
    /// The seed of the sketches.
    pub seed: u64,
    /// `gaussian`, `samples` if every input is kept whole, `none` for diagonals alone.
    pub sketch: String,
    /// The mean next-token loss on the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// The inputs, by name.
    pub inputs: BTreeMap<String, IndexInput>,
}

/// One input, in the index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexInput {
    /// Its file in the folder.
    pub file: String,
    /// `n`.
    pub width: usize,
    /// The number of rows of its sketch; 0 without one.
    pub rows: usize,
    /// The number of rows of `X`.
    pub count: u64,
    /// The modules that it feeds, starting with the one it is named after.
    pub modules: Vec<String>,
}
