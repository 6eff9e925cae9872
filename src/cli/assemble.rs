//! `trephine assemble`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use trephine::commands::extract::{Assembled, Assembly, Missing, MissingPart, assemble, default_memory};
use trephine::pipeline::Running;
use trephine::{Error, Result};

use crate::cli::extract::show_outcome;
use crate::cli::ui::byte_size;
use crate::cli::ui::progress_bar::Bar;
use crate::cli::ui::signal::leave_on_signal;
use crate::cli::{print, print_json, quoted, threads};

/// Makes the adapter of a run whose parts are done (`trephine extract --part`).
///
/// Checks that every module is there exactly once, whole, and of one run; where something is missing, says what and how
/// to do it. The bytes are those of a run on one machine.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The output folder that the parts share
    out: PathBuf,
    /// Do here what is missing, be it left over by parts that never came back
    #[arg(long)]
    finish: bool,
    /// Where the base lies now [default: where the parts found it]
    #[arg(long, value_name = "CHECKPOINT")]
    base: Option<String>,
    /// Where the tuned checkpoint lies now
    #[arg(long, value_name = "CHECKPOINT")]
    tuned: Option<String>,
    /// Where the served checkpoint lies now
    #[arg(long, value_name = "CHECKPOINT")]
    served: Option<String>,
    /// Peak resident memory of the whole process [default: the smaller of 2GiB and half of what is available]
    #[arg(long, value_name = "SIZE", value_parser = byte_size::parse)]
    memory: Option<u64>,
    /// Threads that compute [default: one for each processor]
    #[arg(long)]
    threads: Option<usize>,
    /// Keep each module's shard
    #[arg(long)]
    keep_shards: bool,
    /// Take parts that ran on processors with different vector instructions; the bytes may then differ from one machine's
    #[arg(long)]
    other_simd: bool,
    /// No progress
    #[arg(short, long)]
    quiet: bool,
    /// The summary, or what is missing, as JSON on stdout
    #[arg(long)]
    json: bool,
}

/// Assembles, or tells what is missing.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let running = Running {
        keep_shards: arguments.keep_shards,
        other_simd: arguments.other_simd,
        ..Running::new(threads(arguments.threads)?, arguments.memory.unwrap_or_else(default_memory))
    };
    let Arguments { out, finish, base, tuned, served, .. } = arguments;
    let bar = Bar::new(arguments.quiet);
    leave_on_signal(&bar)?;
    let assembled = assemble(&Assembly { out, finish, base, tuned, served, running }, &bar);
    bar.clear();
    match assembled? {
        Assembled::Done(outcome) => {
            if arguments.json { print_json(&outcome) } else { print(&show_outcome(&outcome)) }?;
            Ok(ExitCode::SUCCESS)
        }
        Assembled::Missing(missing) => {
            if arguments.json {
                print_json(&missing)?;
            } else {
                print(&show_missing(&missing))?;
            }
            Err(failure(&missing))
        }
    }
}

fn failure(missing: &Missing) -> Error {
    let (modules, of, compared) = (missing.modules.len(), missing.run_modules, missing.compared.len());
    let mut what = format!("the run is not finished: {modules} modules of {of} are missing");
    if compared > 0 {
        what += &format!(", and {compared} comparisons of tensors that the adapter does not hold");
    }
    let out = missing.out.to_string_lossy();
    Error::found(what).path(&missing.out).hint(format!(
        "run what is missing and assemble again, or do it here: trephine assemble {} --finish",
        quoted(&out)
    ))
}

fn show_missing(missing: &Missing) -> String {
    missing.parts.iter().map(|part| format!("# {}\n{}\n", describe(part), part.command)).collect()
}

fn describe(missing: &MissingPart) -> String {
    let which = missing.part.map_or("the run".to_owned(), |part| format!("part {part}"));
    let what = match (missing.modules, missing.compared) {
        (modules, 0) => format!("{modules} modules"),
        (modules, compared) => format!("{modules} modules and {compared} comparisons"),
    };
    let seen = match &missing.seen {
        None => "never begun".to_owned(),
        Some(seen) => {
            let heard = seen.heard.map_or(String::new(), |s| format!(", last heard from {s:.0} s ago"));
            format!("{} on {}{heard}", seen.state.word(), seen.host)
        }
    };
    format!("{which}: {what} missing ({seen})")
}
