//! `trephine evaluate`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use trephine::Result;
use trephine::commands::evaluate::{Evaluated, Evaluation, Paired, evaluate};
use trephine::commands::extract::default_memory;

use super::ui::byte_size;
use super::ui::progress_bar::Bar;
use super::ui::table::table;
use super::ui::text::Text;
use super::{print, print_json, threads};

/// Measures the next-token loss of a model on a text, with each adapter and with none.
///
/// The model may be larger than memory and quantized in any supported format: it runs layer by layer, with all adapters
/// in one pass over the weights. Differences are paired, sequence by sequence. To see how far an adapter closes the
/// gap, evaluate the tuned model on the same text.
#[derive(Debug, Args)]
pub struct EvaluateArgs {
    /// The served model: a folder, a name in the Hugging Face cache, or an hf://, https:// or s3:// address
    #[arg(long, value_name = "CHECKPOINT")]
    model: String,
    /// A PEFT LoRA adapter: a folder, a name in the Hugging Face cache, or an address. Can be repeated
    #[arg(long = "adapter", value_name = "ADAPTER")]
    adapters: Vec<String>,
    #[command(flatten)]
    text: Text,
    /// The folder for hidden states that do not fit in memory [default: the system's temporary folder]
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
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
    /// Print the result as JSON to stdout, with the loss of every sequence
    #[arg(long)]
    json: bool,
}

/// Evaluates, and prints the result.
pub fn run(arguments: EvaluateArgs) -> Result<ExitCode> {
    let job = Evaluation {
        model: arguments.model,
        adapters: arguments.adapters,
        corpus: arguments.text.corpus(),
        threads: threads(arguments.threads)?,
        memory: arguments.memory.unwrap_or_else(default_memory),
        scratch: arguments.scratch.unwrap_or_else(std::env::temp_dir),
    };
    let bar = Bar::new(arguments.quiet);
    let evaluated = evaluate(&job, &bar);
    bar.clear();
    let evaluated = evaluated?;
    if arguments.json {
        print_json(&evaluated)?;
    } else {
        print(&show(&evaluated))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn show(evaluated: &Evaluated) -> String {
    let mut rows = table(["", "loss", "perplexity", "change", "± standard error"]);
    for variant in &evaluated.variants {
        let name = variant.adapter.clone().unwrap_or_else(|| "no adapter".to_owned());
        let [change, error] = variant.change.map_or([String::new(), String::new()], cells);
        rows.add_row([
            name,
            format!("{:.4}", variant.loss),
            format!("{:.3}", variant.loss.exp()),
            change,
            error,
        ]);
    }
    let mut text = format!(
        "next-token loss over {} tokens of {} sequences; changes are relative to no adapter, paired by sequence\n\n{rows}\n",
        evaluated.predicted, evaluated.sequences
    );
    for pair in &evaluated.pairs {
        let [change, error] = cells(pair.change);
        text += &format!("\n{} minus {}: {change} ± {error}", pair.second, pair.first);
    }
    if !evaluated.pairs.is_empty() {
        text += "\n";
    }
    text
}

fn cells(paired: Paired) -> [String; 2] {
    let error = paired.standard_error.map_or("-".to_owned(), |error| format!("{error:.4}"));
    [format!("{:+.4}", paired.difference), error]
}
