//! What an extraction tells the link to a server: what is read next, what is read again, how much that is.

pub(crate) mod ahead;
pub(crate) mod bytes;
pub(crate) mod keep;
