//! `extraction.log`: times, threads and memory, which must not stand where bytes are compared.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::run::layout::LOG;
use crate::run::layout::PART_LOG;
use crate::{Error, Result};

/// The log of an output folder, appended to by every run.
#[derive(Debug)]
pub struct Log(File);

impl Log {
    /// Opens the log of the output folder `out`.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(out: &Path) -> Result<Log> {
        Log::at(&out.join(LOG))
    }

    /// Opens the log of the part in the folder `attempt`: several machines that append to one file of a network file
    /// system write over each other.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn of_part(attempt: &Path) -> Result<Log> {
        Log::at(&attempt.join(PART_LOG))
    }

    fn at(path: &Path) -> Result<Log> {
        let failed = |e| Error::unexpected("cannot open the log").path(path).because(e);
        OpenOptions::new().append(true).create(true).open(path).map(Log).map_err(failed)
    }

    /// Takes over the lines of the parts' logs, which are about to be removed.
    pub fn take_over(&self, attempts: &[PathBuf]) {
        for attempt in attempts {
            if let Ok(text) = fs::read(attempt.join(PART_LOG)) {
                self.line(&format!("{}:", attempt.file_name().unwrap_or_default().to_string_lossy()));
                let _ = (&self.0).write_all(&text);
            }
        }
    }

    /// One line, with the time before it. A log that cannot be written to stops no run.
    pub fn line(&self, text: &str) {
        let now = humantime::format_rfc3339_millis(SystemTime::now());
        let _ = (&self.0).write_all(format!("{now} {text}\n").as_bytes());
    }
}
