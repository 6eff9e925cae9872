//! `trephine sanitize`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use trephine::commands::extract::default_memory;
use trephine::commands::sanitize::{Sanitized, Sanitizing, check, sanitize};
use trephine::lora::FactorType;
use trephine::lora::rules::{Loader, RuleFinding};
use trephine::{Error, Result};

use crate::cli::ui::byte_size;
use crate::cli::ui::progress_bar::Bar;
use crate::cli::ui::signal::leave_on_signal;
use crate::cli::ui::table::{number, table};
use crate::cli::ui::value_enums::DtypeName;
use crate::cli::{print, print_json};

/// Makes any LoRA adapter, mergekit's among them, one that a given program loads.
///
/// One rank for all modules, the scale multiplied into the factors, names and config mended; what the program does not take,
/// as norms and whole weights, is left out and told with its norm. What the adapter adds to each weight stays as it is.
#[derive(Debug, Args)]
pub struct SanitizeArgs {
    /// The adapter: a folder with adapter_config.json and adapter_model.safetensors, or a name in the Hugging Face cache
    adapter: String,
    /// The folder to write the new adapter to
    #[arg(long, value_name = "DIR", required_unless_present = "check")]
    out: Option<PathBuf>,
    /// The program that is to load it. Can be repeated; `all` is the adapter that every one of them loads
    #[arg(long = "for", value_enum, value_name = "PROGRAM", default_values_t = [Target::All])]
    target: Vec<Target>,
    /// Only say what would be refused, and end with 4 if anything would be
    #[arg(long, conflicts_with = "out")]
    check: bool,
    /// Cut modules of a higher rank down to this one, each to the best approximation there is
    #[arg(long, value_name = "R")]
    max_rank: Option<usize>,
    /// The base: tells shapes and kind, and what whole weights that are left out had changed
    #[arg(long, value_name = "CHECKPOINT")]
    base: Option<String>,
    /// How the factors are stored [default: as they were]
    #[arg(long, value_enum)]
    dtype: Option<DtypeName>,
    /// Peak resident memory of the whole process [default: the smaller of 2GiB and half of what is available]
    #[arg(long, value_name = "SIZE", value_parser = byte_size::parse)]
    memory: Option<u64>,
    /// Throw away an earlier result in the output folder
    #[arg(long)]
    overwrite: bool,
    /// Continue a run that was begun on a processor with other vector instructions; its bytes may then differ
    #[arg(long)]
    other_simd: bool,
    /// No progress
    #[arg(short, long)]
    quiet: bool,
    /// The result as JSON on stdout
    #[arg(long)]
    json: bool,
}

/// A program that loads adapters, as `--for` names it.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Target {
    Vllm,
    Sglang,
    #[value(name = "llama.cpp")]
    LlamaCpp,
    Peft,
    All,
}

impl SanitizeArgs {
    fn consumers(&self) -> Vec<Loader> {
        let of = |target: &Target| match target {
            Target::Vllm => &[Loader::Vllm][..],
            Target::Sglang => &[Loader::Sglang],
            Target::LlamaCpp => &[Loader::LlamaCpp],
            Target::Peft => &[Loader::Peft],
            Target::All => &Loader::ALL,
        };
        let named: Vec<Loader> = self.target.iter().flat_map(of).copied().collect();
        Loader::ALL.into_iter().filter(|consumer| named.contains(consumer)).collect()
    }
}

/// Checks, or sanitizes and tells what was done.
pub fn run(arguments: SanitizeArgs) -> Result<ExitCode> {
    let consumers = arguments.consumers();
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
        1 => Err(Error::found("1 thing keeps the adapter from being loaded as it is meant")
            .path(&arguments.adapter)),
        count => {
            Err(Error::found(format!("{count} things keep the adapter from being loaded as it is meant"))
                .path(&arguments.adapter))
        }
    }
}

fn show_findings(found: &[RuleFinding]) -> String {
    if found.is_empty() {
        return "nothing to mend\n".into();
    }
    let mut text = String::new();
    for finding in found {
        let names: Vec<&str> = finding.consumers.iter().map(|consumer| consumer.name()).collect();
        let (outcome, names) = (finding.outcome.words(), names.join(", "));
        text += &format!(
            "{outcome} ({names}): {} {}; mended: {}\n",
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
    text += &if zeros > 0 { format!(", and {zeros} of zeros that complete a set\n") } else { "\n".into() };
    let [cut, rounding] = [done.truncation_error, done.rounding_error].map(number);
    text +=
        &format!("error of all products: {cut} by the cut to this rank, {rounding} by storing the factors\n");
    text + &format!("adapter: {}\n", job.out.display())
}
