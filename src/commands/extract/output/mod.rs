//! What a finished extraction writes: adapter, manifest, model card, summary.

pub(crate) mod files;
pub(crate) mod left_out;
pub(crate) mod manifest;
pub(crate) mod model_card;
pub(crate) mod other_ranks;
pub(crate) mod quoting;
pub(crate) mod ranks;
pub(crate) mod summary;
pub(crate) mod write;
pub use self::files::{CARD, MANIFEST, SPECTRA};
pub use self::left_out::mostly_left_out;
pub use self::manifest::{LowerRank, Manifest, OtherRank, Spectrum, SpectrumOf};
pub use self::model_card::{serve_line, smallest_vllm_rank, upload_line};
pub use self::summary::{ExtractionOutcome, KindSummary, LeftOutGroup};
