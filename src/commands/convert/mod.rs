//! Writes whole checkpoints, streaming: a quantized one as a dense one (the *bridge*), or one with an adapter merged.
//!
//! ```text
//! threads:  map ─ dequantize ─ (+ scale · B·A) ─ round ──▶ in file order ──▶ one writer ─ blake3 ─ sync ─ rename
//! ```
//! The output is written file by file, each once and from front to back, and each is durable before the journal records
//! it: a run that is killed resumes with the next file and ends with the same bytes. Configs, the tokenizer and other
//! files come after the weights, then the index, and the checksums last: only they make the folder complete.
//!
//! Dense tensors are copied bit for bit in their own dtype; the option `dtype` applies to the weights that are
//! computed. Converters that work on files do the same, compressed-tensors' among them. (transformers casts the whole
//! model to one dtype when it loads it.)

pub(crate) mod accounts;
pub(crate) mod dequantize;
pub(crate) mod job;
pub(crate) mod lora_update;
pub(crate) mod matching;
pub(crate) mod merge;
pub(crate) mod output_plan;
pub(crate) mod record;
pub(crate) mod sharding;
pub(crate) mod sidecar_files;
pub(crate) mod write_shard;
pub use self::dequantize::{Dequantization, dequantize, dequantize_part};
pub use self::merge::{Merge, merge, merge_part};
pub use self::record::{CONVERSION, Conversion, ConversionOutcome};
pub use self::sharding::DEFAULT_SHARD_SIZE;

use crate::Result;
use crate::run::parts::assemble::{Assembled, Assembly, Recorded};
use crate::run::progress::Progress;

/// Assembles the checkpoint of a run whose parts are all finished.
///
/// # Errors
/// Parts of different runs; a file whose bytes differ between two parts; changed inputs; a damaged file; a failing
/// disk.
pub fn assemble(
    assembly: &Assembly,
    recorded: &Recorded,
    progress: &dyn Progress,
) -> Result<Assembled<ConversionOutcome>> {
    match recorded {
        Recorded::Finished(_) => job::assembled(assembly).map(Assembled::Done),
        Recorded::Begun(begun) if begun.identity.command == "merge" => {
            merge::assemble(assembly, begun, progress)
        }
        Recorded::Begun(begun) => dequantize::assemble(assembly, begun, progress),
    }
}
