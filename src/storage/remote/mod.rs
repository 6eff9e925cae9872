//! Objects that are read where they lie, by ranges over HTTP: `hf://OWNER/NAME@REVISION`, `https://host/path/` and
//! `s3://bucket/prefix`.
//!
//! Nothing is copied whole. A header takes one or two small requests, a tensor its own ranges, several of them in
//! flight at once (`link`). What an object is, its length and its tag, is fixed when it is opened; an answer of another
//! state is an error, whenever it comes. Credentials go into requests and nowhere else.

mod address;
mod answer;
mod blocks;
mod cache;
mod client;
mod file;
mod guard;
mod link;
mod object;
mod retry;
mod settings;
mod spill;
mod web;
pub use self::client::{Traffic, traffic};
pub use self::file::open;
pub use self::settings::{Settings, configure};

use std::sync::atomic::{AtomicBool, Ordering};

/// Whether this process has opened an object at a server.
static USED: AtomicBool = AtomicBool::new(false);

/// Whether this process has opened an object at a server.
pub fn is_used() -> bool {
    USED.load(Ordering::Relaxed)
}

/// Bytes of `memory` that go to the link where this process reads from a server, and zero otherwise: an eighth of it,
/// for blocks that were read ahead, and the buffers of its connections.
pub(crate) fn reserve(memory: u64) -> u64 {
    const MOST: u64 = 512 << 20;
    const CONNECTION: u64 = 384 << 10;
    if !is_used() {
        return 0;
    }
    let blocks = (memory / 8).clamp(link::LEAST, MOST);
    link::link().set_capacity(blocks);
    // A window may outlive its block, and a block that is waited for needs no room.
    let beyond = 4 * link::BLOCK;
    blocks + beyond + settings::settings().connections as u64 * CONNECTION
}
