//! What each subcommand does, a folder each. None knows another: what two of them need lies below, in
//! [`run`](crate::run), [`delta`](crate::delta), [`pipeline`](crate::pipeline) or further down.

pub mod analyze;
pub mod autopsy;
pub mod calibrate;
pub mod convert;
pub mod convert_adapter;
pub mod evaluate;
pub mod extract;
pub mod fidelity;
pub mod probe;
pub mod sanitize;
