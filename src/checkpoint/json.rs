//! Reading of a checkpoint's JSON files.

use crate::container::safetensors::header;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::storage::regular_file;
use crate::{Error, Result};

/// How much of a file is held at once.
const PIECE: usize = 64 << 10;

/// Reads a JSON file of at most `limit` bytes, `None` if it does not exist.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path, limit: u64) -> Result<Option<T>> {
    let failed = |e| regular_file::cannot_read(path, e);
    let mut reader = match regular_file::open_within(path, limit) {
        Ok(file) => BufReader::with_capacity(PIECE, file),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    if header::is_lfs_pointer(reader.fill_buf().map_err(failed)?) {
        return Err(header::lfs_pointer().path(path));
    }
    let broken = |e: serde_json::Error| {
        let what = if e.is_data() { "this JSON is not what such a file holds" } else { "this is not JSON" };
        Error::input(what).path(path).because(e).hint("download or export this file again")
    };
    serde_json::from_reader(reader).map(Some).map_err(|e| match e.io_error_kind() {
        Some(kind) => failed(kind.into()),
        None => broken(e),
    })
}
