//! How formats pack codes into words: by rows, by columns, side by side, transposed.

pub(crate) mod column_packed;
pub(crate) mod row_concat;
pub(crate) mod row_pairs;
pub(crate) mod row_part;
pub(crate) mod scaled_codes;
pub(crate) mod transposed;
pub use self::scaled_codes::ScaledGrid;
