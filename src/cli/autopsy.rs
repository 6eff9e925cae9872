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

/// Looks at every tensor of a checkpoint or adapter, after dequantization, and says what is wrong with it.
///
/// Mean, standard deviation, extremes, NaN and infinities, zeros, kurtosis, quantiles and a histogram of each tensor, in one
/// pass. Verdicts: values that are not finite; an exploded mean or standard deviation; a dead tensor; a linear weight outside the
/// healthy range; too few different values for more than one scale; codes at the ends of their format. With --against,
/// also the distance from another checkpoint, tensor by tensor, and whether blocks are scaled in other proportions than there.
/// Exit code 4 where something is wrong. A few values far outside the others are told, and are no failure.
#[derive(Debug, Args)]
pub struct AutopsyArgs {
    /// A folder, a .safetensors file, a name in the Hugging Face cache, or an adapter's folder
    checkpoint: String,
    /// Also compare with this checkpoint, tensor by tensor; either may be quantized
    #[arg(long, value_name = "OTHER")]
    against: Option<String>,
    /// Look only at tensors that match: a glob over the name (without .weight) or its last parts, or re:REGEX. Can be
    /// repeated
    #[arg(long, value_name = "PATTERN")]
    include: Vec<String>,
    /// Leave aside tensors that match. Can be repeated
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// Write autopsy.json, with the statistics of every tensor, to this folder
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    #[command(flatten)]
    limits: Limits,

    /// Peak resident memory of the whole process [default: the smaller of 2GiB and half of what is available]
    #[arg(long, value_name = "SIZE", value_parser = byte_size::parse, help_heading = "Running")]
    memory: Option<u64>,
    /// Threads that compute [default: one for each processor]
    #[arg(long, help_heading = "Running")]
    threads: Option<usize>,
    /// No progress
    #[arg(short, long, help_heading = "Running")]
    quiet: bool,
    /// All of autopsy.json on stdout
    #[arg(long, help_heading = "Running")]
    json: bool,
}

/// What is healthy.
#[derive(Debug, Args)]
#[command(next_help_heading = "What is healthy")]
struct Limits {
    /// Linear weights, embeddings, factors: the largest |mean|
    #[arg(long, value_name = "MEAN", default_value_t = Thresholds::default().exploded_mean)]
    exploded_mean: f64,
    /// The same: the largest standard deviation
    #[arg(long, value_name = "STD", default_value_t = Thresholds::default().exploded_std)]
    exploded_std: f64,
    /// Norms: the largest |mean| and standard deviation
    #[arg(long, value_name = "LIMIT", default_value_t = Thresholds::default().exploded_norm)]
    exploded_norm: f64,
    /// Linear weights: the largest healthy |mean|
    #[arg(long, value_name = "MEAN", default_value_t = Thresholds::default().healthy_mean)]
    mean: f64,
    /// Linear weights: the least healthy standard deviation
    #[arg(long, value_name = "STD", default_value_t = Thresholds::default().least_std)]
    min_std: f64,
    /// Linear weights: the largest healthy standard deviation
    #[arg(long, value_name = "STD", default_value_t = Thresholds::default().most_std)]
    max_std: f64,
    /// Linear weights: the largest healthy magnitude
    #[arg(long, value_name = "LIMIT", default_value_t = Thresholds::default().healthy_range)]
    range: f64,
    /// The share of values beyond --range up to which they are only told
    #[arg(long, value_name = "SHARE", default_value_t = Thresholds::default().outliers)]
    outliers: f64,
    /// Dense matrices with no more different magnitudes than this lie under one scale; 0 allows any
    #[arg(long, value_name = "COUNT", default_value_t = Thresholds::default().few_magnitudes)]
    few_magnitudes: u64,
    /// The largest share of codes at the ends of 8 bits
    #[arg(long, value_name = "SHARE", default_value_t = Thresholds::default().saturated_8)]
    saturated_8: f64,
    /// The largest share of codes at the ends of 3 or 4 bits
    #[arg(long, value_name = "SHARE", default_value_t = Thresholds::default().saturated_4)]
    saturated_4: f64,
    /// With --against: the largest relative error
    #[arg(long, value_name = "SHARE", default_value_t = Thresholds::default().relative_error)]
    max_error: f64,
    /// With --against: the least cosine
    #[arg(long, value_name = "COSINE", allow_negative_numbers = true, default_value_t = Thresholds::default().cosine)]
    min_cosine: f64,
    /// With --against: the most that norms of blocks may vary against each other. Rounding leaves some 0.001 (FP8) to 0.01
    /// (4 bits)
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

/// Looks, and tells what is remarkable.
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
    let remarkable = found.tensors.iter().filter(|tensor| !tensor.verdicts.is_empty());
    for tensor in remarkable {
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
    if let Some(all) = total.comparison.as_ref().and_then(|all| all.relative_error) {
        text += &format!("; {} of the other's norm away from it", number(all));
    }
    let words = match (total.errors, total.warnings) {
        (0, 0) => "nothing remarkable".to_owned(),
        (errors, warnings) => format!("{errors} errors, {warnings} warnings"),
    };
    text + &format!(": {words}\n")
}

/// What the tensors of one kind range over.
struct Kind<'a> {
    tensors: Vec<&'a TensorAutopsy>,
}

impl Kind<'_> {
    fn range(&self, of: impl Fn(&TensorAutopsy) -> Option<f64>) -> String {
        let values: Vec<f64> = self.tensors.iter().filter_map(|tensor| of(tensor)).collect();
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        match (number(low), number(high)) {
            _ if values.is_empty() => "-".to_owned(),
            (low, high) if low == high => low,
            (low, high) => format!("{low} to {high}"),
        }
    }
}

/// A row for each kind of tensor.
fn kinds(found: &Autopsy) -> String {
    let mut kinds: BTreeMap<(&str, String), Kind<'_>> = BTreeMap::new();
    for tensor in &found.tensors {
        let key = (kind_of(&tensor.name), tensor.role.to_string());
        kinds.entry(key).or_insert_with(|| Kind { tensors: Vec::new() }).tensors.push(tensor);
    }
    let compared = found.against.is_some();
    let mut rows = table(["kind", "judged as", "tensors", "mean", "std", "smallest", "largest"]);
    if compared {
        rows.set_header(["kind", "judged as", "tensors", "mean", "std", "error", "drift of blocks"]);
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
