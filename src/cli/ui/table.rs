//! Tables for people.

use comfy_table::{CellAlignment, Table, presets};

/// A plain table with these headings; all columns but the first are right-aligned.
pub fn table<const N: usize>(headings: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(headings);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Formats a fraction with four decimals, or in scientific notation below 0.001.
pub fn number(value: f64) -> String {
    match value {
        0.0 => "0".into(),
        v if (1e-3..1e9).contains(&v.abs()) => format!("{v:.4}"),
        v => format!("{v:.2e}"),
    }
}
