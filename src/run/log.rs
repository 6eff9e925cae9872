//! A run's log: times, threads and memory, which must stay out of files that are compared byte by byte.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::run::layout::PART_LOG;
use crate::{Error, Result};

/// A log that every run appends to, or none.
#[derive(Debug)]
pub struct Log(Option<File>);

impl Log {
    /// Opens the log at `path`. Each part has its own log: machines that append to the same file of a network file
    /// system overwrite each other's lines.
    ///
    /// # Errors
    /// A file that cannot be opened.
    pub fn open(path: &Path) -> Result<Log> {
        let failed = |e| Error::unexpected("cannot open the log").path(path).because(e);
        let file = OpenOptions::new().append(true).create(true).open(path).map_err(failed)?;
        Ok(Log(Some(file)))
    }

    /// A log that discards every line.
    pub fn none() -> Log {
        Log(None)
    }

    /// Copies the lines of the parts' logs, which are about to be removed.
    pub fn take_over(&self, attempts: &[PathBuf]) {
        for attempt in attempts {
            if let Ok(text) = fs::read(attempt.join(PART_LOG)) {
                self.line(&format!("{}:", attempt.file_name().unwrap_or_default().to_string_lossy()));
                self.write(&text);
            }
        }
    }

    /// Writes one line, prefixed with the time.
    pub fn line(&self, text: &str) {
        let now = humantime::format_rfc3339_millis(SystemTime::now());
        self.write(format!("{now} {text}\n").as_bytes());
    }

    /// Ignores errors: a log that cannot be written must not stop the run.
    fn write(&self, bytes: &[u8]) {
        if let Some(mut file) = self.0.as_ref() {
            let _ = file.write_all(bytes);
        }
    }
}
