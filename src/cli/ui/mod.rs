//! What the subcommands share: progress bar, tables, signals, option values.

pub(crate) mod allocator;
pub(crate) mod byte_size;
pub(crate) mod limits;
pub(crate) mod output;
pub(crate) mod progress_bar;
pub(crate) mod rank;
pub(crate) mod screen;
pub(crate) mod signal;
pub(crate) mod table;
pub(crate) mod text;
pub(crate) mod value_enums;
pub(crate) mod words;
pub(crate) mod work_clock;
