//! Names in a model card: as words of a shell, as texts of Python, as prose and code of Markdown. A name is
//! anybody's, and what stands in a card is copied into terminals.

use crate::printable::{is_hidden, one_line};

/// Whether `name` can be a repository of the hub, `owner/name`.
pub(super) fn is_hub_name(name: &str) -> bool {
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['.', '-'])
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    name.split_once('/').is_some_and(|(owner, name)| plain(owner) && plain(name))
}

/// What a program can load that is recorded as `name`: a name of the hub is one; of a path only the last part is known.
pub(super) fn loadable(name: &str) -> String {
    if is_hub_name(name) { name.to_owned() } else { format!("PATH_OF/{name}") }
}

/// One word of a POSIX shell's command line, on one line. What is not for display stands there as an escape, for a
/// name that has it cannot be copied from a page.
pub(super) fn shell_word(word: &str) -> String {
    let word = one_line(word);
    // Only a null byte cannot be quoted, and that is an escape by now.
    let quoted = shlex::try_quote(&word).map_or_else(|_| "PATH".to_owned(), |quoted| quoted.into_owned());
    // What begins as an option is taken for one, quoted or not.
    if word.starts_with('-') { format!("./{quoted}") } else { quoted }
}

/// A text of Python, in double quotes.
pub(super) fn python_text(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if is_hidden(c) => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out + "\""
}

/// A name in running text or in a cell of a table: nothing in it is markup.
pub(super) fn prose(name: &str) -> String {
    let mut out = String::new();
    for c in one_line(name).chars() {
        if matches!(c, '<' | '>' | '[' | ']' | '`' | '*' | '|' | '\\' | '&' | '~') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// A name as code within a line, between as many backticks as it takes.
pub(super) fn code(name: &str) -> String {
    let name = one_line(name);
    let longest = name.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let marks = "`".repeat(longest + 1);
    // A name that begins or ends with a backtick needs room beside it.
    let room = if name.starts_with('`') || name.ends_with('`') { " " } else { "" };
    format!("{marks}{room}{name}{room}{marks}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_takes_one_word_and_runs_nothing() {
        for name in
            ["a b; touch c #", "$(touch c)", "`touch c`", "it's", "a\"b", "*", "-rf", "a\nb", "~", "!x", ""]
        {
            let line = format!("printf %s {}", shell_word(name));
            let ran = std::process::Command::new("sh").args(["-c", &line]).output().unwrap();
            let expected = if name == "-rf" { "./-rf".to_owned() } else { one_line(name).into_owned() };
            assert_eq!(String::from_utf8(ran.stdout).unwrap(), expected, "{line}");
        }
        assert_eq!(shell_word("Qwen/Qwen3-32B"), "Qwen/Qwen3-32B");
    }

    #[test]
    fn python_and_markdown_have_their_own_quotes() {
        assert_eq!(python_text("a\"b\\c\n\u{1b}\u{9b}é"), r#""a\"b\\c\n\u001b\u009bé""#);
        assert_eq!(code("plain"), "`plain`");
        assert_eq!(code("a``b`"), "``` a``b` ```");
        assert_eq!(code("a\n```\nb"), "````a\\n```\\nb````");
        assert_eq!(prose("a|b [x](y) <script>"), "a\\|b \\[x\\](y) \\<script\\>");
        assert_eq!(loadable("Qwen3-FP8"), "PATH_OF/Qwen3-FP8");
        assert_eq!(loadable("Qwen/Qwen3-FP8"), "Qwen/Qwen3-FP8");
        assert!(
            !is_hub_name("../x") && !is_hub_name("a/b/c") && !is_hub_name("-a/b") && !is_hub_name("a/b\nc")
        );
    }
}
