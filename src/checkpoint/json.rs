//! Reading of a checkpoint's JSON files.

use crate::container::safetensors::header;

use serde::de::DeserializeOwned;

use crate::storage::Folder;
use crate::{Error, Result};

/// Reads the JSON file `name` of at most `limit` bytes, `None` if it does not exist.
pub(crate) fn read_json<T: DeserializeOwned>(
    folder: &dyn Folder,
    name: &str,
    limit: u64,
) -> Result<Option<T>> {
    let Some(file) = folder.small(name, limit)? else { return Ok(None) };
    let path = folder.path(name);
    if header::is_lfs_pointer(&file.bytes) {
        return Err(header::lfs_pointer().path(path));
    }
    let broken = |e: serde_json::Error| {
        let what = if e.is_data() { "this JSON is not what such a file holds" } else { "this is not JSON" };
        Error::input(what).path(&path).because(e).hint("download or export this file again")
    };
    serde_json::from_slice(&file.bytes).map(Some).map_err(broken)
}
