//! The files of a finished extraction.

/// The files of a finished run, in the order in which they are written. The checksums come last: only they make the
/// folder complete.
pub const FILES: [&str; 6] =
    [crate::lora::WEIGHTS, crate::lora::CONFIG, SPECTRA, MANIFEST, CARD, crate::durable::finding::B3SUMS];

/// The singular values of every module.
pub const SPECTRA: &str = "spectra.jsonl.zst";

/// The manifest.
pub const MANIFEST: &str = "extraction.json";

/// The model card.
pub const CARD: &str = "README.md";
