//! Sizes in bytes on the command line and in messages.

use bytesize::ByteSize;

/// Parses `2GiB`, `384MiB`, `1.5GB` or a plain number of bytes.
pub fn parse(text: &str) -> Result<u64, String> {
    text.parse::<ByteSize>()
        .map(|size| size.as_u64())
        .map_err(|_| "not a size; write for example 2GiB or 384MiB".to_owned())
}

/// Formats a size for people, in binary units.
pub fn show(bytes: u64) -> String {
    ByteSize::b(bytes).display().iec().to_string()
}
