//! `--part`: one of several parts of a run, for every command whose work can be split.

use clap::Args;
use trephine::Result;
use trephine::run::{Part, PartChoice, PartOutcome};

use crate::cli::{print, print_json, quoted};

/// Options of commands whose work can be split over machines.
#[derive(Debug, Args)]
pub struct Splitting {
    /// Do only one of several parts of the work, for example 3/16. All parts share one output folder;
    /// `trephine assemble` combines them. `auto` takes the part from the Slurm array, `auto/16` also from a
    /// Kubernetes indexed Job
    #[arg(long, value_name = "I/N", value_parser = part, help_heading = "Running")]
    part: Option<PartChoice>,
}

impl Splitting {
    /// The requested part, resolved in this process's environment.
    pub fn part(&self) -> Result<Option<Part>> {
        self.part.map(PartChoice::resolve).transpose()
    }
}

/// Parses `--part`. An argument error has no line for a hint, so the hint is appended to the message.
fn part(text: &str) -> std::result::Result<PartChoice, String> {
    text.parse().map_err(|e: trephine::Error| match e.cure() {
        Some(hint) => format!("{e}; {hint}"),
        None => e.to_string(),
    })
}

/// Prints the result of a part.
pub fn show_part(outcome: &PartOutcome, json: bool) -> Result<()> {
    if json { print_json(outcome) } else { print(&text(outcome)) }
}

fn text(outcome: &PartOutcome) -> String {
    let PartOutcome { out, part, unit, modules, done_before, run_modules, seconds, assembled } = outcome;
    if *assembled {
        return format!("part {part}: the run in {} is already assembled\n", out.display());
    }
    let here = modules - done_before;
    let before = if *done_before > 0 { format!(", {done_before} were already done") } else { String::new() };
    format!(
        "part {part}: {here} {} of {run_modules} in {seconds:.1} s{before}\n\
         when all parts are done: trephine assemble {}\n",
        unit.plural(),
        quoted(&out.to_string_lossy())
    )
}
