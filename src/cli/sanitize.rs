//! `trephine sanitize`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use trephine::commands::extract::default_memory;
use trephine::commands::sanitize::{Sanitized, Sanitizing, check, sanitize};
use trephine::lora::rules::RuleFinding;
use trephine::lora::{FactorType, Loader};
use trephine::{Error, Result};

use crate::cli::ui::byte_size;
use crate::cli::ui::progress_bar::Bar;
use crate::cli::ui::signal::leave_on_signal;
use crate::cli::ui::table::{number, table};
use crate::cli::ui::value_enums::{DtypeName, LoaderName, loaders};
use crate::cli::{print, print_json};

/// Converts any LoRA adapter, for example mergekit's, into one that a given program loads.
///
/// Gives all modules one rank, multiplies the scale into the factors, and fixes names and config. Tensors that the
/// program does not accept, for example norms and whole weights, are left out and reported with their norm. What the
/// adapter adds to each weight stays the same.
#[derive(Debug, Args)]
pub struct SanitizeArgs {
    /// The adapter: a folder with adapter_config.json and adapter_model.safetensors, a name in the Hugging
    /// Face cache, or an hf://, https:// or s3:// address
    adapter: String,
    /// The folder to write the new adapter to
    #[arg(short, long, value_name = "DIR", required_unless_present = "check")]
    out: Option<PathBuf>,
    /// The program that will load it. Can be repeated; `all` makes an adapter that every one of them loads
    #[arg(long = "for", value_enum, value_name = "PROGRAM", default_values_t = [LoaderName::All])]
    target: Vec<LoaderName>,
    /// Only report what would be refused, and exit with code 4 if anything would be
    #[arg(long, conflicts_with = "out")]
    check: bool,
    /// Truncate modules of a higher rank to this rank, each to its best approximation
    #[arg(long, value_name = "R")]
    max_rank: Option<usize>,
    /// The base checkpoint: provides shapes, the model type, and the values that left-out whole weights are compared
    /// with
    #[arg(long, value_name = "CHECKPOINT")]
    base: Option<String>,
    /// Type in which the factors are stored [default: unchanged]
    #[arg(long, value_enum)]
    dtype: Option<DtypeName>,
    /// Limit on the peak resident memory of the whole process
    /// [default: the smaller of 2GiB and half the available memory]
    #[arg(long, value_name = "SIZE", value_parser = byte_size::parse)]
    memory: Option<u64>,
    /// Discard an earlier result in the output folder and start over
    #[arg(long)]
    overwrite: bool,
    /// Resume a run that was started on a processor with different vector instructions; its bytes may then differ
    #[arg(long)]
    other_simd: bool,
    /// Do not show progress
    #[arg(short, long)]
    quiet: bool,
    /// Print the result as JSON to stdout
    #[arg(long)]
    json: bool,
}

/// Checks, or sanitizes and prints what was done.
pub fn run(arguments: SanitizeArgs) -> Result<ExitCode> {
    let consumers = loaders(&arguments.target);
    let Some(out) = arguments.out.clone() else { return run_check(&arguments, &consumers) };
    let job = Sanitizing {
        adapter: arguments.adapter.clone(),
        out,
        consumers,
        max_rank: arguments.max_rank,
        base: arguments.base.clone(),
        dtype: arguments.dtype.map(FactorType::from),
        memory: arguments.memory.unwrap_or_else(default_memory),
        overwrite: arguments.overwrite,
        other_simd: arguments.other_simd,
    };
    let bar = Bar::new(arguments.quiet);
    leave_on_signal(&bar)?;
    let done = sanitize(&job, &bar);
    bar.clear();
    let done = done?;
    if arguments.json {
        print_json(&done)?;
    } else {
        print(&show(&done, &job))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn run_check(arguments: &SanitizeArgs, consumers: &[Loader]) -> Result<ExitCode> {
    let found = check(&arguments.adapter, arguments.base.as_deref(), consumers)?;
    if arguments.json {
        print_json(&found)?;
    } else {
        print(&show_findings(&found))?;
    }
    match found.iter().filter(|finding| finding.is_failure()).count() {
        0 => Ok(ExitCode::SUCCESS),
        1 => {
            Err(Error::found("1 problem keeps the adapter from loading as intended").path(&arguments.adapter))
        }
        count => Err(Error::found(format!("{count} problems keep the adapter from loading as intended"))
            .path(&arguments.adapter)),
    }
}

fn show_findings(found: &[RuleFinding]) -> String {
    if found.is_empty() {
        return "nothing to fix\n".into();
    }
    let mut text = String::new();
    for finding in found {
        let names: Vec<&str> = finding.consumers.iter().map(|consumer| consumer.name()).collect();
        let (outcome, names) = (finding.outcome.words(), names.join(", "));
        text += &format!(
            "{outcome} ({names}): {} {}; fixable: {}\n",
            finding.at,
            finding.why,
            finding.mend.words()
        );
    }
    text
}

fn show(done: &Sanitized, job: &Sanitizing) -> String {
    let mut text = String::new();
    if !done.pruned.is_empty() {
        let mut rows = table(["left out", "what", "elements", "norm", "change", "relative"]);
        for pruned in &done.pruned {
            let what = pruned.kind.map_or("factors", |kind| kind.words());
            let or_unknown = |value: Option<f64>| value.map_or("unknown".into(), number);
            let (change, relative) = (or_unknown(pruned.change), or_unknown(pruned.relative_change));
            let elements = pruned.elements.to_string();
            rows.add_row([pruned.name.clone(), what.into(), elements, number(pruned.norm), change, relative]);
        }
        text += &format!("{rows}\n\n");
    }
    let [carried, zeros] = [done.modules.len(), done.completed.len()];
    text += &format!("{carried} modules of rank {} in {}", done.rank, done.dtype);
    text += &if zeros > 0 { format!(", and {zeros} of zeros to complete a set\n") } else { "\n".into() };
    let [cut, rounding] = [done.truncation_error, done.rounding_error].map(number);
    text += &format!(
        "relative error of all products: {cut} from truncation, {rounding} from rounding the factors\n"
    );
    text + &format!("adapter: {}\n", job.out.display())
}
