//! llama.cpp's importance matrix as it was until 2025, `imatrix.dat`: a number of entries, and of each its name, a
//! number of calls, and means of squares times that number. Whatever follows the entries (the text's name) is not
//! needed.

use std::collections::HashMap;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

use super::OpenCalibration;
use super::imatrix::{Importance, opened};
use crate::container::safetensors::entries::MOST_TENSORS;
use crate::storage::regular_file;
use crate::{Error, Result};

/// Bytes that a tensor takes at least: the length of its name, its calls and its values.
const LEAST: u64 = 12;
/// The longest name of a tensor.
const LONGEST: u32 = 1024;

/// Opens an importance matrix in the older layout.
pub(super) fn open(path: &Path, name: String) -> Result<OpenCalibration> {
    let failed = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => damaged(path),
        _ => regular_file::cannot_read(path, e),
    };
    let file = regular_file::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    let mut file = BufReader::new(file);
    let number = |file: &mut BufReader<_>| -> Result<u32> {
        let mut bytes = [0; 4];
        Read::read_exact(file, &mut bytes).map_err(failed)?;
        Ok(u32::from_le_bytes(bytes))
    };
    let count = number(&mut file)?;
    if u64::from(count) > size / LEAST {
        return Err(damaged(path));
    }
    if count as usize > MOST_TENSORS {
        let what = format!("the importance matrix claims {count} tensors; at most {MOST_TENSORS} are read");
        return Err(Error::input(what).path(path));
    }
    let mut entries = HashMap::new();
    for _ in 0..count {
        let length = number(&mut file)?;
        if length == 0 || length > LONGEST {
            return Err(damaged(path));
        }
        let mut text = vec![0; length as usize];
        file.read_exact(&mut text).map_err(failed)?;
        let text = String::from_utf8(text).map_err(|_| damaged(path))?;
        let (calls, values) = (number(&mut file)?, number(&mut file)?);
        let start = file.stream_position().map_err(failed)?;
        let end = start + 4 * u64::from(values);
        if end > size || i32::try_from(values).is_err() {
            return Err(damaged(path));
        }
        file.seek_relative(4 * i64::from(values)).map_err(failed)?;
        let counts = vec![f64::from(calls)];
        entries.insert(text, Importance { start, values: values as usize, counts, expert: None });
    }
    opened(path, name, entries)
}

fn damaged(path: &Path) -> Error {
    Error::input("this is not an importance matrix, or it was cut short")
        .path(path)
        .hint("llama-imatrix writes them; the newer ones are GGUF files")
}
