//! Objects that are read where they lie, by ranges over HTTP: `hf://OWNER/NAME@REVISION`, `https://host/path/` and
//! `s3://bucket/prefix`.
//!
//! Nothing is copied whole. A header takes one or two small requests, a tensor its own ranges, several of them in
//! flight at once (`link`). What an object is, its length and its tag, is fixed when it is opened; an answer of another
//! state is an error, whenever it comes. Credentials go into requests and nowhere else.
//!
//! The client is `ureq`, which blocks; `rusty-s3` signs the requests to buckets and sends none. `object_store` would
//! bring an asynchronous runtime into a program whose threads block anyway (136 packages to build, against 60, in 1.8
//! times the processor time), knows no hub, and hides the redirects and the tags of answers, which decide here whether
//! bytes are believed.

pub(crate) mod address;
pub(crate) mod file;
pub(crate) mod http;
pub(crate) mod link;
pub(crate) mod places;
pub(crate) mod settings;
pub use self::file::open;
pub use self::http::client::{Traffic, traffic};
pub use self::settings::{Settings, configure};

use std::sync::atomic::{AtomicBool, Ordering};

use self::link::{blocks, fetcher};

/// Whether this process has opened an object at a server.
static USED: AtomicBool = AtomicBool::new(false);

/// Whether this process has opened an object at a server.
pub fn is_used() -> bool {
    USED.load(Ordering::Relaxed)
}

/// The most bytes that blocks may take.
const MOST: u64 = 512 << 20;

/// The least bytes that the link takes where this process reads from a server, and zero otherwise: blocks, and the
/// buffers of its connections.
pub(crate) fn least() -> u64 {
    const CONNECTION: u64 = 384 << 10;
    if !is_used() {
        return 0;
    }
    // A window may outlive its block.
    let beyond = fetcher::BEYOND + 2 * blocks::BLOCK;
    fetcher::LEAST + beyond + settings::settings().connections as u64 * CONNECTION
}

/// Gives the link a share of `spare` bytes that nothing else needs, so that it reads further ahead; returns how many.
pub(crate) fn grow(spare: u64) -> u64 {
    if !is_used() {
        return 0;
    }
    let more = (spare / 6).min(MOST - fetcher::LEAST);
    fetcher::link().set_capacity(fetcher::LEAST + more);
    more
}

/// Bytes that were announced and are not here yet.
pub(crate) fn backlog() -> u64 {
    if is_used() { fetcher::link().backlog() } else { 0 }
}

/// Whether there is a scratch folder.
pub(crate) fn has_scratch() -> bool {
    settings::settings().scratch.is_some()
}

/// The scratch folder of the settings.
pub(crate) fn scratch() -> Option<&'static std::path::Path> {
    settings::settings().scratch.as_deref()
}
