//! Whole checkpoints written, streaming: a quantized one as a dense one (the *bridge*), or one with an adapter merged.
//!
//! ```text
//! threads:  map ─ dequantize ─ (+ scale · B·A) ─ round ──▶ in the order of the file ──▶ one writer ─ blake3 ─ sync ─ rename
//! ```
//! A folder is written file by file, each once and from front to back, and each is safe on disk before the journal says so: a
//! run that is killed goes on with the next file and ends with the same bytes. Configs, the tokenizer and other files come
//! after the weights, the index after those, and the checksums last: only they make the folder whole.
//!
//! What is stored dense is copied bit for bit, in whatever type it has; the option `dtype` is that of the weights that are
//! computed. That is what the converters that work on files do, compressed-tensors' among them. (transformers casts all of a
//! model to one type when it loads it.)

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

/// Assembles the checkpoint of a run whose parts have finished their work.
///
/// # Errors
/// Parts of different runs; files that two parts came to different bytes of; inputs that were changed; a file that was damaged
/// meanwhile; a failing disk.
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
