//! What an answer must be before its bytes are believed.

use std::io::Read;
use std::ops::Range;
use std::time::Instant;

use crate::storage::Version;
use crate::storage::remote::http::client::{Answer, count, header};
use crate::storage::remote::http::retry::{Failure, retry_after};
use crate::storage::remote::settings::settings;
use crate::{Error, Result};

/// The longest object that is believed: 16 TiB.
const ABSURD: u64 = 16 << 40;

/// Fewer bytes than this within the time-out count as silence.
const TRICKLE: u64 = 1024;

/// What tells two states of an object apart at one server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tag {
    etag: Option<String>,
    modified: Option<String>,
}

impl Tag {
    /// The tag in an answer's headers.
    pub(crate) fn of(headers: &ureq::http::HeaderMap) -> Tag {
        let text = |name| header(headers, name).filter(|text| !text.is_empty()).map(str::to_owned);
        Tag { etag: text("etag"), modified: text("last-modified") }
    }

    /// As the version of an object; `None` where the server tells nothing.
    pub(crate) fn version(&self) -> Option<Version> {
        let modified = || self.modified.as_ref().map(|time| format!("modified {time}"));
        self.etag.clone().or_else(modified).map(Version::Tag)
    }

    /// The condition under which the server may answer: this state of the object and no other. A weak tag is never
    /// equal to another, by the rules of HTTP.
    pub(crate) fn condition(&self) -> Option<(&str, &str)> {
        match (&self.etag, &self.modified) {
            (Some(etag), _) if etag.starts_with('"') => Some(("if-match", etag)),
            (_, Some(modified)) => Some(("if-unmodified-since", modified)),
            _ => None,
        }
    }

    /// Whether an answer with the tag `now` is of the same state.
    pub(crate) fn is_same(&self, now: &Tag) -> bool {
        match (&self.etag, &now.etag) {
            (Some(then), Some(now)) => then == now,
            _ => self.modified.is_none() || now.modified.is_none() || self.modified == now.modified,
        }
    }
}

/// The error for an object that is not what it was.
pub(crate) fn changed(what: &str) -> Error {
    Error::input(format!("the object was changed at the server: {what}"))
        .hint("give a revision or a version that stays, or start anew with --overwrite")
}

/// The failure that a status stands for, where it is none of success.
pub(crate) fn refused(answer: &Answer, denied: &str) -> Failure {
    let what = format!("the server answers {}", answer.status);
    let message = answer.header("x-error-message").unwrap_or_default();
    let what = if message.is_empty() { what } else { format!("{what}: {message}") };
    match answer.status {
        408 | 425 | 429 | 500 | 502 | 503 | 504 => {
            Failure::passing(Error::unexpected(what), retry_after(answer.header("retry-after")))
        }
        401 | 403 => Error::decide(format!("{what}: access is denied")).hint(denied).into(),
        404 | 410 => changed("it is gone").into(),
        412 => changed("its tag is another").into(),
        416 => changed("it is shorter").into(),
        301 | 400 if answer.header("x-amz-bucket-region").is_some() => {
            let region = answer.header("x-amz-bucket-region").unwrap_or_default();
            // A shell may be given it.
            let is_name = region.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
            let hint = if is_name { format!("set AWS_REGION={region}") } else { "set AWS_REGION".to_owned() };
            Error::decide("the bucket is in another region").hint(hint).into()
        }
        _ => Error::unexpected(what).into(),
    }
}

/// The error for a server that does not do what it was asked for.
pub(crate) fn lies(what: &str) -> Failure {
    Error::input(format!("the server's answer cannot be used: {what}")).into()
}

/// The start, end and whole length that `Content-Range` states; the range is `None` where it could not be served.
pub(crate) fn content_range(answer: &Answer) -> std::result::Result<(Option<Range<u64>>, u64), Failure> {
    let parse = |text: &str| {
        let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
        let total: u64 = total.trim().parse().ok()?;
        if range.trim() == "*" {
            return Some((None, total));
        }
        let (start, last) = range.split_once('-')?;
        let (start, last): (u64, u64) = (start.trim().parse().ok()?, last.trim().parse().ok()?);
        Some((Some(start..last.checked_add(1)?), total))
    };
    let text = answer.header("content-range").ok_or_else(|| lies("a part without its position"))?;
    let (range, total) = parse(text).ok_or_else(|| lies("the position of a part cannot be read"))?;
    if total > ABSURD {
        return Err(lies(&format!("an object of {total} bytes")));
    }
    Ok((range, total))
}

/// Checks that the body is what it is said to be: not packed, and as long as it should be.
pub(crate) fn check_body(answer: &Answer, expected: u64) -> std::result::Result<(), Failure> {
    if answer.header("content-encoding").is_some_and(|coding| !coding.eq_ignore_ascii_case("identity")) {
        return Err(lies("it is compressed, which was not asked for"));
    }
    match content_length(answer) {
        Some(length) if length != expected => {
            Err(lies(&format!("{length} bytes are announced where {expected} were asked for")))
        }
        _ => Ok(()),
    }
}

/// `Content-Length`.
pub(crate) fn content_length(answer: &Answer) -> Option<u64> {
    answer.header("content-length")?.parse().ok()
}

/// Reads exactly `expected` bytes of the body behind `out`. What came before a failure stays in `out`.
pub(crate) fn read_body(
    answer: Answer,
    expected: u64,
    out: &mut Vec<u8>,
) -> std::result::Result<(), Failure> {
    const STEP: u64 = 256 << 10;
    let mut reader = answer.body.into_reader();
    let (mut left, mut watch) = (expected, Watch::new());
    while left > 0 {
        let (start, step) = (out.len(), left.min(STEP) as usize);
        out.resize(start + step, 0);
        let read = reader.read(&mut out[start..]);
        let count_read = *read.as_ref().unwrap_or(&0);
        out.truncate(start + count_read.min(step));
        count(count_read);
        let ended = || {
            let what = format!("the answer ended after {} of {expected} bytes", expected - left);
            Failure::passing(Error::unexpected(what), None)
        };
        read.map_err(|e| if is_end(&e) { ended() } else { Failure::of_io(e) })?;
        if count_read == 0 {
            return Err(ended());
        }
        left -= count_read as u64;
        watch.came(count_read)?;
    }
    // The end of the body is read too: the connection can serve again then.
    match reader.read(&mut [0]) {
        Ok(0) => Ok(()),
        Ok(_) => Err(lies("more bytes than were asked for")),
        Err(e) => Err(Failure::of_io(e)),
    }
}

/// Looks whether what comes is more than a trickle: each read alone may be in time.
struct Watch {
    bytes: u64,
    since: Instant,
}

impl Watch {
    fn new() -> Watch {
        Watch { bytes: 0, since: Instant::now() }
    }

    /// Counts bytes that came.
    fn came(&mut self, bytes: usize) -> std::result::Result<(), Failure> {
        self.bytes += bytes as u64;
        let stall = settings().stall;
        if self.since.elapsed() <= stall {
            return Ok(());
        }
        if self.bytes < TRICKLE {
            let what = format!("the server sent {} bytes in {} s", self.bytes, stall.as_secs());
            return Err(Failure::passing(Error::unexpected(what), None));
        }
        *self = Watch::new();
        Ok(())
    }
}

/// Whether the other side has closed the connection.
fn is_end(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe)
}

/// The bytes of a part, checked against what was asked for.
pub(crate) fn check_part(
    answer: &Answer,
    asked: &Range<u64>,
    length: u64,
) -> std::result::Result<(), Failure> {
    match answer.status {
        206 => {
            let (range, total) = content_range(answer)?;
            if total != length {
                return Err(changed(&format!("it had {length} bytes and now has {total}")).into());
            }
            if range.as_ref() != Some(asked) {
                return Err(lies("another part than was asked for"));
            }
        }
        200 if *asked == (0..length) => {}
        200 => return Err(lies("it ignores ranges, and sends the whole object")),
        _ => return Err(lies(&format!("status {}", answer.status))),
    }
    check_body(answer, asked.end - asked.start)
}

/// An answer that is read whole, of at most `limit` bytes.
///
/// # Errors
/// It is longer.
pub(crate) fn read_whole(answer: Answer, limit: u64) -> std::result::Result<Vec<u8>, Failure> {
    let too_long = |length: u64| lies(&format!("{length} bytes, where at most {limit} are read"));
    let mut bytes = Vec::new();
    if let Some(length) = content_length(&answer) {
        if length > limit {
            return Err(too_long(length));
        }
        check_body(&answer, length)?;
        read_body(answer, length, &mut bytes)?;
        return Ok(bytes);
    }
    let (mut reader, mut watch) = (answer.body.into_reader(), Watch::new());
    let mut piece = vec![0; 64 << 10];
    loop {
        let length = reader.read(&mut piece).map_err(Failure::of_io)?;
        if length == 0 {
            return Ok(bytes);
        }
        count(length);
        bytes.extend_from_slice(&piece[..length]);
        if bytes.len() as u64 > limit {
            return Err(too_long(bytes.len() as u64));
        }
        watch.came(length)?;
    }
}

/// Says whether a result is the absence of an object.
pub(crate) fn is_missing(status: u16) -> bool {
    matches!(status, 404 | 410)
}

/// Runs `attempt` until it succeeds or patience ends.
pub(crate) fn patiently<T>(mut attempt: impl FnMut() -> std::result::Result<T, Failure>) -> Result<T> {
    let mut patience = crate::storage::remote::http::retry::Patience::default();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(failure) => patience.wait(failure)?,
        }
    }
}
