//! What an output format is: finished factors in, the files of one loader out.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;

use crate::Result;
use crate::lora::tree::BaseModules;
use crate::lora::write::piece::{Piece, ShardNames};

/// A format of adapters, [`Peft`](super::Peft) for example. An implementation passes the conformance suite in
/// `tests/formats/seams/writer.rs`.
pub trait AdapterWriter {
    /// The names of the files that it writes, in order.
    fn files(&self) -> &'static [&'static str];

    /// Writes `adapter` into the folder `out`, each file durably and under its own name at once, without holding the
    /// factors of more than a few modules.
    ///
    /// # Errors
    /// A shard that is not what the journal said, or a failing disk.
    fn write(&self, out: &Path, adapter: &Adapter<'_>) -> Result<WrittenAdapter>;
}

/// An adapter that is ready to be written.
pub struct Adapter<'a> {
    /// The base as the adapter's config names it.
    pub base: &'a str,
    /// The base's modules, as the program that loads the adapter names them.
    pub modules: &'a BaseModules,
    /// PEFT's task type, where the base is of one.
    pub task_type: Option<&'a str>,
    /// The rank that every module is padded to.
    pub rank: usize,
    /// How the factors are stored.
    pub dtype: Dtype,
    /// The modules, in any order.
    pub pieces: &'a [Piece],
    /// The names of the factors in a shard.
    pub names: ShardNames<'a>,
}

/// What was written.
#[derive(Debug)]
pub struct WrittenAdapter {
    /// The blake3 of every file, by name.
    pub files: BTreeMap<String, blake3::Hash>,
    /// For each module the blake3 of its `lora_A` followed by its `lora_B`, as stored.
    pub modules: BTreeMap<String, blake3::Hash>,
}
