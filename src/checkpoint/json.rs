//! Reading of a checkpoint's JSON files.

use crate::container::safetensors::header;
use std::io::BufRead;

use serde::de::DeserializeOwned;

use crate::storage::{Folder, regular_file};
use crate::{Error, Result};

/// Reads the JSON file `name` of at most `limit` bytes, `None` if it does not exist.
pub(crate) fn read_json<T: DeserializeOwned>(
    folder: &dyn Folder,
    name: &str,
    limit: u64,
) -> Result<Option<T>> {
    let Some(mut reader) = folder.read(name, limit)? else { return Ok(None) };
    let path = folder.path(name);
    let failed = |e| regular_file::cannot_read(&path, e);
    if header::is_lfs_pointer(reader.fill_buf().map_err(failed)?) {
        return Err(header::lfs_pointer().path(path));
    }
    let broken = |e: serde_json::Error| {
        let what = if e.is_data() { "this JSON is not what such a file holds" } else { "this is not JSON" };
        Error::input(what).path(&path).because(e).hint("download or export this file again")
    };
    serde_json::from_reader(reader).map(Some).map_err(|e| match e.io_error_kind() {
        Some(kind) => failed(kind.into()),
        None => broken(e),
    })
}
