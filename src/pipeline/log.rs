//! `extraction.log`: times, threads and memory, which must not stand where bytes are compared.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::SystemTime;

use super::resume::LOG;
use crate::{Error, Result};

/// The log of an output folder, appended to by every run.
#[derive(Debug)]
pub struct Log(File);

impl Log {
    /// Opens the log in `out`.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(out: &Path) -> Result<Log> {
        let path = out.join(LOG);
        let failed = |e| Error::unexpected("cannot open the log").path(&path).because(e);
        OpenOptions::new().append(true).create(true).open(&path).map(Log).map_err(failed)
    }

    /// One line, with the time before it. A log that cannot be written to stops no run.
    pub fn line(&self, text: &str) {
        let now = humantime::format_rfc3339_millis(SystemTime::now());
        let _ = (&self.0).write_all(format!("{now} {text}\n").as_bytes());
    }
}
