//! Reading of a checkpoint's JSON files.

use crate::container::safetensors::header;
use std::path::Path;

use crate::{Error, Result};

/// Reads a small JSON file; `None` if it does not exist.
pub(crate) fn read_json(path: &Path) -> Result<Option<serde_json::Value>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::unexpected("cannot read").path(path).because(e)),
    };
    if header::is_lfs_pointer(&bytes) {
        return Err(header::lfs_pointer().path(path));
    }
    let broken =
        |e| Error::input("this is not JSON").path(path).because(e).hint("download or export this file again");
    serde_json::from_slice(&bytes).map(Some).map_err(broken)
}
