//! An object at a server: what it is when it is opened, and its ranges afterwards.

use std::fmt::Debug;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::storage::Version;
use crate::storage::remote::http::answer::{
    self, Tag, changed, check_body, check_part, content_length, content_range, is_missing, lies, patiently,
    read_body, refused,
};
use crate::storage::remote::http::client::{Answer, Target, get};
use crate::storage::remote::http::retry::{Failure, Patience};
use crate::{Error, Result};
use std::sync::Arc;

/// A server's way of naming and signing.
pub(crate) trait Origin: Debug + Send + Sync {
    /// The folder, for messages.
    fn location(&self) -> &Path;

    /// How to ask for the file `name`, signed anew.
    ///
    /// # Errors
    /// A name that cannot be part of an address.
    fn target(&self, name: &str) -> Result<Target>;

    /// What identifies the content, by the first answer for it.
    ///
    /// # Errors
    /// It is not of the state that was opened.
    fn version(&self, answer: &Answer) -> Result<Option<Version>> {
        Ok(Tag::of(&answer.headers).version())
    }

    /// What to do where access is denied.
    fn denied(&self) -> &'static str;
}

/// An object that can be fetched in ranges.
#[derive(Debug)]
pub(crate) struct Object {
    /// A number of its own in this process.
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) location: PathBuf,
    pub(crate) length: u64,
    pub(crate) version: Option<Version>,
    origin: Arc<dyn Origin>,
    route: Mutex<Route>,
}

/// How the object is reached at the moment.
#[derive(Debug)]
struct Route {
    /// Where the server has sent us, as long as that is valid: asking there again saves it a request.
    direct: Option<Target>,
    /// Whether it has ever sent us elsewhere, where the same content may have another tag.
    sent_on: bool,
    /// The content's tag at the server that answers.
    tag: Tag,
}

/// An object's beginning, found when it was opened.
pub(crate) type Opened = Option<(Object, Vec<u8>)>;

/// Opens the file `name`: one request tells its length, its version and its first `first` bytes. `None` if there is
/// none. A server that ignores ranges is put up with for objects of at most `whole` bytes.
pub(crate) fn open(origin: &Arc<dyn Origin>, name: &str, first: u64, whole: u64) -> Result<Opened> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let location = origin.location().join(name);
    let attempt = || -> std::result::Result<Opened, Failure> {
        let answer = get(&origin.target(name)?, Some(&(0..first)), None)?;
        let length = match answer.status {
            status if is_missing(status) => return Ok(None),
            206 => {
                let (range, total) = content_range(&answer)?;
                if range != Some(0..total.min(first)) {
                    return Err(lies("another part than was asked for"));
                }
                total
            }
            416 => match content_range(&answer)? {
                (_, 0) => 0,
                _ => return Err(lies("it has no first bytes")),
            },
            200 => match content_length(&answer) {
                Some(length) if length <= first.max(whole) => length,
                Some(_) => return Err(lies("it ignores ranges, and sends the whole object")),
                None => return Err(lies("it tells no length")),
            },
            _ => return Err(refused(&answer, origin.denied())),
        };
        let version = origin.version(&answer)?;
        let direct = answer.redirected.clone();
        let route = Route { sent_on: direct.is_some(), direct, tag: Tag::of(&answer.headers) };
        let expected = if answer.status == 200 { length } else { length.min(first) };
        let mut head = Vec::with_capacity(expected as usize);
        if answer.status != 416 {
            check_body(&answer, expected)?;
            read_body(answer, expected, &mut head)?;
        }
        let object = Object {
            id: NUMBER.fetch_add(1, Ordering::Relaxed),
            name: name.to_owned(),
            location: location.clone(),
            length,
            version,
            origin: Arc::clone(origin),
            route: Mutex::new(route),
        };
        Ok(Some((object, head)))
    };
    patiently(attempt).map_err(|e| e.path(&location))
}

impl Object {
    /// The bytes of `range`. A connection that breaks is taken up where it broke.
    ///
    /// # Errors
    /// The object was changed, the server lies, or it is out of reach for longer than patience lasts.
    pub(crate) fn fetch(&self, range: &Range<u64>) -> Result<Vec<u8>> {
        let mut out = Vec::with_capacity((range.end - range.start) as usize);
        let mut patience = Patience::default();
        loop {
            let before = out.len();
            let rest = range.start + before as u64..range.end;
            if rest.is_empty() {
                return Ok(out);
            }
            if let Err(failure) = self.attempt(&rest, &mut out) {
                patience.progress((out.len() - before) as u64);
                patience.wait(failure).map_err(|e| e.path(&self.location))?;
            }
        }
    }

    /// One request for `range`, appended to `out`.
    fn attempt(&self, range: &Range<u64>, out: &mut Vec<u8>) -> std::result::Result<(), Failure> {
        let (direct, sent_on, tag) = {
            let route = self.route.lock().unwrap_or_else(PoisonError::into_inner);
            (route.direct.clone(), route.sent_on, route.tag.clone())
        };
        let is_direct = direct.is_some();
        let target = direct.map_or_else(|| self.origin.target(&self.name), Ok)?;
        let condition = if sent_on && !is_direct { None } else { tag.condition() };
        let answer = get(&target, Some(range), condition)?;
        match answer.status {
            200 | 206 => {}
            status if is_direct && matches!(status, 400 | 401 | 403 | 404 | 410) => {
                self.route.lock().unwrap_or_else(PoisonError::into_inner).direct = None;
                return Err(Failure::Expired(refused(&answer, self.origin.denied()).error()));
            }
            _ => return Err(refused(&answer, self.origin.denied())),
        }
        let (now, again) = (Tag::of(&answer.headers), answer.redirected.clone());
        // A server that was found by a redirect is known by what the origin says of the content.
        let same = if again.is_some() && !is_direct {
            self.origin.version(&answer)? == self.version
        } else {
            tag.is_same(&now)
        };
        if !same {
            return Err(changed("its tag is another").into());
        }
        check_part(&answer, range, self.length)?;
        if again.is_some() && !is_direct {
            let mut route = self.route.lock().unwrap_or_else(PoisonError::into_inner);
            *route = Route { direct: again, sent_on: true, tag: now };
        }
        read_body(answer, range.end - range.start, out)
    }
}

/// A small object as a whole, with its version; `None` if there is none.
pub(crate) fn small(
    origin: &Arc<dyn Origin>,
    name: &str,
    limit: u64,
) -> Result<Option<(Vec<u8>, Option<Version>)>> {
    const FIRST: u64 = 64 << 10;
    let Some((object, mut bytes)) = open(origin, name, FIRST, limit)? else { return Ok(None) };
    if object.length > limit {
        let what =
            format!("the file has {} bytes, and at most {limit} are read of one of its kind", object.length);
        return Err(Error::input(what).path(&object.location));
    }
    if (bytes.len() as u64) < object.length {
        bytes.extend(object.fetch(&(bytes.len() as u64..object.length))?);
    }
    Ok(Some((bytes, object.version)))
}

/// The answer of a server's own interface, read whole.
pub(crate) fn ask(target: impl Fn() -> Result<Target>, limit: u64, denied: &str) -> Result<Option<Vec<u8>>> {
    patiently(|| {
        let answer = get(&target()?, None, None)?;
        match answer.status {
            200 => answer::read_whole(answer, limit).map(Some),
            status if is_missing(status) => Ok(None),
            _ => Err(refused(&answer, denied)),
        }
    })
}
