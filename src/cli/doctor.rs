//! `trephine doctor`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use trephine::checkpoint::Checkpoint;
use trephine::commands::extract::{
    Allowances, Extraction, ResultOptions, available_memory, default_memory, plan,
};
use trephine::commands::probe::{Level, Showing, probe};
use trephine::durable::folder;
use trephine::pipeline::RunOptions;
use trephine::run::simd_level;
use trephine::{Error, Result};

use crate::cli::ui::byte_size;
use crate::cli::ui::rank;
use crate::cli::ui::screen::wrapped;
use crate::cli::ui::words::counted;
use crate::cli::ui::work_clock::in_words;
use crate::cli::{print, print_json, threads};

/// Checks this machine, and a pair of checkpoints, before hours of work.
///
/// Of the machine: vector instructions, memory, free disk. Of a pair, from headers alone: whether each checkpoint is
/// whole, whether they belong together, what the adapter would lack, and what the extraction needs. Exits with code 4
/// if something would fail.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// The base of a planned extraction
    #[arg(long, value_name = "CHECKPOINT", requires = "tuned")]
    base: Option<String>,
    /// Its tuned checkpoint
    #[arg(long, value_name = "CHECKPOINT", requires = "base")]
    tuned: Option<String>,
    /// Its output folder
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
    /// Its rank
    #[arg(short, long, default_value_t = 128, value_parser = rank::parse, allow_negative_numbers = true)]
    rank: usize,
    /// Its limit on memory [default: the smaller of 2GiB and half the available memory]
    #[arg(long, value_name = "SIZE", value_parser = byte_size::parse)]
    memory: Option<u64>,
    /// Its number of threads [default: one per processor]
    #[arg(long)]
    threads: Option<usize>,
    /// Print the findings as JSON to stdout
    #[arg(long)]
    json: bool,
}

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Health {
    Ok,
    Note,
    Error,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Check {
    health: Health,
    what: &'static str,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

/// Version of the JSON form.
const VERSION: u32 = 1;

#[derive(Debug, Serialize)]
struct Report {
    version: u32,
    checks: Vec<Check>,
}

fn check(health: Health, what: &'static str, found: impl Into<String>) -> Check {
    Check { health, what, found: found.into(), hint: None }
}

fn failed(what: &'static str, error: &Error) -> Check {
    Check { health: Health::Error, what, found: error.to_string(), hint: error.cure().map(str::to_owned) }
}

/// Checks, and prints what was found.
pub fn run(arguments: DoctorArgs) -> Result<ExitCode> {
    let threads = threads(arguments.threads)?;
    let memory = arguments.memory.unwrap_or_else(default_memory);
    let mut checks = machine(threads, memory, &arguments.out);
    if let (Some(base), Some(tuned)) = (&arguments.base, &arguments.tuned) {
        let whole = [("base", base), ("tuned", tuned)].map(|(what, place)| checkpoint(what, place));
        let opened = whole.iter().flatten().all(|check| check.health != Health::Error);
        checks.extend(whole.into_iter().flatten());
        if opened {
            let job = Extraction {
                base: base.clone(),
                tuned: tuned.clone(),
                served: None,
                calibration: None,
                hybrid: None,
                out: arguments.out.clone(),
                deciding: ResultOptions { rank: arguments.rank, ..ResultOptions::for_base(base) },
                allow: Allowances::default(),
                running: RunOptions::new(threads, memory),
            };
            checks.extend(pair(&job));
        }
    }
    let errors = checks.iter().filter(|check| check.health == Health::Error).count();
    let report = Report { version: VERSION, checks };
    if arguments.json {
        print_json(&report)?;
    } else {
        print(&show(&report.checks))?;
    }
    match errors {
        0 => Ok(ExitCode::SUCCESS),
        count => Err(Error::found(format!("{} would stop the work", counted(count as u64, "problem")))),
    }
}

fn machine(threads: usize, memory: u64, out: &Path) -> Vec<Check> {
    let simd = simd_level();
    let mut checks = vec![check(
        Health::Ok,
        "processor",
        format!("{}, vector instructions: {simd}", counted(threads as u64, "thread")),
    )];
    let available = available_memory();
    let health = if memory <= available { Health::Ok } else { Health::Note };
    checks.push(check(
        health,
        "memory",
        format!(
            "{} are available; the work may take {}",
            byte_size::show(available),
            byte_size::show(memory)
        ),
    ));
    checks.push(match folder::free_space(out) {
        Ok(free) => {
            check(Health::Ok, "disk", format!("{} are free at {}", byte_size::show(free), out.display()))
        }
        Err(error) => failed("disk", &error),
    });
    checks
}

/// Whether a checkpoint is whole, from its headers.
fn checkpoint(what: &'static str, place: &str) -> Vec<Check> {
    let found = match probe(place, &Showing::default()) {
        Ok(found) => found,
        Err(error) => return vec![failed(what, &error)],
    };
    let model = found.model_type.as_deref().unwrap_or("no config");
    let words = format!(
        "{model}, {}, {} in {}",
        found.scheme,
        byte_size::show(found.bytes),
        counted(found.files as u64, "file")
    );
    let mut checks = vec![check(Health::Ok, what, words)];
    for finding in found.findings {
        let health = if finding.level == Level::Error { Health::Error } else { Health::Note };
        checks.push(Check { health, what, found: finding.what, hint: finding.cure });
    }
    let vocabulary = Checkpoint::open(place).ok().and_then(|opened| {
        let (rows, declared) = (opened.input_embedding()?.shape()[0] as u64, opened.config().vocab_size()?);
        (rows != declared).then(|| format!("the config has {declared} tokens, the embedding {rows} rows"))
    });
    checks.extend(vocabulary.map(|words| check(Health::Note, what, words)));
    checks
}

/// Whether the two belong together, and what extracting needs.
fn pair(job: &Extraction) -> Vec<Check> {
    let plan = match plan(job) {
        Ok(plan) => plan,
        Err(error) => return vec![failed("extraction", &error)],
    };
    let mut checks: Vec<Check> =
        plan.notes.iter().map(|note| check(Health::Note, "extraction", note)).collect();
    let free = folder::free_space(&job.out).unwrap_or(u64::MAX);
    if free < plan.disk_bytes {
        let [needed, free] = [plan.disk_bytes, free].map(byte_size::show);
        let found = format!("{needed} of disk are needed, {free} are free");
        checks.push(Check { hint: Some("give another --out".into()), ..check(Health::Error, "disk", found) });
    }
    let [least, disk] = [plan.least_memory, plan.disk_bytes].map(byte_size::show);
    checks.push(check(
        Health::Ok,
        "extraction",
        format!(
            "{} at rank {}; needs {least} of memory, {disk} of disk, about {}",
            counted(plan.modules.len() as u64, "module"),
            plan.rank,
            in_words(plan.seconds)
        ),
    ));
    checks
}

fn show(checks: &[Check]) -> String {
    let mut text = String::new();
    for Check { health, what, found, hint } in checks {
        let word = match health {
            Health::Ok => "ok",
            Health::Note => "note",
            Health::Error => "error",
        };
        text += &wrapped(&format!("{word}: {what}: {found}"), 6);
        if let Some(hint) = hint {
            text += &wrapped(&format!("hint: {hint}"), 6);
        }
    }
    text
}
