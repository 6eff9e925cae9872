//! Reading of a checkpoint's JSON files.

use crate::container::safetensors::header;
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::storage::regular_file;
use crate::{Error, Result};

/// Reads a JSON file of at most `limit` bytes, `None` if it does not exist.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path, limit: u64) -> Result<Option<T>> {
    let bytes = match regular_file::read_within(path, limit) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(regular_file::cannot_read(path, e)),
    };
    if header::is_lfs_pointer(&bytes) {
        return Err(header::lfs_pointer().path(path));
    }
    let broken = |e: serde_json::Error| {
        let what = if e.is_data() { "this JSON is not what such a file holds" } else { "this is not JSON" };
        Error::input(what).path(path).because(e).hint("download or export this file again")
    };
    serde_json::from_slice(&bytes).map(Some).map_err(broken)
}
