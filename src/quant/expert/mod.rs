//! Mixture-of-experts weights: stacks of matrices in one tensor, and one expert as a slice of such a stack.

pub(crate) mod layout;
pub(crate) mod slice;
pub(crate) mod stack;
pub(crate) mod whole_stack;
pub use self::layout::{ExpertForm, Experts};
