//! The connections of this process, and the blocks that they bring.

pub(crate) mod blocks;
pub(crate) mod cache;
pub(crate) mod digests;
pub(crate) mod fetcher;
pub(crate) mod spill;
