//! `trephine calibrate`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use trephine::Result;
use trephine::commands::calibrate::{Calibration, CalibrationOutcome, calibrate};
use trephine::commands::extract::default_memory;

use super::ui::byte_size;
use super::ui::output::tell;
use super::ui::progress_bar::Bar;
use super::ui::signal::leave_on_signal;
use super::ui::text::Text;
use super::{print_json, threads};

/// Runs a model on a text, layer by layer in fixed memory, and writes the second moments of its layers' inputs.
///
/// `extract --calibration` weights errors by these moments, so that an adapter for a quantized model keeps what the
/// model's output depends on. The model may be larger than memory, dense or quantized in any supported format.
/// Calibrate the tuned model, or the model that the adapter is for. To resume a stopped run, give the same command
/// again.
#[derive(Debug, Args)]
pub struct CalibrateArgs {
    /// The model: a folder, a name in the Hugging Face cache, or an hf://, https:// or s3:// address
    #[arg(long, value_name = "CHECKPOINT")]
    model: String,
    #[command(flatten)]
    text: Text,
    /// The folder to write to
    #[arg(short, long, value_name = "DIR")]
    out: PathBuf,
    /// Maximum rows of a sketch; with this many tokens or fewer, the second moments are exact
    #[arg(long, default_value_t = 2048, help_heading = "Result")]
    k: usize,
    /// Seed of the sketches
    #[arg(long, default_value_t = 0, help_heading = "Result")]
    seed: u64,
    /// Limit on the peak resident memory of the whole process
    /// [default: the smaller of 2GiB and half the available memory]
    #[arg(long, value_name = "SIZE", value_parser = byte_size::parse)]
    memory: Option<u64>,
    /// Number of compute threads [default: one per processor]
    #[arg(long)]
    threads: Option<usize>,
    /// Discard an earlier run in the output folder and start over
    #[arg(long)]
    overwrite: bool,
    /// Do not show progress
    #[arg(short, long)]
    quiet: bool,
    /// Print the result as JSON to stdout
    #[arg(long)]
    json: bool,
}

/// Calibrates.
pub fn run(arguments: CalibrateArgs) -> Result<ExitCode> {
    let job = Calibration {
        model: arguments.model,
        corpus: arguments.text.corpus(),
        out: arguments.out,
        k: arguments.k,
        seed: arguments.seed,
        threads: threads(arguments.threads)?,
        memory: arguments.memory.unwrap_or_else(default_memory),
        overwrite: arguments.overwrite,
    };
    let bar = Bar::new(arguments.quiet);
    leave_on_signal(&bar)?;
    let outcome = calibrate(&job, &bar);
    bar.clear();
    let outcome = outcome?;
    if arguments.json {
        print_json(&outcome)?;
    } else if !arguments.quiet {
        tell(&words(&outcome));
    }
    Ok(ExitCode::SUCCESS)
}

fn words(outcome: &CalibrationOutcome) -> String {
    let CalibrationOutcome { out, was_done, loss, tokens, inputs, bytes, .. } = outcome;
    let done = if *was_done { " (already complete)" } else { "" };
    format!(
        "{}: {inputs} inputs over {tokens} tokens, {} MiB{done}\n\
         loss {loss:.4} per token (perplexity {:.2}); a value far from this model's usual one on such text means that it was not run correctly",
        out.display(),
        bytes >> 20,
        loss.exp()
    )
}
