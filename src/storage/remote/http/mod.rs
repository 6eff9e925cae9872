//! Requests and what is believed of their answers.

pub(crate) mod answer;
pub(crate) mod client;
pub(crate) mod guard;
pub(crate) mod object;
pub(crate) mod retry;
