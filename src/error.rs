//! The error type: what failed, on which file and tensor, why, and how to fix it.

use std::error::Error as StdError;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::printable::{lines, one_line};

/// `Result` with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// The kind of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// The environment failed, for example a full disk or a denied permission. Exit code 1.
    Unexpected,
    /// The user must decide: wrong usage, too small a budget, a locked or foreign folder, changed options. Exit code 2.
    Decide,
    /// The input is bad. Exit code 3.
    Input,
    /// A check ran and found a problem. Exit code 4.
    Found,
}

impl Kind {
    /// The exit code of a program that ends with such a failure.
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::Unexpected => 1,
            Kind::Decide => 2,
            Kind::Input => 3,
            Kind::Found => 4,
        }
    }
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

    /// A failure of the environment, not of the input. `what` is a whole clause, for example "cannot write the shard".
    pub fn unexpected(what: impl Into<String>) -> Self {
        Self::new(Kind::Unexpected, what)
    }

    /// A decision that only the user can make.
    pub fn decide(what: impl Into<String>) -> Self {
        Self::new(Kind::Decide, what)
    }

    /// Bad input.
    pub fn input(what: impl Into<String>) -> Self {
        Self::new(Kind::Input, what)
    }

    /// A problem that a check found.
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

    /// Says how to fix it.
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

    /// The kind of this failure.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// How to fix it, where that is known. It is not part of the message: the binary prints it on a line of its own.
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
    /// The cause of the cause: `Display` prints the cause itself, and a report that walks the chain must not repeat it.
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().and_then(|cause| cause.source())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cause whose message leaves its own source out, as the standard library asks for.
    #[derive(Debug)]
    struct Outer(Error);

    impl fmt::Display for Outer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("outer")
        }
    }

    impl StdError for Outer {
        fn source(&self) -> Option<&(dyn StdError + 'static)> {
            Some(&self.0)
        }
    }

    /// What a reporter prints that walks the chain of sources.
    fn chain(error: &Error) -> Vec<String> {
        std::iter::successors(Some(error as &dyn StdError), |&e| e.source()).map(|e| e.to_string()).collect()
    }

    #[test]
    fn a_report_of_the_chain_says_each_cause_once() {
        let full = || std::io::Error::other("disk full");
        assert_eq!(chain(&Error::unexpected("cannot write").because(full())), ["cannot write: disk full"]);
        let inner = Error::unexpected("inner").because(full());
        let nested = Error::unexpected("cannot write").because(Outer(inner));
        assert_eq!(chain(&nested), ["cannot write: outer", "inner: disk full"]);
    }
}
