//! `trephine analyze`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use comfy_table::Table;
use trephine::Result;
use trephine::commands::analyze::{
    Analysis, AnalysisOptions, Analyzing, Cosine, Pooled, analyze, analyze_part,
};
use trephine::commands::extract::default_memory;
use trephine::pipeline::RunOptions;

use crate::cli::splitting::{Splitting, show_part};
use crate::cli::ui::byte_size;
use crate::cli::ui::progress_bar::Bar;
use crate::cli::ui::rank;
use crate::cli::ui::signal::leave_on_signal;
use crate::cli::ui::table::{number, table};
use crate::cli::{print, print_json, threads};

/// Compares quantization noise with the change that a fine-tune made, module by module.
///
/// Is the noise the same in the base and the tuned checkpoint? Is it orthogonal to the change? How much of Method B's
/// rank goes to noise, and what rank does the noise leave room for? To resume a stopped run, give the same command
/// again.
#[derive(Debug, Args)]
pub struct AnalyzeArgs {
    /// The unquantized base: a folder, a .safetensors or .gguf file, a name in the Hugging Face cache, or an
    /// hf://, https:// or s3:// address
    #[arg(long, value_name = "CHECKPOINT")]
    base: String,
    /// The quantized base
    #[arg(long, value_name = "CHECKPOINT", alias = "served")]
    base_quantized: String,
    /// The unquantized tuned checkpoint
    #[arg(long, value_name = "CHECKPOINT")]
    tuned: String,
    /// The quantized tuned checkpoint; without it, the tuned one is quantized like the base, by rounding
    /// to nearest, or, if the base's format cannot be written, left without noise
    #[arg(long, value_name = "CHECKPOINT")]
    tuned_quantized: Option<String>,
    /// The folder to write analysis.json to
    #[arg(short, long, value_name = "DIR")]
    out: PathBuf,

    /// Rank of the adapters to assess
    #[arg(short, long, default_value_t = 128, value_parser = rank::parse, allow_negative_numbers = true,
        help_heading = "Result")]
    rank: usize,
    /// Seed of the random directions
    #[arg(long, default_value_t = 0, help_heading = "Result")]
    seed: u64,
    /// Analyze only modules that match, with patterns as in extract. Can be repeated
    #[arg(long, value_name = "PATTERN", help_heading = "Result")]
    include: Vec<String>,
    /// Leave out modules that match. Can be repeated
    #[arg(long, value_name = "PATTERN", help_heading = "Result")]
    exclude: Vec<String>,

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
    #[command(flatten)]
    splitting: Splitting,
    /// Resume a run that was started on a processor with different vector instructions; its numbers may then differ
    #[arg(long, help_heading = "Running")]
    other_simd: bool,
    /// Do not show progress
    #[arg(short, long, help_heading = "Running")]
    quiet: bool,
    /// Print all of analysis.json to stdout instead of tables
    #[arg(long, help_heading = "Running")]
    json: bool,
}

/// Analyzes, and prints the result.
pub fn run(arguments: AnalyzeArgs) -> Result<ExitCode> {
    let memory = arguments.memory.unwrap_or_else(default_memory);
    let part = arguments.splitting.part()?;
    let running = RunOptions {
        overwrite: arguments.overwrite,
        other_simd: arguments.other_simd,
        ..RunOptions::new(threads(arguments.threads)?, memory)
    };
    let job = Analyzing {
        base: arguments.base,
        base_quantized: arguments.base_quantized,
        tuned: arguments.tuned,
        tuned_quantized: arguments.tuned_quantized,
        out: arguments.out,
        asking: AnalysisOptions {
            rank: arguments.rank,
            seed: arguments.seed,
            include: arguments.include,
            exclude: arguments.exclude,
        },
        running,
    };
    let bar = Bar::new(arguments.quiet);
    leave_on_signal(&bar)?;
    if let Some(part) = part {
        let outcome = analyze_part(&job, part, &bar);
        bar.clear();
        show_part(&outcome?, arguments.json)?;
        return Ok(ExitCode::SUCCESS);
    }
    let analyzed = analyze(&job, &bar);
    bar.clear();
    let (analysis, was_done) = analyzed?;
    show_analysis(&analysis, &job.out, was_done, arguments.json)?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the result of an analysis.
pub fn show_analysis(analysis: &Analysis, out: &Path, was_done: bool, json: bool) -> Result<()> {
    if json {
        return print_json(analysis);
    }
    let done = if was_done { " (already complete)" } else { "" };
    print(&format!("{}analysis: {}{done}\n", show(analysis), out.display()))
}

fn show(analysis: &Analysis) -> String {
    let mut text = format!("{}\n\n", groups(analysis));
    for statement in &analysis.verdict {
        text += &format!("- {}\n", statement.text);
    }
    text += &format!("\nnoise of the tuned checkpoint: {}\n", analysis.tuned_noise);
    if !analysis.left_out.is_empty() {
        text += "\nnot analyzed:\n";
    }
    for left in &analysis.left_out {
        text += &format!("  {}: {}\n", left.name, left.reason);
    }
    text
}

/// One row per kind of module, and one for all.
fn groups(analysis: &Analysis) -> Table {
    let headings = [
        "kind",
        "modules",
        "change",
        "noise",
        "S/N",
        "cos(D, N_b)",
        "cos(N_b, N_t)",
        "A leaves",
        "B leaves",
        "B on noise",
        "rank",
    ];
    let mut rows = table(headings);
    let mut add = |name: &str, pooled: &Pooled| {
        // Of a base that is zero nothing is a share.
        let base = pooled.norms.base;
        let relative = |norm: f64| if base > 0.0 { number(norm / base) } else { "-".to_owned() };
        let [least, median, most] = pooled.suggested_rank;
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        rows.add_row([
            name.to_owned(),
            pooled.modules.to_string(),
            relative(pooled.norms.change),
            relative(pooled.norms.base_noise),
            pooled
                .norms
                .signal_to_noise
                .map_or("-".into(), |ratio| if ratio < 1e6 { format!("{ratio:.2}") } else { number(ratio) }),
            cosine(&pooled.change_and_noise, pooled.change_and_noise_significant),
            match pooled.norms.tuned_noise {
                0.0 => "-".to_owned(),
                _ => cosine(&pooled.noise_and_noise, pooled.noise_and_noise_significant),
            },
            percent(pooled.remaining.method_a),
            percent(pooled.remaining.method_b),
            percent(pooled.spent_on_noise),
            format!("{median} ({least}-{most})"),
        ]);
    };
    for kind in &analysis.kinds {
        add(&kind.name, &kind.pooled);
    }
    add("all", &analysis.total);
    rows
}

/// A cosine, and the number of modules in which it exceeds chance.
fn cosine(cosine: &Cosine, significant: usize) -> String {
    format!("{:+.4} [{significant}]", cosine.value)
}
