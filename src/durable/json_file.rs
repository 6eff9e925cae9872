//! Records as JSON files, written as they are made: the text of a record of a hundred thousand tensors takes as much
//! memory as the record itself.

use std::path::Path;

use serde::Serialize;

use crate::Result;
use crate::durable::atomic_file;
use crate::durable::digest::Written;

/// Writes `value` as pretty JSON with a newline at its end, durably.
///
/// # Errors
/// The errors of [`atomic_file::write`]; a value that has no JSON.
pub fn write(path: &Path, value: &impl Serialize) -> Result<Written> {
    atomic_file::write(path, |file| {
        serde_json::to_writer_pretty(&mut *file, value)?;
        file.write_all(b"\n")
    })
}
