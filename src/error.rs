//! One error type: what was being done, to which file and tensor, why it failed, and what would mend it.

use std::error::Error as StdError;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::printable::{lines, one_line};

/// `Result` with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What sort of failure an [`Error`] is. The binary turns it into its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Something outside the input failed: a full disk, a denied permission. Exit code 1.
    Unexpected,
    /// The user must decide: usage, a budget too small, a locked or foreign folder, changed options. Exit code 2.
    Decide,
    /// The input is bad. Exit code 3.
    Input,
    /// A check did its work and found something. Exit code 4.
    Found,
}

/// A failure: operation, path, tensor, cause and hint.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    what: String,
    path: Option<PathBuf>,
    tensor: Option<String>,
    hint: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    fn new(kind: Kind, what: impl Into<String>) -> Self {
        Error { kind, what: what.into(), path: None, tensor: None, hint: None, source: None }
    }

    /// A failure of the surroundings, not of the input. `what` is a whole clause, as "cannot write the shard".
    pub fn unexpected(what: impl Into<String>) -> Self {
        Self::new(Kind::Unexpected, what)
    }

    /// Something that only the user can decide.
    pub fn decide(what: impl Into<String>) -> Self {
        Self::new(Kind::Decide, what)
    }

    /// Bad input.
    pub fn input(what: impl Into<String>) -> Self {
        Self::new(Kind::Input, what)
    }

    /// A check that found something.
    pub fn found(what: impl Into<String>) -> Self {
        Self::new(Kind::Found, what)
    }

    /// Names the file or folder.
    #[must_use]
    pub fn path(mut self, path: impl AsRef<Path>) -> Self {
        self.path.get_or_insert_with(|| path.as_ref().to_path_buf());
        self
    }

    /// Names the tensor or module.
    #[must_use]
    pub fn tensor(mut self, tensor: impl Into<String>) -> Self {
        self.tensor.get_or_insert_with(|| tensor.into());
        self
    }

    /// Says what would mend it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint.get_or_insert_with(|| hint.into());
        self
    }

    /// Keeps the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Which sort of failure this is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What would mend it, where that is known. Not part of the message: it stands on its own line.
    pub fn cure(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Names of anybody's are in it: none begins a line of its own, or does anything else to a terminal.
        f.write_str(&one_line(&self.what))?;
        if let Some(tensor) = &self.tensor {
            write!(f, ": tensor '{}'", one_line(tensor))?;
        }
        if let Some(path) = &self.path {
            write!(f, ": {}", one_line(&path.to_string_lossy()))?;
        }
        if let Some(source) = &self.source {
            // Some causes have several lines, as that of a pattern with a mark below it.
            write!(f, ": {}", lines(&source.to_string()))?;
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|s| &**s as &(dyn StdError + 'static))
    }
}
