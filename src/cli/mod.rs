//! The command line: one file per subcommand, which turns arguments into library options and nothing more. Progress
//! bars and tables exist only here. Output that can be piped goes to stdout, everything else to stderr.

pub(crate) mod analyze;
pub(crate) mod assemble;
pub(crate) mod autopsy;
pub(crate) mod calibrate;
pub(crate) mod completions;
pub(crate) mod dequantize;
pub(crate) mod evaluate;
pub(crate) mod extract;
pub(crate) mod fidelity;
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

use crate::cli::ui::output;
use crate::cli::ui::output::tell;

/// Extracts a LoRA adapter from the difference between two checkpoints that are far larger than memory.
#[derive(Debug, Parser)]
#[command(version, about, after_help = EXIT_CODES)]
pub struct ProgramArgs {
    #[command(subcommand)]
    command: Command,
    #[cfg(feature = "remote")]
    #[command(flatten)]
    link: crate::cli::ui::link::LinkArgs,
}

const EXIT_CODES: &str = "Exit codes:
  0   done
  1   an unexpected error, for example a full disk
  2   wrong usage, or a decision that is yours (memory limit too small, changed options, locked folder)
  3   bad input
  4   a check found something, for example missing parts
  75  stopped by a signal: run the same command again to resume";

#[derive(Debug, Subcommand)]
enum Command {
    Extract(Box<extract::ExtractArgs>),
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
    Completions(completions::CompletionsArgs),
    Man(man::ManArgs),
}

/// Runs a subcommand.
pub fn run(arguments: ProgramArgs) -> Result<ExitCode> {
    #[cfg(feature = "remote")]
    arguments.link.configure();
    let result = dispatch(arguments.command);
    #[cfg(feature = "remote")]
    crate::cli::ui::link::tell_traffic(&result);
    result
}

fn dispatch(command: Command) -> Result<ExitCode> {
    match command {
        Command::Extract(arguments) => extract::run(*arguments),
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
    match output::write(&mut io::stdout().lock(), text) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(Error::unexpected("cannot write to standard output").because(e)),
    }
}

/// Prints any value as pretty JSON to stdout.
fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::unexpected("cannot write the result as JSON").because(e))?;
    print(&(text + "\n"))
}
