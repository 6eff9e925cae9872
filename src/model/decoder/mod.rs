//! The description of a decoder: sizes, variants, and the names of its modules, read from a checkpoint's config.
//!
//! The reference is transformers (5.x). Configs of every age are read: `rope_parameters`, or `rope_theta` and
//! `rope_scaling`; `layer_types`, or the older rules for which layers have a sliding window.

mod config;
mod names;
mod rotary;

pub use config::{Activation, Decoder, Mixture, NormStyle};
pub use names::Names;
pub use rotary::Rotary;
