//! `trephine merge`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use trephine::Result;
use trephine::commands::convert::{Merge, merge, merge_part};
use trephine::pipeline::RunOptions;

use crate::cli::dequantize::{Writing, show_conversion};
use crate::cli::splitting::{Splitting, show_part};
use crate::cli::ui::progress_bar::Bar;
use crate::cli::ui::signal::leave_on_signal;
use crate::cli::ui::value_enums::DtypeName;

/// Writes a checkpoint with an adapter merged into it.
///
/// Weights that the adapter changes become W + scale · B·A, rounded once. The base may be quantized; its other
/// quantized weights are then dequantized or, with --fp8, written as block FP8. To resume a stopped run, give the
/// same command again.
#[derive(Debug, Args)]
pub struct MergeArgs {
    /// The checkpoint that the adapter belongs to: a folder, a .safetensors file, a name in the Hugging Face cache, or
    /// an hf://, https:// or s3:// address
    #[arg(long, value_name = "CHECKPOINT")]
    base: String,
    /// A PEFT LoRA adapter: a folder, a name in the Hugging Face cache, or an address
    #[arg(long, value_name = "ADAPTER")]
    adapter: String,
    /// The folder to write to
    #[arg(short, long, value_name = "DIR")]
    out: PathBuf,
    /// Type of the computed weights; unchanged dense tensors keep their own
    #[arg(long, value_enum, default_value_t = DtypeName::Bf16, help_heading = "Result")]
    dtype: DtypeName,
    /// Write linear layers as block FP8 (128 x 128) in the layout of Qwen3-FP8; embeddings, norms and
    /// the head stay dense
    #[arg(long, help_heading = "Result")]
    fp8: bool,
    #[command(flatten)]
    writing: Writing,
    #[command(flatten)]
    splitting: Splitting,
    /// Resume a run that was started on a processor with different vector instructions; its bytes may then differ
    #[arg(long, help_heading = "Running")]
    other_simd: bool,
}

/// Merges.
pub fn run(arguments: MergeArgs) -> Result<ExitCode> {
    let job = Merge {
        base: arguments.base,
        adapter: arguments.adapter,
        out: arguments.out,
        dtype: arguments.dtype.into(),
        fp8: arguments.fp8,
        max_shard_size: arguments.writing.max_shard_size,
        running: RunOptions { other_simd: arguments.other_simd, ..arguments.writing.running()? },
    };
    let bar = Bar::new(arguments.writing.quiet);
    leave_on_signal(&bar)?;
    match arguments.splitting.part()? {
        Some(part) => {
            let outcome = merge_part(&job, part, &bar);
            bar.clear();
            show_part(&outcome?, arguments.writing.json)?;
        }
        None => {
            let outcome = merge(&job, &bar);
            bar.clear();
            show_conversion(&outcome?, arguments.writing.json)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
