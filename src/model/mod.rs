//! Decoders run out of core: one layer at a time, one weight at a time, one panel of its rows at a time.
//!
//! [`Decoder::of`](decoder::Decoder::of) reads what a checkpoint's config says of its architecture. [`Forward`] carries the hidden
//! states of many short texts through the layers: a weight is read and decoded once for a chunk of texts, so that memory is spent on
//! hidden states, which the caller's budget bounds, and never on weights. An [`Observer`] sees the input of every linear layer;
//! [`LowRank`] updates are added to its output without touching the weight.
//!
//! All arithmetic is in f32, sums that are kept in f64. How the work is cut follows from the texts and from the weights' shapes alone:
//! no number depends on threads or memory.
//!
//! | file | what is in it |
//! |---|---|
//! | [`decoder`] | the architectures: config, rotary frequencies, names of modules |
//! | [`kernel`] | attention, norms, activations, products: slices in, slices out |
//! | [`text`] | token sequences, grouped for the passes |
//! | `hidden` | hidden states, in memory or in a scratch file |
//! | `linear` | one weight times the activations of many groups |
//! | `attention`, `mlp`, `experts`, `head` | the parts of a layer, and the loss |
//! | `forward` | the pass, layer by layer |
//! | `plan` | what a pass needs of memory, and how it is cut to fit |

mod attention;
pub mod decoder;
mod experts;
mod forward;
mod head;
mod hidden;
pub mod kernel;
mod linear;
mod mlp;
mod plan;
pub mod text;
mod threads;

pub use forward::{Forward, Needs, Observer, Part};
pub use head::Loss;
pub use hidden::Hidden;
pub use linear::{LowRank, Updates};
pub use plan::{Asked, Beside, ForwardPlan, plan};
pub use text::{Group, Sequences};
pub use threads::run_tasks;

/// The input of one or more linear layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// The modules that it feeds, in the order of the forward pass; it bears the first one's name.
    pub modules: Vec<String>,
    /// Values of a row.
    pub width: usize,
    /// How many rows (tokens) there will be.
    pub count: usize,
}
