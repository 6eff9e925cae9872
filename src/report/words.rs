//! Formats numbers and names for people.

use crate::printable::is_hidden;

/// Formats a number with three or four significant digits.
pub fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        v if !(1e-3..1e6).contains(&v) => format!("{value:.2e}"),
        v if v >= 1000.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// Formats a share in percent; never rounds it up to 100 % or down to 0 %.
pub fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    match percent {
        p if (99.95..100.0).contains(&p) => format!("{:.3} %", p.min(99.999)),
        p if p > 0.0 && p < 0.05 => format!("{p:.1e} %"),
        p => format!("{p:.1} %"),
    }
}

/// `1 module`, `2 modules`.
pub fn count(count: usize, one: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") }
}

/// Makes a name safe to show: on one line, without characters that reorder or hide others, and of limited length.
pub fn clean(name: &str) -> String {
    shorten(&clean_text(name), 120)
}

/// Makes a whole sentence safe to show.
pub fn clean_text(text: &str) -> String {
    const LONGEST: usize = 2000;
    shorten(&text.chars().map(|c| if is_hidden(c) { '\u{fffd}' } else { c }).collect::<String>(), LONGEST)
}

/// Replaces the middle of `text` with an ellipsis if it has more than `longest` characters.
pub fn shorten(text: &str, longest: usize) -> String {
    let letters: Vec<char> = text.chars().collect();
    if letters.len() <= longest {
        return text.to_owned();
    }
    let (head, tail) = (longest / 2, longest - longest / 2 - 1);
    letters[..head].iter().chain(['…'].iter()).chain(&letters[letters.len() - tail..]).collect()
}

/// The median of `values`, the higher of the two middle ones; `None` if there are none.
pub fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_true() {
        let numbers = [0.0, 0.123_456, 1.234_5, 12.345, 1234.5, 1.5e7, 0.000_123, -0.5].map(number);
        assert_eq!(numbers, ["0", "0.1235", "1.23", "12.3", "1234", "1.50e7", "1.23e-4", "-0.5000"]);
        let shares = [0.0, 0.971, 1.0, 0.999_999_9, 0.999_7, 0.000_01].map(percent);
        assert_eq!(shares, ["0.0 %", "97.1 %", "100.0 %", "99.999 %", "99.970 %", "1.0e-3 %"]);
        assert_eq!((shorten("abcdefghij", 5), shorten("abcde", 5)), ("ab…ij".into(), "abcde".into()));
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), Some(2.0));
    }

    #[test]
    fn names_are_shown_without_tricks() {
        assert_eq!(clean("a\u{202e}b\nc\u{0}"), "a\u{fffd}b\u{fffd}c\u{fffd}");
        assert_eq!(clean(&"x".repeat(1000)).chars().count(), 120);
    }
}
