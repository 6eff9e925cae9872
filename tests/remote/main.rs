//! Checkpoints that are read where they lie: from a web server, a hub, a bucket, each a stand-in on loopback.

#[path = "../common/mod.rs"]
mod common;

mod faults;
mod fetching;
mod places;
mod probing;
mod resuming;
mod server;
mod serving;
mod stores;
