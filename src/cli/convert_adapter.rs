//! `trephine convert-adapter`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use trephine::Result;
use trephine::commands::convert_adapter::{AdapterConversion, AdapterFormat, convert_adapter};
use trephine::lora::FactorType;

use crate::cli::ui::value_enums::{DtypeName, words};
use crate::cli::{print, print_json};

/// Writes a PEFT LoRA adapter in the format of another program.
///
/// `gguf` writes adapter.gguf, which llama.cpp loads with --lora; `mlx` writes the files of mlx-lm, for --adapter-path.
#[derive(Debug, Args)]
pub struct ConvertAdapterArgs {
    /// The adapter: a folder with adapter_config.json and adapter_model.safetensors, a name in the Hugging Face
    /// cache, or an hf://, https:// or s3:// address
    adapter: String,
    /// The format to write
    #[arg(long, value_enum)]
    format: FormatName,
    /// The folder to write to
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The base checkpoint, of which only the config is read; GGUF needs it
    #[arg(long, value_name = "CHECKPOINT")]
    base: Option<String>,
    /// Type in which the factors are stored [default: unchanged]
    #[arg(long, value_enum)]
    dtype: Option<DtypeName>,
    /// Print the result as JSON to stdout
    #[arg(long)]
    json: bool,
}

words!(FormatName => AdapterFormat {
    /// One file for llama.cpp
    Gguf,
    /// The two files of mlx-lm
    Mlx
});

/// Converts an adapter, and prints what was written.
pub fn run(arguments: ConvertAdapterArgs) -> Result<ExitCode> {
    let job = AdapterConversion {
        adapter: arguments.adapter,
        base: arguments.base,
        out: arguments.out,
        format: arguments.format.into(),
        dtype: arguments.dtype.map(FactorType::from),
    };
    let done = convert_adapter(&job)?;
    if arguments.json {
        print_json(&done)?;
    } else {
        let (files, folder) = (done.files.join(", "), job.out.display());
        print(&format!(
            "{} modules of rank {} in {}: {files} in {folder}\n",
            done.modules, done.rank, done.dtype
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}
