//! The help of the program: commands in groups, and examples for each.

use std::process::ExitCode;

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, CommandFactory, Error, FromArgMatches};

use crate::cli::ProgramArgs;
use crate::cli::ui::output::tell;

/// The commands by what they are for. Every command is in one group.
const GROUPS: [(&str, &[&str]); 6] = [
    ("Extract", &["extract"]),
    ("Check", &["doctor", "probe", "autopsy", "verify"]),
    ("Measure", &["calibrate", "evaluate", "analyze", "fidelity", "report"]),
    ("Convert", &["dequantize", "merge", "sanitize", "convert-adapter"]),
    ("Cluster", &["status", "assemble"]),
    ("Shell", &["completions", "man"]),
];

pub const EXIT_CODES: &str = "Exit codes:
  0   done
  1   an unexpected error, for example a full disk
  2   wrong usage, or a decision that is yours (memory limit too small, changed options, locked folder)
  3   bad input
  4   a check found something, for example missing parts
  75  stopped by a signal: run the same command again to resume";

/// Examples of the program, and of each command.
const EXAMPLES: [(&str, &[&str]); 19] = [
    (
        "",
        &[
            "trephine extract --base Qwen/Qwen3-32B-FP8 --tuned ./tuned --out adapter --rank 128",
            "trephine verify adapter",
            "trephine probe Qwen/Qwen3-32B-FP8",
        ],
    ),
    (
        "extract",
        &[
            "trephine extract --base Qwen/Qwen3-32B --tuned ./tuned --out adapter --rank 128",
            "trephine extract --base Qwen/Qwen3-32B-FP8 --tuned ./tuned --out adapter --memory 4GiB --dry-run",
        ],
    ),
    ("doctor", &["trephine doctor", "trephine doctor --base Qwen/Qwen3-32B --tuned ./tuned --out adapter"]),
    ("probe", &["trephine probe Qwen/Qwen3-32B-FP8", "trephine probe adapter --base Qwen/Qwen3-32B"]),
    (
        "autopsy",
        &["trephine autopsy ./dequantized", "trephine autopsy ./dequantized --against Qwen/Qwen3-32B-FP8"],
    ),
    ("verify", &["trephine verify adapter", "trephine verify adapter --base Qwen/Qwen3-32B --tuned ./tuned"]),
    (
        "calibrate",
        &[
            "trephine calibrate --model ./tuned --out calibration",
            "trephine calibrate --model ./tuned --text chats.jsonl --tokens 65536 --out calibration",
        ],
    ),
    (
        "evaluate",
        &[
            "trephine evaluate --model Qwen/Qwen3-32B-FP8 --adapter adapter --text held-out.txt",
            "trephine evaluate --model ./tuned --text held-out.txt",
        ],
    ),
    (
        "analyze",
        &[
            "trephine analyze --base DENSE --base-quantized FP8 --tuned ./tuned --out analysis --rank 128",
            "trephine report analysis --out report.html",
        ],
    ),
    (
        "fidelity",
        &[
            "trephine fidelity --served Qwen/Qwen3-32B-FP8 --tuned ./tuned --adapter adapter",
            "trephine fidelity --served FP8 --tuned ./tuned --adapter a --adapter b --out fidelity",
        ],
    ),
    ("report", &["trephine report adapter --out report.html", "trephine report adapter analysis fidelity"]),
    (
        "dequantize",
        &[
            "trephine dequantize Qwen/Qwen3-32B-FP8 --out dense",
            "trephine dequantize ./quantized --out dense --dtype f16 --max-shard-size 2GB",
        ],
    ),
    (
        "merge",
        &[
            "trephine merge --base Qwen/Qwen3-32B --adapter adapter --out merged",
            "trephine merge --base Qwen/Qwen3-32B-FP8 --adapter adapter --out merged --fp8",
        ],
    ),
    (
        "sanitize",
        &[
            "trephine sanitize their-adapter --out adapter --for vllm",
            "trephine sanitize adapter --out smaller --max-rank 32",
        ],
    ),
    (
        "convert-adapter",
        &[
            "trephine convert-adapter adapter --format gguf --base Qwen/Qwen3-32B --out adapter-gguf",
            "trephine convert-adapter adapter --format mlx --out adapter-mlx",
        ],
    ),
    ("status", &["trephine status out", "trephine status out --watch"]),
    ("assemble", &["trephine assemble out", "trephine assemble out --finish"]),
    (
        "completions",
        &[
            "trephine completions bash > ~/.local/share/bash-completion/completions/trephine",
            "trephine completions fish > ~/.config/fish/completions/trephine.fish",
        ],
    ),
    ("man", &["trephine man --out ~/.local/share/man/man1", "trephine man | man -l -"]),
];

/// The examples of a command; of the program under the empty name.
pub fn examples(command: &str) -> &'static [&'static str] {
    EXAMPLES.iter().find(|(name, _)| *name == command).map_or(&[], |(_, lines)| lines)
}

/// The commands that are in the same group.
pub fn related(command: &str) -> Vec<&'static str> {
    let group = GROUPS.iter().find(|(_, names)| names.contains(&command));
    group.into_iter().flat_map(|(_, names)| names.iter().copied()).filter(|name| *name != command).collect()
}

/// The program's command line, with groups and examples.
pub fn program() -> Command {
    let mut program = ProgramArgs::command();
    let template = format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{}Options:\n{{options}}{{after-help}}",
        listing(&program)
    );
    program = program.help_template(StyledStr::from(template));
    let names: Vec<String> = program.get_subcommands().map(|command| command.get_name().to_owned()).collect();
    for name in names {
        program = program.mut_subcommand(&name, |command| command.after_help(example_lines(&name)));
    }
    program.after_help(format!("{}\n\n{EXIT_CODES}", example_lines("")))
}

fn example_lines(command: &str) -> String {
    let lines: Vec<String> = examples(command).iter().map(|line| format!("  {line}")).collect();
    format!("Examples:\n{}", lines.join("\n"))
}

/// All commands in their groups, with what each is for.
fn listing(program: &Command) -> String {
    let about = |name: &str| {
        let command = program.get_subcommands().find(|command| command.get_name() == name);
        command.and_then(Command::get_about).map(ToString::to_string)
    };
    let mut text = String::new();
    for (group, names) in GROUPS {
        text += &format!("{group}:\n");
        for (name, about) in names.iter().filter_map(|name| Some((name, about(name)?))) {
            text += &format!("  {name:15}  {}\n", about.trim_end_matches('.'));
        }
        text.push('\n');
    }
    text
}

/// The parsed command line, or the exit code once its error has been printed.
pub fn parse() -> Result<ProgramArgs, ExitCode> {
    let parsed = program().try_get_matches().and_then(|found| ProgramArgs::from_arg_matches(&found));
    parsed.map_err(|error| {
        let hint = hint(&error);
        let code = error.exit_code();
        let _ = error.print();
        if let Some(hint) = hint {
            tell(&format!("\nhint: {hint}"));
        }
        ExitCode::from(u8::try_from(code).unwrap_or(2))
    })
}

/// What helps with a wrong command line, where clap does not say it.
fn hint(error: &Error) -> Option<String> {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    match error.kind() {
        ErrorKind::UnknownArgument if !text(ContextKind::InvalidArg)?.starts_with('-') => {
            let command = std::env::args().nth(1)?;
            let example = examples(&command).first()?;
            Some(format!("checkpoints are given by name here, for example:\n  {example}"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_in_one_group_and_has_two_examples() {
        let program = ProgramArgs::command();
        for command in program.get_subcommands() {
            let name = command.get_name();
            let groups = GROUPS.iter().filter(|(_, names)| names.contains(&name)).count();
            assert_eq!(groups, 1, "{name}");
            assert_eq!(examples(name).len(), 2, "{name}");
        }
        for (_, names) in GROUPS {
            assert!(names.iter().all(|name| program.find_subcommand(name).is_some()), "{names:?}");
        }
    }

    #[test]
    fn every_example_parses() {
        for line in EXAMPLES.iter().flat_map(|(_, lines)| *lines) {
            let words: Vec<String> = shlex::split(line).unwrap();
            let end = words.iter().position(|word| word == ">" || word == "|").unwrap_or(words.len());
            let parsed = program().try_get_matches_from(&words[..end]);
            assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
        }
    }
}
