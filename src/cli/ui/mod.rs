//! What the subcommands share of the terminal: progress bar, tables, signals, values of options.

pub(crate) mod allocator;
pub(crate) mod byte_size;
pub(crate) mod limits;
pub(crate) mod output;
pub(crate) mod progress_bar;
pub(crate) mod signal;
pub(crate) mod table;
pub(crate) mod text;
pub(crate) mod value_enums;
