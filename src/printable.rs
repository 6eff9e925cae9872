//! Text that is fit to be printed: what a name holds may not move the cursor, hide letters or begin a line of its own.

use std::borrow::Cow;
use std::fmt::Write;

/// Whether a character is not for display: a control character, or one that turns or hides others.
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
        || matches!(c, '\u{feff}' | '\u{fffe}' | '\u{ffff}')
}

/// The text with every hidden character as an escape, ends of lines and tabs included.
pub fn one_line(text: &str) -> Cow<'_, str> {
    escaped(text, is_hidden)
}

/// The text with every hidden character as an escape, but for ends of lines and tabs. JSON stays the JSON that it was.
pub fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| is_hidden(c) && !matches!(c, '\n' | '\t'))
}

/// Escapes as JSON has them: all of these characters have four digits.
fn escaped(text: &str, is_meant: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_meant) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            c if !is_meant(c) => out.push(c),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_moves_or_hides_is_left() {
        assert_eq!(one_line("a\n\x1b[2J\u{9b}b\u{202e}\t"), "a\\n\\u001b[2J\\u009bb\\u202e\\t");
        assert_eq!(lines("a\n\x7fb\tc"), "a\n\\u007fb\tc");
        assert!(matches!(one_line("Überprüfung ≤ 3 · 日本"), Cow::Borrowed(_)));
        let json = serde_json::to_string("a\n\u{9b}\u{7f}\u{2028}").unwrap();
        assert_eq!(serde_json::from_str::<String>(&lines(&json)).unwrap(), "a\n\u{9b}\u{7f}\u{2028}");
    }
}
