//! Low-rank factorization of a matrix that is seen in panels of rows. Pure: no file, no log.

use std::ops::Range;

use faer::MatRef;

use crate::Result;

/// A matrix `[rows, cols]` in f32 that is visited in panels of consecutive rows, as often as wished.
///
/// The same rows give the same bits at every visit. Several threads may visit at once.
pub trait Panels: Sync {
    /// Number of rows.
    fn rows(&self) -> usize;

    /// Number of columns.
    fn cols(&self) -> usize;

    /// Shows `rows` (row-major, `[rows.len(), cols]`) to `look`.
    ///
    /// # Errors
    /// What the source of the rows met (reading, decoding), or what `look` returned.
    fn visit(&self, rows: Range<usize>, look: &mut dyn FnMut(MatRef<'_, f32>) -> Result<()>) -> Result<()>;
}
