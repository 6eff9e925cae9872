//! Sizes in bytes on the command line and in messages.

use bytesize::ByteSize;

/// A plain number below this was meant in a larger unit.
const LEAST: u64 = 64 << 10;

/// Parses `2GiB`, `384MiB`, `1.5GB` or a plain number of bytes.
pub fn parse(text: &str) -> Result<u64, String> {
    let size =
        text.parse::<ByteSize>().map_err(|_| "not a size; write for example 2GiB or 384MiB".to_owned())?;
    match size.as_u64() {
        0 if text == "0" => Err("0 bytes hold nothing; write for example 2GiB or 384MiB".to_owned()),
        bytes if bytes < LEAST && text.bytes().all(|byte| byte.is_ascii_digit()) => {
            Err(format!("{bytes} bytes is not enough for anything; did you mean {text}GiB?"))
        }
        bytes => Ok(bytes),
    }
}

/// Formats a size for people, in binary units.
pub fn show(bytes: u64) -> String {
    ByteSize::b(bytes).display().iec().to_string()
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn a_size_without_its_unit_is_asked_about() {
        assert_eq!(parse("2GiB"), Ok(2 << 30));
        assert_eq!(parse("1.5GB"), Ok(1_500_000_000));
        assert_eq!(parse("1073741824"), Ok(1 << 30));
        assert!(parse("0").is_err_and(|why| why.contains("for example 2GiB")));
        assert_eq!(parse("2"), Err("2 bytes is not enough for anything; did you mean 2GiB?".to_owned()));
        assert!(parse("much").unwrap_err().contains("for example 2GiB"));
    }
}
