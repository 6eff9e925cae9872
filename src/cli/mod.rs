//! The command line: one file per subcommand, which turns arguments into library options and nothing more. Progress
//! bars and tables exist only here. Output that can be piped goes to stdout, everything else to stderr.

pub(crate) mod analyze;
pub(crate) mod assemble;
pub(crate) mod autopsy;
pub(crate) mod calibrate;
pub(crate) mod completions;
pub(crate) mod convert_adapter;
pub(crate) mod dequantize;
pub(crate) mod doctor;
pub(crate) mod evaluate;
pub(crate) mod extract;
pub(crate) mod fidelity;
pub(crate) mod help;
#[cfg(feature = "remote")]
pub(crate) mod link;
pub(crate) mod man;
pub(crate) mod merge;
pub(crate) mod probe;
pub(crate) mod report;
pub(crate) mod sanitize;
pub(crate) mod splitting;
pub(crate) mod status;
pub(crate) mod ui;
pub(crate) mod verify;

use std::io;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use trephine::printable::one_line;
use trephine::{Error, Result};

use crate::cli::ui::limits;
use crate::cli::ui::output;
use crate::cli::ui::output::tell;

/// Extracts a LoRA adapter from the difference between two checkpoints that are far larger than memory.
#[derive(Debug, Parser)]
#[command(name = "trephine", version, about)]
pub struct ProgramArgs {
    #[command(subcommand)]
    command: Command,
    #[cfg(feature = "remote")]
    #[command(flatten)]
    link: crate::cli::link::LinkArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    Extract(Box<extract::ExtractArgs>),
    Doctor(doctor::DoctorArgs),
    Probe(probe::ProbeArgs),
    Autopsy(Box<autopsy::AutopsyArgs>),
    Assemble(assemble::AssembleArgs),
    Status(status::StatusArgs),
    Analyze(Box<analyze::AnalyzeArgs>),
    Fidelity(fidelity::FidelityArgs),
    Calibrate(Box<calibrate::CalibrateArgs>),
    Evaluate(Box<evaluate::EvaluateArgs>),
    Report(report::ReportArgs),
    Dequantize(dequantize::DequantizeArgs),
    Merge(merge::MergeArgs),
    Verify(verify::VerifyArgs),
    Sanitize(Box<sanitize::SanitizeArgs>),
    ConvertAdapter(convert_adapter::ConvertAdapterArgs),
    Completions(completions::CompletionsArgs),
    Man(man::ManArgs),
}

/// Runs a subcommand.
pub fn run(arguments: ProgramArgs) -> Result<ExitCode> {
    limits::limit_vectors()?;
    #[cfg(feature = "remote")]
    arguments.link.configure();
    let result = dispatch(arguments.command);
    #[cfg(feature = "remote")]
    crate::cli::link::tell_traffic(&result);
    result
}

fn dispatch(command: Command) -> Result<ExitCode> {
    match command {
        Command::Extract(arguments) => extract::run(*arguments),
        Command::Doctor(arguments) => doctor::run(arguments),
        Command::Probe(arguments) => probe::run(arguments),
        Command::Autopsy(arguments) => autopsy::run(*arguments),
        Command::Assemble(arguments) => assemble::run(arguments),
        Command::Status(arguments) => status::run(arguments),
        Command::Analyze(arguments) => analyze::run(*arguments),
        Command::Fidelity(arguments) => fidelity::run(arguments),
        Command::Calibrate(arguments) => calibrate::run(*arguments),
        Command::Evaluate(arguments) => evaluate::run(*arguments),
        Command::Report(arguments) => report::run(arguments),
        Command::Dequantize(arguments) => dequantize::run(arguments),
        Command::Merge(arguments) => merge::run(arguments),
        Command::Verify(arguments) => verify::run(arguments),
        Command::Sanitize(arguments) => sanitize::run(*arguments),
        Command::ConvertAdapter(arguments) => convert_adapter::run(arguments),
        Command::Completions(arguments) => completions::run(&arguments),
        Command::Man(arguments) => man::run(&arguments),
    }
}

/// Prints an error to stderr, with its hint on a separate line, and returns the exit code.
pub fn fail(error: &Error) -> ExitCode {
    tell(&format!("error: {error}"));
    if let Some(hint) = error.cure() {
        tell(&format!("hint: {}", one_line(hint)));
    }
    ExitCode::from(error.kind().exit_code())
}

/// The number of compute threads: as requested, or one per processor.
fn threads(asked: Option<usize>) -> Result<usize> {
    const MOST: usize = 4096;
    match asked {
        Some(0) => Err(Error::decide("0 threads cannot compute anything").hint("give --threads 1 or more")),
        Some(threads) if threads > MOST => Err(Error::decide(format!("{threads} threads is too many"))
            .hint(format!("give --threads {MOST} or fewer, at best one per processor"))),
        Some(threads) => Ok(threads),
        None => Ok(std::thread::available_parallelism().map_or(1, usize::from)),
    }
}

/// Quotes a word for a shell.
fn quoted(word: &str) -> String {
    shlex::try_quote(word).map_or_else(|_| word.to_owned(), |quoted| quoted.into_owned())
}

/// Writes to stdout. A reader that has gone away (`| head`) is not an error.
fn print(text: &str) -> Result<()> {
    print_on(text).map(drop)
}

/// The same, and whether anybody still reads.
fn print_on(text: &str) -> Result<bool> {
    let colour = output::in_colour(&io::stdout());
    match output::write(&mut io::stdout().lock(), text, colour) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(Error::unexpected("cannot write to standard output").because(e)),
    }
}

/// The version of JSON outputs that have none of their own.
const JSON_VERSION: u32 = 1;

/// Prints any value as pretty JSON to stdout, with a `version` if it is an object without one: src/cli/json.md.
fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::unexpected("cannot write the result as JSON").because(e))?;
    print(&(versioned(text) + "\n"))
}

/// JSON whose top level has a version. Two spaces before a key stand only at the top level.
fn versioned(text: String) -> String {
    match text.strip_prefix("{\n") {
        Some(rest) if !text.contains("\n  \"version\": ") => {
            format!("{{\n  \"version\": {JSON_VERSION},\n{rest}")
        }
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::versioned;

    #[test]
    fn only_an_object_without_a_version_gets_one() {
        let pretty = |value: serde_json::Value| serde_json::to_string_pretty(&value).unwrap();
        let parsed = |value| serde_json::from_str::<serde_json::Value>(&versioned(pretty(value))).unwrap();
        assert_eq!(
            parsed(serde_json::json!({"a": {"version": 7}})),
            serde_json::json!({"version": 1, "a": {"version": 7}})
        );
        assert_eq!(
            parsed(serde_json::json!({"version": 2, "a": 1})),
            serde_json::json!({"version": 2, "a": 1})
        );
        assert_eq!(parsed(serde_json::json!([1])), serde_json::json!([1]));
    }
}
