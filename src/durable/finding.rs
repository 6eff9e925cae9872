//! The findings of a check.

use std::fmt;

use serde::Serialize;

/// The severity of a [`Finding`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Level {
    /// A note; the check passes.
    Note,
    /// The check fails.
    Error,
}

/// The kind of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Problem {
    /// `B3SUMS` lists no file.
    Empty,
    /// A line that cannot be parsed.
    Malformed,
    /// A name that was listed before.
    Duplicate,
    /// A name that points outside the folder. Its file is not opened.
    Outside,
    /// A listed file that is missing.
    Missing,
    /// A listed file, or a folder, that cannot be read.
    Unreadable,
    /// A file whose digest differs from the listed one.
    Mismatch,
    /// A file that is not listed: a note, but for weights and configs.
    Unlisted,
}

/// One finding of a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its severity.
    pub level: Level,
    /// The kind of the problem.
    pub problem: Problem,
    /// The file, relative to the folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The line of `B3SUMS`, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// The predicate of the sentence whose subject is the name or the line.
    pub detail: String,
}

impl Finding {
    pub(crate) fn new(problem: Problem, name: Option<&str>, line: Option<usize>, detail: String) -> Finding {
        let level = if problem == Problem::Unlisted { Level::Note } else { Level::Error };
        Finding { level, problem, name: name.map(str::to_owned), line, detail }
    }

    /// A file that is not listed. One that a program loads is an error: nothing vouches for it.
    pub(crate) fn unlisted(name: &str) -> Finding {
        let loaded = [".safetensors", ".gguf", ".safetensors.index.json", "config.json"];
        let level = if loaded.iter().any(|end| name.ends_with(end)) { Level::Error } else { Level::Note };
        let detail = format!("is not listed in {B3SUMS}");
        Finding { level, ..Finding::new(Problem::Unlisted, Some(name), None, detail) }
    }

    pub(crate) fn of(problem: Problem, entry: &FileEntry, detail: impl Into<String>) -> Finding {
        Finding::new(problem, Some(&entry.name), Some(entry.line), detail.into())
    }
}

impl fmt::Display for Finding {
    /// Quotes the name and escapes its control characters, because it comes from a file and goes to a terminal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.name, self.line) {
            (Some(name), _) => write!(f, "{name:?} {}", self.detail),
            (None, Some(line)) => write!(f, "line {line} of {B3SUMS} {}", self.detail),
            (None, None) => write!(f, "{B3SUMS} {}", self.detail),
        }
    }
}

/// The name of the file with the checksums.
pub const B3SUMS: &str = "B3SUMS";

/// One line: a file and its expected digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileEntry {
    /// Number of the line, from 1.
    pub line: usize,
    /// The name as listed, without escapes.
    pub name: String,
    /// The digest as listed.
    pub blake3: blake3::Hash,
}
