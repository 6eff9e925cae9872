//! The arithmetic of a decoder on [`Activations`], which are `[features, tokens]` with one row per feature: a head is a
//! run of rows, and operations on every token run along memory.

mod activate;
mod attend;
mod matrix;
mod norm;
mod product;
mod rotate;

pub use activate::gate;
pub use attend::{Heads, attend, scratch as attend_scratch};
pub use matrix::Activations;
pub use norm::rms_norm;
pub use product::{TILE, add_product, product};
pub use rotate::{Angles, rotate};
