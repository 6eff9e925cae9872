//! The files of a run's output folder, and the state that only an unfinished run needs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The folder, inside an output folder, that holds what only an unfinished run needs.
pub const STATE: &str = crate::durable::lock::STATE;

/// The folder of the parts' folders, in the state folder.
pub const PARTS: &str = "parts";

/// The journal of an attempt.
pub const JOURNAL: &str = "journal";

/// The results of an attempt's units.
pub const SHARDS: &str = "shards";

/// Where and how an attempt runs: see [`AttemptInfo`](super::attempt::AttemptInfo).
pub const ATTEMPT: &str = "attempt.json";

/// The log of a part, which becomes part of the run's log, where the run keeps one.
pub const PART_LOG: &str = "log";

/// The heartbeat of an attempt.
pub const HEARTBEAT: &str = "heartbeat.json";

/// The temporary name of the heartbeat while it is written.
pub const HEARTBEAT_DRAFT: &str = ".tmp-heartbeat";

/// The log of an extraction: times, threads and memory, outside the checksums.
pub const LOG: &str = "extraction.log";

/// The JSON records that identify finished folders, one for each kind of run.
pub const RECORDS: [&str; 5] =
    ["extraction.json", "conversion.json", "analysis.json", "fidelity.json", "sanitized.json"];

/// The longest of them, in bytes: that of a mixture of 30,000 experts has some hundred megabytes.
pub(crate) const LONGEST_RECORD: u64 = 1 << 30;

/// The files of one command's output folder.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The JSON record that says how the output was made: one of `RECORDS`.
    pub record: &'static str,
    /// Every file that the checksums cover, relative to the folder.
    pub outputs: BTreeSet<String>,
    /// The log of times, threads and memory, outside the checksums.
    pub log: Option<&'static str>,
    /// Whether the results of an unsplit run are output files themselves and are written directly to their place.
    pub in_place: bool,
}

impl Layout {
    /// A layout of these files, without a log, whose results are kept separately until the output is written.
    pub fn new(record: &'static str, outputs: impl IntoIterator<Item = impl Into<String>>) -> Layout {
        let outputs = outputs.into_iter().map(Into::into).collect();
        Layout { record, outputs, log: None, in_place: false }
    }

    /// The folder of the results of the attempt in the folder `attempt`.
    pub fn results(&self, out: &Path, attempt: &Path) -> PathBuf {
        if self.in_place && attempt == out.join(STATE) { out.to_owned() } else { attempt.join(SHARDS) }
    }
}
