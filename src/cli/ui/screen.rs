//! The width of the terminal, and text that fits into it.

use std::io::IsTerminal;

use comfy_table::{ColumnConstraint, Table};

/// The narrowest width that text is fitted to; below it a terminal breaks lines as it likes.
const NARROWEST: usize = 30;

/// The width to fit text into: that of the terminal on stdout, or of `COLUMNS` where it is set; `None` for a pipe or a
/// file, whose reader wants whole lines.
pub fn width() -> Option<usize> {
    let asked = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    let terminal = || terminal_size::terminal_size().map(|(width, _)| usize::from(width.0));
    let width = asked.or_else(|| std::io::stdout().is_terminal().then(terminal).flatten())?;
    Some(width.max(NARROWEST))
}

/// A table without as many of the expendable columns, in their order, as it takes to fit.
pub fn fitted(table: Table, expendable: &[usize]) -> String {
    fitted_to(table, expendable, width())
}

fn fitted_to(mut table: Table, expendable: &[usize], width: Option<usize>) -> String {
    let too_wide = |table: &Table| {
        let widest = table.lines().map(|line| line.trim_end().chars().count()).max().unwrap_or(0);
        width.is_some_and(|width| widest > width)
    };
    for &column in expendable {
        if !too_wide(&table) {
            break;
        }
        if let Some(column) = table.column_mut(column) {
            column.set_constraint(ColumnConstraint::Hidden);
        }
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// A paragraph broken between words, each line after the first indented, with a newline at the end.
pub fn wrapped(text: &str, indent: usize) -> String {
    wrapped_to(text, indent, width())
}

fn wrapped_to(text: &str, indent: usize, width: Option<usize>) -> String {
    let Some(width) = width else { return format!("{text}\n") };
    let (mut lines, mut line) = (String::new(), String::new());
    for word in text.split(' ') {
        let length = line.chars().count() + 1 + word.chars().count();
        if length > width && !line.trim().is_empty() {
            lines += line.trim_end();
            lines.push('\n');
            line = " ".repeat(indent);
        } else if !line.is_empty() {
            line.push(' ');
        }
        line += word;
    }
    lines + line.trim_end() + "\n"
}

/// Lines of a word and what is said about it, aligned.
pub fn facts(facts: &[(&str, String)]) -> String {
    let indent = 2 + facts.iter().map(|(word, _)| word.len()).max().unwrap_or(0);
    facts.iter().map(|(word, text)| wrapped(&format!("{word:indent$}{text}"), indent)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::ui::table::table;

    #[test]
    fn paragraphs_break_between_words() {
        let text = "note: the quick brown fox jumps over the lazy dog";
        let lines = wrapped_to(text, 6, Some(30));
        assert_eq!(lines, "note: the quick brown fox\n      jumps over the lazy dog\n");
        assert_eq!(wrapped_to(text, 6, None), format!("{text}\n"));
        let word = "w".repeat(50);
        assert_eq!(wrapped_to(&format!("a {word} b"), 2, Some(30)), format!("a\n  {word}\n  b\n"));
        assert_eq!(wrapped_to("size  1 MiB", 6, Some(30)), "size  1 MiB\n", "spaces that align stay");
    }

    #[test]
    fn tables_lose_columns_not_words() {
        let rows = || {
            let mut rows = table(["kind", "modules", "error", "captured"]);
            rows.add_row(["down_proj", "12", "0.1234", "12.34 %"]);
            rows
        };
        assert_eq!(fitted_to(rows(), &[2, 1], None).lines().next().unwrap().split_whitespace().count(), 4);
        let narrow = fitted_to(rows(), &[2, 1], Some(36));
        assert!(!narrow.contains("error") && narrow.contains("captured"), "{narrow}");
        let narrower = fitted_to(rows(), &[2, 1], Some(26));
        assert!(!narrower.contains("modules") && narrower.lines().all(|line| line.len() <= 26), "{narrower}");
    }
}
