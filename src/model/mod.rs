//! Decoders run out of core: one layer, one weight, one panel of its rows at a time.
//!
//! [`Decoder::of`](decoder::Decoder::of) reads the architecture from a checkpoint's config. [`Forward`] carries the
//! hidden states of many short texts through the layers: a weight is read and decoded once per chunk of texts, so
//! memory is spent on hidden states, which the caller's budget bounds, and never on weights. An [`Observer`] receives
//! the input of every linear layer; [`LowRank`] updates are added to its output without touching the weight.
//!
//! All arithmetic is in f32, with running sums in f64. How the work is cut follows from the texts and the weights'
//! shapes alone: no result depends on threads or memory.
//!
//! | file | contents |
//! |---|---|
//! | [`decoder`] | the architectures: config, rotary frequencies, names of modules |
//! | [`kernel`] | attention, norms, activations, products: slices in, slices out |
//! | [`text`] | token sequences, grouped for the passes |
//! | `hidden` | hidden states, in memory or in a scratch file |
//! | `linear` | one weight times the activations of many groups |
//! | `attention`, `mlp`, `experts`, `head` | the parts of a layer, and the output head with the loss |
//! | `forward` | the pass, layer by layer |
//! | `plan` | the memory that a pass needs, and how it is cut to fit |

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
pub use plan::{Asked, Beside, ForwardPlan, plan, refuse_below};
pub use text::{Group, Sequences};
pub use threads::run_tasks;

/// The input of one or more linear layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// The modules that it feeds, in the order of the forward pass; it is named after the first.
    pub modules: Vec<String>,
    /// The number of values in a row.
    pub width: usize,
    /// The number of rows (tokens) that will come.
    pub count: usize,
}
