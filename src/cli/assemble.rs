//! `trephine assemble`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use trephine::commands::extract::{self, default_memory};
use trephine::commands::{analyze, convert};
use trephine::delta::Side;
use trephine::pipeline::RunOptions;
use trephine::run::parts::assemble::recorded;
use trephine::run::{Assembled, Assembly, Missing, MissingPart, UnitKind};
use trephine::{Error, Result};

use crate::cli::analyze::show_analysis;
use crate::cli::dequantize::show_conversion;
use crate::cli::extract::summary::show_outcome;
use crate::cli::ui::byte_size;
use crate::cli::ui::progress_bar::Bar;
use crate::cli::ui::signal::leave_on_signal;
use crate::cli::{print, print_json, quoted, threads};

/// Combines the finished parts of a run into its output (`--part` of extract, dequantize, merge or analyze).
///
/// Checks that every module or file is there exactly once, complete, and from one run. If something is missing, says
/// what it is and how to do it. The output has the same bytes as that of a run on one machine.
#[derive(Debug, Args)]
pub struct AssembleArgs {
    /// The output folder that the parts share
    #[arg(value_name = "DIR")]
    out: PathBuf,
    /// Do the missing work here, for example that of parts that never finished
    #[arg(long)]
    finish: bool,
    #[command(flatten)]
    places: Places,
    /// Limit on the peak resident memory of the whole process
    /// [default: the smaller of 2GiB and half the available memory]
    #[arg(long, value_name = "SIZE", value_parser = byte_size::parse)]
    memory: Option<u64>,
    /// Number of compute threads [default: one per processor]
    #[arg(long)]
    threads: Option<usize>,
    /// Keep each module's shard after the adapter is assembled
    #[arg(long)]
    keep_shards: bool,
    /// Accept parts that ran on processors with different vector instructions; the bytes may then differ from those of
    /// one machine
    #[arg(long)]
    other_simd: bool,
    /// Do not show progress
    #[arg(short, long)]
    quiet: bool,
    /// Print the summary, or what is missing, as JSON to stdout
    #[arg(long)]
    json: bool,
}

/// Where the inputs are now, if they have moved since the parts ran.
#[derive(Debug, Args)]
struct Places {
    /// Where the base is now [default, as for all inputs: where the parts found it]
    #[arg(long, value_name = "CHECKPOINT", help_heading = "Inputs")]
    base: Option<String>,
    /// Where the tuned checkpoint is now
    #[arg(long, value_name = "CHECKPOINT", help_heading = "Inputs")]
    tuned: Option<String>,
    /// Where the served checkpoint is now
    #[arg(long, value_name = "CHECKPOINT", help_heading = "Inputs")]
    served: Option<String>,
    /// Where the calibration is now
    #[arg(long, value_name = "CALIBRATION", help_heading = "Inputs")]
    calibration: Option<String>,
    /// Where the dense base of --hybrid is now
    #[arg(long, value_name = "CHECKPOINT", help_heading = "Inputs")]
    hybrid: Option<String>,
    /// Where the checkpoint of `dequantize` is now
    #[arg(long, value_name = "CHECKPOINT", help_heading = "Inputs")]
    checkpoint: Option<String>,
    /// Where the quantized base is now
    #[arg(long, value_name = "CHECKPOINT", help_heading = "Inputs")]
    base_quantized: Option<String>,
    /// Where the quantized tuned checkpoint is now
    #[arg(long, value_name = "CHECKPOINT", help_heading = "Inputs")]
    tuned_quantized: Option<String>,
    /// Where the adapter of `merge` is now
    #[arg(long, value_name = "ADAPTER", help_heading = "Inputs")]
    adapter: Option<String>,
}

impl Places {
    fn by_side(self) -> BTreeMap<Side, String> {
        let places = [
            (Side::Base, self.base),
            (Side::Tuned, self.tuned),
            (Side::Served, self.served),
            (Side::Calibration, self.calibration),
            (Side::Hybrid, self.hybrid),
            (Side::Checkpoint, self.checkpoint),
            (Side::BaseQuantized, self.base_quantized),
            (Side::TunedQuantized, self.tuned_quantized),
            (Side::Adapter, self.adapter),
        ];
        places.into_iter().filter_map(|(side, place)| Some((side, place?))).collect()
    }
}

/// Assembles, or prints what is missing.
pub fn run(arguments: AssembleArgs) -> Result<ExitCode> {
    let running = RunOptions {
        keep_shards: arguments.keep_shards,
        other_simd: arguments.other_simd,
        ..RunOptions::new(threads(arguments.threads)?, arguments.memory.unwrap_or_else(default_memory))
    };
    let (json, bar) = (arguments.json, Bar::new(arguments.quiet));
    leave_on_signal(&bar)?;
    let AssembleArgs { out, finish, places, .. } = arguments;
    let assembly = Assembly { out, finish, places: places.by_side(), running };
    let recorded = recorded(&assembly)?;
    match recorded.command() {
        "extract" => {
            let assembled = extract::assemble(&assembly, &recorded, &bar);
            end(
                assembled,
                &bar,
                |outcome| if json { print_json(outcome) } else { print(&show_outcome(outcome)) },
                json,
            )
        }
        "dequantize" | "merge" => {
            let assembled = convert::assemble(&assembly, &recorded, &bar);
            end(assembled, &bar, |outcome| show_conversion(outcome, json), json)
        }
        "analyze" => {
            let assembled = analyze::assemble(&assembly, &recorded, &bar);
            let show =
                |(analysis, was_done): &(_, bool)| show_analysis(analysis, &assembly.out, *was_done, json);
            end(assembled, &bar, show, json)
        }
        other => Err(Error::decide(format!("a run of `trephine {other}` has no parts"))
            .path(&assembly.out)
            .hint("run its command again")),
    }
}

/// Prints the outcome, and returns an error if something is missing.
fn end<O>(
    assembled: Result<Assembled<O>>,
    bar: &Bar,
    show: impl FnOnce(&O) -> Result<()>,
    json: bool,
) -> Result<ExitCode> {
    bar.clear();
    match assembled? {
        Assembled::Done(outcome) => show(&outcome).map(|()| ExitCode::SUCCESS),
        Assembled::Missing(missing) => {
            if json { print_json(&missing) } else { print(&show_missing(&missing)) }?;
            Err(failure(&missing))
        }
    }
}

fn failure(missing: &Missing) -> Error {
    let (modules, total, compared) = (missing.modules.len(), missing.run_modules, missing.compared.len());
    let unit = missing.unit.plural();
    let mut what = format!("the run is not finished: {modules} of {total} {unit} are missing");
    if compared > 0 {
        what += &format!(", and {compared} comparisons of tensors that the adapter does not contain");
    }
    let out = missing.out.to_string_lossy();
    Error::found(what).path(&missing.out).hint(format!(
        "run what is missing and assemble again, or do it here: trephine assemble {} --finish",
        quoted(&out)
    ))
}

fn show_missing(missing: &Missing) -> String {
    let line = |part| format!("# {}\n{}\n", describe(part, missing.unit), part.command);
    missing.parts.iter().map(line).collect()
}

fn describe(missing: &MissingPart, unit: UnitKind) -> String {
    let unit = unit.plural();
    let which = missing.part.map_or("the run".to_owned(), |part| format!("part {part}"));
    let what = match (missing.modules, missing.compared) {
        (modules, 0) => format!("{modules} {unit}"),
        (modules, compared) => format!("{modules} {unit} and {compared} comparisons"),
    };
    let seen = match &missing.seen {
        None => "never started".to_owned(),
        Some(seen) => {
            let heard = seen.heard.map_or(String::new(), |s| format!(", last heard from {s:.0} s ago"));
            format!("{} on {}{heard}", seen.state.word(), seen.host)
        }
    };
    format!("{which}: {what} missing ({seen})")
}
