//! The one way to the terminal: whatever is printed passes here, and nothing in it does more than show letters.

use std::io::{self, IsTerminal, Write};

use trephine::printable::lines;

/// The words that begin a line of importance, with their colours: bold red, yellow, cyan, green.
const COLOURS: [(&str, &str); 6] = [
    ("error:", "\x1b[1;31m"),
    ("warning:", "\x1b[33m"),
    ("note:", "\x1b[36m"),
    ("hint:", "\x1b[36m"),
    ("next:", "\x1b[32m"),
    ("ok:", "\x1b[32m"),
];

/// Whether a stream shows colours: a terminal that is not dumb, unless `NO_COLOR` is set (no-color.org).
pub fn in_colour(stream: &impl IsTerminal) -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    stream.is_terminal() && !refused && !dumb
}

/// Writes text, with an escape in place of every character that is not for display. In colour, the word that begins a
/// line is coloured.
///
/// # Errors
/// What the system answers.
pub fn write(to: &mut impl Write, text: &str, colour: bool) -> io::Result<()> {
    let text = lines(text);
    if colour {
        to.write_all(coloured(&text).as_bytes())?;
    } else {
        to.write_all(text.as_bytes())?;
    }
    to.flush()
}

fn coloured(text: &str) -> String {
    let line = |line: &str| match COLOURS.iter().find(|(word, _)| line.starts_with(word)) {
        Some((word, colour)) => format!("{colour}{word}\x1b[0m{}", &line[word.len()..]),
        None => line.to_owned(),
    };
    text.split_inclusive('\n').map(line).collect()
}

/// A line on stderr. Nobody may be reading it any more (`2>&1 | head`): that is no reason to stop, as `eprintln!`
/// would.
pub fn tell(text: &str) {
    let colour = in_colour(&io::stderr());
    let _ = write(&mut io::stderr(), &format!("{text}\n"), colour);
}

/// Clears a terminal and moves to its beginning.
///
/// # Errors
/// What the system answers.
pub fn clear_screen(to: &mut impl Write) -> io::Result<()> {
    to.write_all(b"\x1b[2J\x1b[H")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_word_of_a_line_has_a_colour() {
        let mut plain = Vec::new();
        write(&mut plain, "error: no\n", false).unwrap();
        assert_eq!(plain, b"error: no\n");
        let mut told = Vec::new();
        write(&mut told, "a\nerror: error: \x1b[2J\nb", true).unwrap();
        let told = String::from_utf8(told).unwrap();
        assert!(told.starts_with("a\n\x1b[1;31merror:\x1b[0m error: "), "{told:?}");
        assert_eq!(told.matches('\x1b').count(), 2, "an escape of anybody's stays harmless: {told:?}");
    }
}
