//! A run's log: times, threads and memory, which must stay out of files that are compared byte by byte.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::OFlags;

use crate::durable::inside;
use crate::printable::{lines, one_line};
use crate::run::layout::PART_LOG;
use crate::storage::regular_file;
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
        let failed = |e| match path.is_symlink() {
            true => Error::decide("the log is a link, and no link inside an output folder is followed")
                .path(path)
                .hint("remove the link, or give another --out"),
            false => Error::unexpected("cannot open the log").path(path).because(e),
        };
        let file = inside::open(path, OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE).map_err(failed)?;
        Ok(Log(Some(file)))
    }

    /// A log that discards every line.
    pub fn none() -> Log {
        Log(None)
    }

    /// Copies the lines of the parts' logs, which are about to be removed.
    pub fn take_over(&self, attempts: &[PathBuf]) {
        for attempt in attempts {
            if let Ok(text) = regular_file::read(&attempt.join(PART_LOG)) {
                self.line(&format!("{}:", attempt.file_name().unwrap_or_default().to_string_lossy()));
                self.write(lines(&String::from_utf8_lossy(&text)).as_bytes());
            }
        }
    }

    /// Writes one line, prefixed with the time.
    pub fn line(&self, text: &str) {
        let now = timestamp(SystemTime::now());
        self.write(format!("{now} {}\n", one_line(text)).as_bytes());
    }

    /// Ignores errors: a log that cannot be written must not stop the run.
    fn write(&self, bytes: &[u8]) {
        if let Some(mut file) = self.0.as_ref() {
            let _ = file.write_all(bytes);
        }
    }
}

/// A time as RFC 3339 writes it, to the millisecond; a clock that is set before 1970 or after 9999 as seconds.
fn timestamp(now: SystemTime) -> String {
    const YEAR_9999: Duration = Duration::from_secs(253_370_764_800);
    match now.duration_since(UNIX_EPOCH) {
        Ok(since) if since < YEAR_9999 => humantime::format_rfc3339_millis(now).to_string(),
        Ok(since) => format!("{} s after 1970", since.as_secs()),
        Err(e) => format!("{} s before 1970", e.duration().as_secs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_out_of_range_is_no_panic() {
        assert_eq!(timestamp(UNIX_EPOCH), "1970-01-01T00:00:00.000Z");
        assert_eq!(timestamp(UNIX_EPOCH - Duration::from_secs(86_400)), "86400 s before 1970");
        assert_eq!(timestamp(UNIX_EPOCH + Duration::from_secs(300_000_000_000)), "300000000000 s after 1970");
    }

    #[test]
    fn a_line_is_one_line() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("log");
        Log::open(&path).unwrap().line("a\n2026-01-01T00:00:00Z forged\x1b[2J");
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.ends_with("a\\n2026-01-01T00:00:00Z forged\\u001b[2J\n"), "{text}");
    }
}
