//! `trephine dequantize`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use trephine::Result;
use trephine::commands::convert::{
    ConversionOutcome, DEFAULT_SHARD_SIZE, Dequantization, dequantize, dequantize_part,
};
use trephine::commands::extract::default_memory;
use trephine::pipeline::RunOptions;

use crate::cli::splitting::{Splitting, show_part};
use crate::cli::ui::byte_size;
use crate::cli::ui::progress_bar::Bar;
use crate::cli::ui::signal::leave_on_signal;
use crate::cli::ui::value_enums::DtypeName;
use crate::cli::{print, print_json, threads};

/// Writes a quantized checkpoint as a dense one.
///
/// Each quantized weight becomes `X.weight`, rounded once from the value that its format's reference implementation
/// gives. Dense tensors, the tokenizer and other files are copied bit for bit. To resume a stopped run, give the same
/// command again.
#[derive(Debug, Args)]
pub struct DequantizeArgs {
    /// A folder, a .safetensors file, a name in the Hugging Face cache, or an hf://, https:// or s3:// address
    checkpoint: String,
    /// The folder to write to
    #[arg(short, long, value_name = "DIR")]
    out: PathBuf,
    /// Type of the dequantized weights; dense tensors keep their own
    #[arg(long, value_enum, default_value_t = DtypeName::Bf16)]
    dtype: DtypeName,
    #[command(flatten)]
    writing: Writing,
    #[command(flatten)]
    splitting: Splitting,
}

/// Options of all commands that write a checkpoint.
#[derive(Debug, Args)]
pub struct Writing {
    /// Maximum size of a file of weights, for example 5GB
    #[arg(long, value_name = "SIZE", value_parser = byte_size::parse, default_value_t = DEFAULT_SHARD_SIZE,
        hide_default_value = true, help_heading = "Result")]
    pub max_shard_size: u64,
    /// Limit on the peak resident memory of the whole process
    /// [default: the smaller of 2GiB and half the available memory]
    #[arg(long, value_name = "SIZE", value_parser = byte_size::parse, help_heading = "Running")]
    memory: Option<u64>,
    /// Number of compute threads [default: one per processor]
    #[arg(long, help_heading = "Running")]
    threads: Option<usize>,
    /// Discard an earlier run in the output folder and start over
    #[arg(long, help_heading = "Running")]
    overwrite: bool,
    /// Do not show progress
    #[arg(short, long, help_heading = "Running")]
    pub quiet: bool,
    /// Print what was done as JSON to stdout
    #[arg(long, help_heading = "Running")]
    pub json: bool,
}

impl Writing {
    /// The options that do not change the output.
    pub fn running(&self) -> Result<RunOptions> {
        let running = RunOptions::new(threads(self.threads)?, self.memory.unwrap_or_else(default_memory));
        Ok(RunOptions { overwrite: self.overwrite, ..running })
    }
}

/// Prints what was done.
pub fn show_conversion(outcome: &ConversionOutcome, json: bool) -> Result<()> {
    if json { print_json(outcome) } else { print(&text(outcome)) }
}

/// Dequantizes.
pub fn run(arguments: DequantizeArgs) -> Result<ExitCode> {
    let job = Dequantization {
        checkpoint: arguments.checkpoint,
        out: arguments.out,
        dtype: arguments.dtype.into(),
        max_shard_size: arguments.writing.max_shard_size,
        running: arguments.writing.running()?,
    };
    let bar = Bar::new(arguments.writing.quiet);
    leave_on_signal(&bar)?;
    match arguments.splitting.part()? {
        Some(part) => {
            let outcome = dequantize_part(&job, part, &bar);
            bar.clear();
            show_part(&outcome?, arguments.writing.json)?;
        }
        None => {
            let outcome = dequantize(&job, &bar);
            bar.clear();
            show_conversion(&outcome?, arguments.writing.json)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn text(outcome: &ConversionOutcome) -> String {
    let conversion = &outcome.conversion;
    let mut text = format!(
        "{} weights from {}, {} tensors copied\n",
        conversion.computed, conversion.scheme, conversion.copied
    );
    if !conversion.replaced.is_empty() {
        text += &format!(
            "{} parameters were replaced by whole ones from the adapter\n",
            conversion.replaced.len()
        );
    }
    if !conversion.dropped.is_empty() {
        let names = conversion.dropped.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
        let more = if conversion.dropped.len() > 3 { ", ..." } else { "" };
        text += &format!("{} activation scales left out: {names}{more}\n", conversion.dropped.len());
    }
    for (module, count) in &conversion.non_finite {
        text += &format!("{module} has {count} values that are NaN or infinite\n");
    }
    let files = if outcome.files == 1 { "1 file".to_owned() } else { format!("{} files", outcome.files) };
    let done = if outcome.was_done { " (already complete)" } else { "" };
    text + &format!(
        "checkpoint: {} ({files}, {}){done}\n",
        outcome.out.display(),
        byte_size::show(outcome.bytes)
    )
}
