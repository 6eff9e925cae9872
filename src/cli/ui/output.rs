//! The one way to the terminal: whatever is printed passes here, and nothing in it does more than show letters.

use std::io::{self, Write};

use trephine::printable::lines;

/// Writes text, with an escape in place of every character that is not for display.
///
/// # Errors
/// What the system answers.
pub fn write(to: &mut impl Write, text: &str) -> io::Result<()> {
    to.write_all(lines(text).as_bytes())?;
    to.flush()
}

/// A line on stderr. Nobody may be reading it any more (`2>&1 | head`): that is no reason to stop, as `eprintln!`
/// would.
pub fn tell(text: &str) {
    let _ = write(&mut io::stderr(), &format!("{text}\n"));
}

/// Clears a terminal and moves to its beginning.
///
/// # Errors
/// What the system answers.
pub fn clear_screen(to: &mut impl Write) -> io::Result<()> {
    to.write_all(b"\x1b[2J\x1b[H")
}
