//! `trephine autopsy`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use trephine::commands::autopsy::{
    AUTOPSY, Autopsy, Examination, Finding, InitLimits, Severity, TensorAutopsy, Thresholds, Verdict,
    autopsy, findings,
};
use trephine::commands::extract::default_memory;
use trephine::durable::{atomic_file, folder};
use trephine::lora::kind_of;
use trephine::pipeline::RunOptions;
use trephine::{Error, Result};

use crate::cli::ui::byte_size;
use crate::cli::ui::progress_bar::Bar;
use crate::cli::ui::table::{number, table};
use crate::cli::ui::words::counted;
use crate::cli::{print, print_json, threads};

/// Examines every tensor of a checkpoint or adapter, after dequantization, and reports what is wrong with it.
///
/// Computes the mean, standard deviation, extremes, NaN and infinities, zeros, kurtosis, quantiles and a histogram of
/// each tensor in one pass. Reports values that are not finite, dead tensors, linear weights whose mean is off zero,
/// whose size fits no number of inputs or none of the other layers, rows of zeros, too few distinct values for more
/// than one scale, and saturated codes. With --against, also reports each tensor's distance from the other checkpoint,
/// and blocks that are scaled in different proportions. Exits with code 4 if something is wrong.
#[derive(Debug, Args)]
pub struct AutopsyArgs {
    /// A folder, a .safetensors file, a name in the Hugging Face cache, an hf://, https:// or s3:// address, or an
    /// adapter's folder
    checkpoint: String,
    /// Also compare with this checkpoint, tensor by tensor; either may be quantized
    #[arg(long, value_name = "OTHER")]
    against: Option<String>,
    /// Examine only tensors that match: a glob over the name (without .weight) or its last parts, or re:REGEX. Can be
    /// repeated
    #[arg(long, value_name = "PATTERN")]
    include: Vec<String>,
    /// Leave out tensors that match. Can be repeated
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// Write autopsy.json, with the statistics of every tensor, to this folder
    #[arg(short, long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Print every finding of every tensor, not ten lines
    #[arg(long)]
    all: bool,
    /// Also hold linear weights to the limits of a fresh initialization: |mean| up to 0.01, standard deviation 0.02 to
    /// 0.05, values within -0.5 to 0.5. Many healthy models are outside
    #[arg(long)]
    expect_init: bool,
    #[arg(long, value_name = "NAME=NUMBER", value_parser = parse_limit, long_help = limits_help())]
    limit: Vec<(String, f64)>,

    /// Limit on the peak resident memory of the whole process
    /// [default: the smaller of 2GiB and half the available memory]
    #[arg(long, value_name = "SIZE", value_parser = byte_size::parse, help_heading = "Running")]
    memory: Option<u64>,
    /// Number of compute threads [default: one per processor]
    #[arg(long, help_heading = "Running")]
    threads: Option<usize>,
    /// Do not show progress
    #[arg(short, long, help_heading = "Running")]
    quiet: bool,
    /// Print all of autopsy.json to stdout
    #[arg(long, help_heading = "Running")]
    json: bool,
}

fn parse_limit(text: &str) -> std::result::Result<(String, f64), String> {
    let (name, number) = text.split_once('=').ok_or("write NAME=NUMBER, for example mean=0.1")?;
    let number = number.parse().map_err(|_| format!("'{number}' is not a number"))?;
    Ok((name.to_owned(), number))
}

/// The names of the limits with their defaults.
fn limits_help() -> String {
    let defaults = Thresholds { init: Some(InitLimits::default()), ..Thresholds::default() };
    let line = |(name, what): &(&str, &str)| {
        let limit = defaults.get(name).unwrap_or_default();
        format!("  {:24} {what}", format!("{name}={limit}"))
    };
    let lines: Vec<String> = Thresholds::NAMES.iter().map(line).collect();
    format!(
        "Change a limit of what is healthy. Can be repeated. The limits and their defaults:\n{}",
        lines.join("\n")
    )
}

fn thresholds(arguments: &AutopsyArgs) -> Result<Thresholds> {
    let init = arguments.expect_init.then(InitLimits::default);
    let mut thresholds = Thresholds { init, ..Thresholds::default() };
    arguments.limit.iter().try_for_each(|(name, limit)| thresholds.set(name, *limit))?;
    Ok(thresholds)
}

/// Examines, and prints what it finds.
pub fn run(arguments: AutopsyArgs) -> Result<ExitCode> {
    let job = Examination {
        checkpoint: arguments.checkpoint.clone(),
        against: arguments.against.clone(),
        include: arguments.include.clone(),
        exclude: arguments.exclude.clone(),
        thresholds: thresholds(&arguments)?,
    };
    if let Some(folder) = &arguments.out {
        folder::refuse_foreign(folder, &[], &[], &[AUTOPSY])?;
        folder::create(folder)?;
    }
    let running =
        RunOptions::new(threads(arguments.threads)?, arguments.memory.unwrap_or_else(default_memory));
    let bar = Bar::new(arguments.quiet);
    let found = autopsy(&job, &running, &bar);
    bar.clear();
    let found = found?;
    if let Some(folder) = &arguments.out {
        write(folder, &found)?;
    }
    match arguments.json {
        true => print_json(&found)?,
        false => print(&show(&found, arguments.all))?,
    }
    match found.total.errors {
        0 => Ok(ExitCode::SUCCESS),
        errors => Err(Error::found(format!("something is wrong with {}", counted(errors, "tensor")))
            .path(&arguments.checkpoint)),
    }
}

fn write(folder: &Path, found: &Autopsy) -> Result<()> {
    atomic_file::remove_leftovers(folder)?;
    atomic_file::write(&folder.join(AUTOPSY), |out| {
        serde_json::to_writer_pretty(&mut *out, found)?;
        out.write_all(b"\n")
    })?;
    Ok(())
}

/// The number of findings that are printed without `--all`.
const MOST_LINES: usize = 10;

fn show(found: &Autopsy, all: bool) -> String {
    let mut text = kinds(found);
    text += &if all { every_verdict(found) } else { grouped(found) };
    for left in found.left_out.iter().take(if all { usize::MAX } else { MOST_LINES }) {
        text += &format!("note: {} {}\n", left.name, left.why);
    }
    if !all && found.left_out.len() > MOST_LINES {
        let more = found.left_out.len() - MOST_LINES;
        text += &format!("note: {more} more were left out: --all names them\n");
    }
    text + &last_line(found)
}

fn every_verdict(found: &Autopsy) -> String {
    let verdicts = found.tensors.iter().flat_map(|tensor| tensor.verdicts.iter().map(move |v| (tensor, v)));
    let line = |(tensor, verdict): (&TensorAutopsy, &Verdict)| {
        format!("{}: {}: {} {}\n", word(verdict.gravity), verdict.fault.words(), tensor.name, verdict.why)
    };
    verdicts.map(line).collect()
}

fn grouped(found: &Autopsy) -> String {
    let findings = findings(found);
    let line = |finding: &Finding| {
        format!("{}: {}: {} {}\n", word(finding.gravity), finding.fault.words(), finding.place, finding.why)
    };
    let mut text: String = findings.iter().take(MOST_LINES).map(line).collect();
    if findings.len() > MOST_LINES {
        let more = counted(findings.len() as u64 - MOST_LINES as u64, "more finding");
        text += &format!("{more}: --all prints everything\n");
    }
    text
}

fn word(gravity: Severity) -> &'static str {
    if gravity == Severity::Error { "error" } else { "warning" }
}

fn last_line(found: &Autopsy) -> String {
    let total = &found.total;
    let (elements, bytes) = (total.elements, byte_size::show(total.bytes));
    let tensors = counted(total.tensors, "tensor");
    let mut text = format!("{tensors}, {elements} values, {bytes}, {}", found.checkpoint.scheme);
    if let Some(error) = total.comparison.as_ref().and_then(|comparison| comparison.relative_error) {
        text += &format!("; distance from the other checkpoint: {} of its norm", number(error));
    }
    text += &match (total.errors, total.warnings) {
        (0, 0) => ": nothing unusual".to_owned(),
        (errors, warnings) => {
            let errors = counted(errors, "tensor");
            format!(": {errors} with errors, {warnings} with warnings only")
        }
    };
    if total.errors == 0 && found.against.is_none() {
        text += "; scales of other blocks or a layer that was initialized again only show with --against";
    }
    text + "\n"
}

/// The tensors of one kind, for the ranges of their statistics.
struct Kind<'a> {
    tensors: Vec<&'a TensorAutopsy>,
}

impl Kind<'_> {
    fn range(&self, statistic: impl Fn(&TensorAutopsy) -> Option<f64>) -> String {
        let values: Vec<f64> = self.tensors.iter().filter_map(|tensor| statistic(tensor)).collect();
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        match (number(low), number(high)) {
            _ if values.is_empty() => "-".to_owned(),
            (low, high) if low == high => low,
            (low, high) => format!("{low} to {high}"),
        }
    }
}

/// One row per kind of tensor.
fn kinds(found: &Autopsy) -> String {
    let mut kinds: BTreeMap<(&str, String), Kind<'_>> = BTreeMap::new();
    for tensor in &found.tensors {
        let key = (kind_of(&tensor.name), tensor.role.to_string());
        kinds.entry(key).or_insert_with(|| Kind { tensors: Vec::new() }).tensors.push(tensor);
    }
    let compared = found.against.is_some();
    let mut rows = table(["kind", "judged as", "tensors", "mean", "std", "smallest", "largest"]);
    if compared {
        rows.set_header(["kind", "judged as", "tensors", "mean", "std", "error", "block drift"]);
    }
    for ((kind, role), tensors) in &kinds {
        let count = tensors.tensors.len().to_string();
        let mean = tensors.range(|tensor| Some(tensor.statistics.mean));
        let std = tensors.range(|tensor| Some(tensor.statistics.std));
        let [third, fourth] = match compared {
            false => [tensors.range(|t| t.statistics.min), tensors.range(|t| t.statistics.max)],
            true => [
                tensors.range(|t| t.comparison.as_ref()?.relative_error),
                tensors.range(|t| t.comparison.as_ref()?.block_drift),
            ],
        };
        rows.add_row([(*kind).to_owned(), role.clone(), count, mean, std, third, fourth]);
    }
    format!("{rows}\n\n")
}
