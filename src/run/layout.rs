//! The names of what a run keeps in its output folder.

/// The folder inside the output folder that holds what a run needs to go on.
pub const STATE: &str = ".trephine";

/// Times, threads and memory: outside the checksums.
pub const LOG: &str = "extraction.log";

/// The folder of the parts' folders, in the state folder.
pub const PARTS: &str = "parts";

/// The journal of an attempt.
pub const JOURNAL: &str = "journal";

/// The shards of an attempt.
pub const SHARDS: &str = "shards";

/// [`How`] it is run.
pub const HOW: &str = "attempt.json";

/// The log of a part, which becomes part of the run's when that is assembled.
pub const PART_LOG: &str = "log";

/// What is said of a folder in which no run has left anything.
pub const STATE_HAS_NOTHING: &str = "the folder holds no run, finished or not";

/// The file.
pub const HEARTBEAT: &str = "heartbeat.json";

/// What it is called until it is whole.
pub const HEARTBEAT_DRAFT: &str = ".tmp-heartbeat";
