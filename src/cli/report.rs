//! `trephine report`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use trephine::Result;
use trephine::report::{Report, Summary, report};

use crate::cli::ui::byte_size;
use crate::cli::{print, print_json};

/// Writes one self-contained HTML page from what the other commands wrote: figures, their numbers, and a summary in
/// words.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Folders that extract, fidelity, analyze or autopsy wrote; several are compared
    #[arg(required = true, value_name = "DIR")]
    folders: Vec<PathBuf>,
    /// The HTML file to write
    #[arg(short, long, value_name = "FILE", default_value = "report.html")]
    out: PathBuf,
    /// Also write every plot as an SVG file into this folder
    #[arg(long, value_name = "DIR")]
    svg: Option<PathBuf>,
    /// Print the summary's numbers as JSON to stdout
    #[arg(long)]
    json: bool,
}

/// The summary, and where the page was written.
#[derive(Serialize)]
struct ReportResult<'a> {
    out: &'a PathBuf,
    bytes: u64,
    plots: &'a [PathBuf],
    #[serde(flatten)]
    summary: &'a Summary,
}

/// Writes the page, and prints the summary at its top.
pub fn run(arguments: ReportArgs) -> Result<ExitCode> {
    let ReportArgs { folders, out, svg, json } = arguments;
    let job = Report { folders, out, svg };
    let reported = report(&job)?;
    if json {
        let result = ReportResult {
            out: &job.out,
            bytes: reported.bytes,
            plots: &reported.plots,
            summary: &reported.summary,
        };
        print_json(&result)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = String::new();
    for sentence in &reported.summary.sentences {
        text += &format!("{sentence}\n");
    }
    text += &format!("\nreport: {} ({})\n", job.out.display(), byte_size::show(reported.bytes));
    if let Some(folder) = &job.svg {
        text += &format!("plots:  {} in {}\n", reported.plots.len(), folder.display());
    }
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}
