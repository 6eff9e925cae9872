//! `trephine autopsy`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use trephine::commands::autopsy::{
    AUTOPSY, Autopsy, Examination, Severity, TensorAutopsy, Thresholds, autopsy,
};
use trephine::commands::extract::default_memory;
use trephine::durable::{atomic_file, folder};
use trephine::lora::kind_of;
use trephine::pipeline::RunOptions;
use trephine::{Error, Result};

use crate::cli::ui::byte_size;
use crate::cli::ui::progress_bar::Bar;
use crate::cli::ui::table::{number, table};
use crate::cli::{print, print_json, threads};

/// Examines every tensor of a checkpoint or adapter, after dequantization, and reports what is wrong with it.
///
/// Computes the mean, standard deviation, extremes, NaN and infinities, zeros, kurtosis, quantiles and a histogram of
/// each tensor in one pass. Reports values that are not finite, an exploded mean or standard deviation, a dead tensor,
/// a linear weight outside the healthy range, too few distinct values for more than one scale, and saturated codes.
/// With --against, also reports each tensor's distance from the other checkpoint, and blocks that are scaled in
/// different proportions. Exits with code 4 if something is wrong; a few outliers are reported, but are not a failure.
#[derive(Debug, Args)]
pub struct AutopsyArgs {
    /// A folder, a .safetensors file, a name in the Hugging Face cache, or an adapter's folder
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
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    #[command(flatten)]
    limits: Limits,

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

/// The limits of what counts as healthy.
#[derive(Debug, Args)]
#[command(next_help_heading = "Healthy limits")]
struct Limits {
    /// Largest |mean| of linear weights, embeddings and factors
    #[arg(long, value_name = "MEAN", default_value_t = Thresholds::default().exploded_mean)]
    exploded_mean: f64,
    /// Largest standard deviation of linear weights, embeddings and factors
    #[arg(long, value_name = "STD", default_value_t = Thresholds::default().exploded_std)]
    exploded_std: f64,
    /// Largest |mean| and standard deviation of norms
    #[arg(long, value_name = "LIMIT", default_value_t = Thresholds::default().exploded_norm)]
    exploded_norm: f64,
    /// Largest healthy |mean| of linear weights
    #[arg(long, value_name = "MEAN", default_value_t = Thresholds::default().healthy_mean)]
    mean: f64,
    /// Smallest healthy standard deviation of linear weights
    #[arg(long, value_name = "STD", default_value_t = Thresholds::default().least_std)]
    min_std: f64,
    /// Largest healthy standard deviation of linear weights
    #[arg(long, value_name = "STD", default_value_t = Thresholds::default().most_std)]
    max_std: f64,
    /// Largest healthy magnitude in linear weights
    #[arg(long, value_name = "LIMIT", default_value_t = Thresholds::default().healthy_range)]
    range: f64,
    /// Largest share of values beyond --range that is only a warning
    #[arg(long, value_name = "SHARE", default_value_t = Thresholds::default().outliers)]
    outliers: f64,
    /// Dense matrices with at most this many distinct magnitudes count as having one scale; 0 turns this check off
    #[arg(long, value_name = "COUNT", default_value_t = Thresholds::default().few_magnitudes)]
    few_magnitudes: u64,
    /// Largest share of saturated codes in 8-bit formats
    #[arg(long, value_name = "SHARE", default_value_t = Thresholds::default().saturated_8)]
    saturated_8: f64,
    /// Largest share of saturated codes in 3-bit and 4-bit formats
    #[arg(long, value_name = "SHARE", default_value_t = Thresholds::default().saturated_4)]
    saturated_4: f64,
    /// With --against: largest relative error
    #[arg(long, value_name = "SHARE", default_value_t = Thresholds::default().relative_error)]
    max_error: f64,
    /// With --against: smallest cosine
    #[arg(long, value_name = "COSINE", allow_negative_numbers = true, default_value_t = Thresholds::default().cosine)]
    min_cosine: f64,
    /// With --against: largest relative variation of the ratio of block norms. Rounding alone gives about 0.001
    /// (FP8) to 0.01 (4 bits)
    #[arg(long, value_name = "SHARE", default_value_t = Thresholds::default().block_drift)]
    max_drift: f64,
}

impl Limits {
    fn thresholds(&self) -> Thresholds {
        Thresholds {
            exploded_mean: self.exploded_mean,
            exploded_std: self.exploded_std,
            exploded_norm: self.exploded_norm,
            healthy_mean: self.mean,
            least_std: self.min_std,
            most_std: self.max_std,
            healthy_range: self.range,
            outliers: self.outliers,
            few_magnitudes: self.few_magnitudes,
            saturated_8: self.saturated_8,
            saturated_4: self.saturated_4,
            relative_error: self.max_error,
            cosine: self.min_cosine,
            block_drift: self.max_drift,
        }
    }
}

/// Examines, and prints what it finds.
pub fn run(arguments: AutopsyArgs) -> Result<ExitCode> {
    let job = Examination {
        checkpoint: arguments.checkpoint.clone(),
        against: arguments.against.clone(),
        include: arguments.include.clone(),
        exclude: arguments.exclude.clone(),
        thresholds: arguments.limits.thresholds(),
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
        false => print(&show(&found))?,
    }
    match found.tensors.iter().filter(|tensor| is_wrong(tensor)).count() {
        0 => Ok(ExitCode::SUCCESS),
        1 => Err(Error::found("something is wrong with 1 tensor").path(&arguments.checkpoint)),
        count => {
            Err(Error::found(format!("something is wrong with {count} tensors")).path(&arguments.checkpoint))
        }
    }
}

fn is_wrong(tensor: &TensorAutopsy) -> bool {
    tensor.verdicts.iter().any(|verdict| verdict.gravity == Severity::Error)
}

fn write(folder: &Path, found: &Autopsy) -> Result<()> {
    atomic_file::write(&folder.join(AUTOPSY), |out| {
        serde_json::to_writer_pretty(&mut *out, found)?;
        out.write_all(b"\n")
    })?;
    Ok(())
}

fn show(found: &Autopsy) -> String {
    let mut text = kinds(found);
    let judged = found.tensors.iter().filter(|tensor| !tensor.verdicts.is_empty());
    for tensor in judged {
        for verdict in &tensor.verdicts {
            let word = if verdict.gravity == Severity::Error { "error" } else { "warning" };
            let (name, fault, why) = (&tensor.name, verdict.fault.words(), &verdict.why);
            text += &format!("{word}: {fault}: {name} {why}\n");
        }
    }
    for left in &found.left_out {
        text += &format!("note: {} {}\n", left.name, left.why);
    }
    let total = &found.total;
    let (tensors, elements, bytes) = (total.tensors, total.elements, byte_size::show(total.bytes));
    text += &format!("{tensors} tensors, {elements} values, {bytes}, {}", found.checkpoint.scheme);
    if let Some(error) = total.comparison.as_ref().and_then(|comparison| comparison.relative_error) {
        text += &format!("; distance from the other checkpoint: {} of its norm", number(error));
    }
    let words = match (total.errors, total.warnings) {
        (0, 0) => "nothing unusual".to_owned(),
        (errors, warnings) => format!("{errors} errors, {warnings} warnings"),
    };
    text + &format!(": {words}\n")
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
