//! Factorization in the norm of a layer's outputs.
//!
//! An error `E` of a weight `[m, n]` changes the layer's outputs by `E·x`. Over inputs `x` with the second moments `C
//! = E[x·x^T]` the mean square of that is `||E·C^½||^2`. Among all `B·A` of rank `k` the least `||(D - B·A)·C^½||` has
//! `B = U`, the leading eigenvectors of `D·C·D^T`, and `A = U^T·D`: neither a root nor an inverse of `C` is needed,
//! and directions that no input has do no harm (Zhang et al., *QERA: an analytical framework for quantization error
//! reconstruction*, 2024).
//!
//! With any `R`, `R^T·R = C`, those are the left singular vectors of `D·R^T`, which is never formed where that would
//! cost more than its products with thin blocks: block Krylov goes on as it is, each product with `D` followed or
//! preceded by one with `R` ([`Root`]: the sketch of a calibration, or its diagonal).
//!
//! 1. [`directions`]: `B`, to be rounded to the type that it is stored in;
//! 2. [`project`]: the best `A` for that very `B`, so that only the rounding of `A` costs anything;
//! 3. [`Projected::errors`]: both errors of what is stored, of the weights and of the outputs.

pub(crate) mod cost;
pub(crate) mod directions;
pub(crate) mod operator;
pub(crate) mod project;
pub(crate) mod root;

pub use self::cost::{flops, method, workspace};
pub use self::directions::{Directions, directions};
pub use self::project::{Errors, Projected, project};
pub use self::root::Root;
