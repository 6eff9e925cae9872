//! `trephine verify`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use trephine::commands::extract::{AdapterVerification, Content, default_memory, verify};
use trephine::pipeline::RunOptions;
use trephine::{Error, Result};

use crate::cli::ui::byte_size;
use crate::cli::ui::progress_bar::Bar;
use crate::cli::{print, print_json, threads};

/// Checks a folder against its B3SUMS file; given both checkpoints, also checks an adapter's content against them.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// A folder with a B3SUMS file
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// The base that the adapter was extracted from
    #[arg(long, value_name = "CHECKPOINT", requires = "tuned")]
    base: Option<String>,
    /// The tuned checkpoint that it was extracted from
    #[arg(long, value_name = "CHECKPOINT", requires = "base")]
    tuned: Option<String>,
    /// Limit on the peak resident memory of the whole process
    /// [default: the smaller of 2GiB and half the available memory]
    #[arg(long, value_name = "SIZE", value_parser = byte_size::parse)]
    memory: Option<u64>,
    /// Number of compute threads [default: one per processor]
    #[arg(long)]
    threads: Option<usize>,
    /// Do not show progress
    #[arg(short, long)]
    quiet: bool,
    /// Print the findings as JSON to stdout
    #[arg(long)]
    json: bool,
}

/// Checks, and prints every finding.
pub fn run(arguments: VerifyArgs) -> Result<ExitCode> {
    let content = arguments.base.clone().zip(arguments.tuned.clone());
    let content = content.map(|(base, tuned)| Content { base, tuned });
    let running =
        RunOptions::new(threads(arguments.threads)?, arguments.memory.unwrap_or_else(default_memory));
    let bar = Bar::new(arguments.quiet);
    let verification = verify(&arguments.folder, content.as_ref(), &running, &bar);
    bar.clear();
    let verification = verification?;
    if arguments.json {
        print_json(&verification)?;
    } else {
        print(&show(&verification))?;
    }
    match verification.failures() {
        0 => Ok(ExitCode::SUCCESS),
        1 => Err(Error::found("verification found 1 failure").path(&arguments.folder)),
        count => Err(Error::found(format!("verification found {count} failures")).path(&arguments.folder)),
    }
}

fn show(verification: &AdapterVerification) -> String {
    let mut text = verification.to_string();
    text += &format!("{} files, {}", verification.files, byte_size::show(verification.bytes));
    if verification.modules > 0 {
        text += &format!(", {} modules against their checkpoints", verification.modules);
    }
    text + if verification.failures() == 0 { ": all as recorded\n" } else { "\n" }
}
