//! Text files as documents.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde_json::Value;

use crate::storage::regular_file;
use crate::{Error, Result};

/// The text that is used if no file is given: a few thousand tokens in several languages, and code.
pub const BUILT_IN: &str = include_str!("built_in.txt");

/// One text.
pub(super) enum Document {
    /// Plain text.
    Text(String),
    /// A conversation, for the chat template.
    Messages(Value),
}

/// Bytes of a file that are read per wanted token: no language needs as many.
const BYTES_PER_TOKEN: u64 = 64;

/// The longest line of a `.jsonl` file, in bytes.
const LONGEST_LINE: u64 = 64 << 20;

/// The documents of a file, or the built-in text. A long file is read only as far as `tokens` may require.
pub(super) fn documents(source: Option<&Path>, tokens: usize) -> Result<Vec<Document>> {
    let Some(path) = source else { return Ok(vec![Document::Text(BUILT_IN.to_owned())]) };
    let failed = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => {
            Error::input("text file not found").path(path).hint("give --text FILE")
        }
        std::io::ErrorKind::InvalidData => Error::input("the file is not UTF-8 text")
            .path(path)
            .hint("give a text file, or .jsonl with one object per line"),
        std::io::ErrorKind::InvalidInput => regular_file::cannot_read(path, e),
        _ => Error::unexpected("cannot read the text").path(path).because(e),
    };
    let file = regular_file::open(path).map_err(failed)?;
    let limit = (tokens as u64).saturating_mul(BYTES_PER_TOKEN);
    if path.extension().is_some_and(|end| end == "jsonl") {
        return lines(BufReader::new(file), limit, path, failed);
    }
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes).map_err(failed)?;
    let whole = bytes.len() as u64 == limit;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(vec![Document::Text(text)]),
        // The limit may have cut a character.
        Err(e) if whole && e.utf8_error().error_len().is_none() => {
            let valid = e.utf8_error().valid_up_to();
            let mut bytes = e.into_bytes();
            bytes.truncate(valid);
            Ok(vec![Document::Text(String::from_utf8_lossy(&bytes).into_owned())])
        }
        Err(_) => Err(failed(std::io::ErrorKind::InvalidData.into())),
    }
}

fn lines(
    mut reader: impl BufRead,
    limit: u64,
    path: &Path,
    failed: impl Fn(std::io::Error) -> Error,
) -> Result<Vec<Document>> {
    let (mut documents, mut read) = (Vec::new(), 0);
    for number in 1u64.. {
        let bad = |what: &str| Error::input(format!("line {number} {what}")).path(path);
        let mut line = Vec::new();
        reader.by_ref().take(LONGEST_LINE + 1).read_until(b'\n', &mut line).map_err(&failed)?;
        if line.is_empty() {
            break;
        }
        if line.len() as u64 > LONGEST_LINE {
            return Err(bad(&format!("has more than {LONGEST_LINE} bytes")));
        }
        let line = std::str::from_utf8(&line).map_err(|_| failed(std::io::ErrorKind::InvalidData.into()))?;
        if line.trim().is_empty() {
            continue;
        }
        let mut object: Value = serde_json::from_str(line).map_err(|e| bad("is not JSON").because(e))?;
        let document = match (object.get_mut("messages").map(Value::take), object.get("text")) {
            (Some(messages @ Value::Array(_)), _) => Document::Messages(messages),
            (_, Some(Value::String(text))) => Document::Text(text.clone()),
            _ => {
                return Err(bad("has neither 'messages' nor 'text'")
                    .hint("each line is {\"messages\": [{\"role\": \"user\", \"content\": \"...\"}, ...]} or {\"text\": \"...\"}"));
            }
        };
        documents.push(document);
        read += line.len() as u64;
        if read >= limit {
            break;
        }
    }
    Ok(documents)
}
