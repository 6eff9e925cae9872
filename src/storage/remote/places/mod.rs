//! The kinds of servers: how each names, signs and identifies. A new kind implements
//! [`Origin`](super::http::object::Origin).

pub(crate) mod bucket;
pub(crate) mod hub;
pub(crate) mod web;
