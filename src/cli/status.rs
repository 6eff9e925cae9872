//! `trephine status`.

use std::io::{IsTerminal, stdout};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use trephine::Result;
use trephine::run::{AttemptStatus, RunState, Status, UnitKind, status};

use crate::cli::ui::byte_size;
use crate::cli::ui::output::clear_screen;
use crate::cli::ui::table::table;
use crate::cli::{print_json, print_on, quoted};

/// Shows the progress of a run, split into parts or not, from its files alone.
///
/// Whether a process is running is a guess from its last heartbeat, which it writes every 10 s; after 90 s of silence
/// it counts as lost.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The output folder
    #[arg(value_name = "DIR")]
    out: PathBuf,
    /// Repeat every so many seconds, until the run is finished
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "5")]
    watch: Option<u64>,
    /// Print JSON to stdout; with --watch, one line each time
    #[arg(long)]
    json: bool,
}

/// Shows the status once, or repeatedly.
pub fn run(arguments: StatusArgs) -> Result<ExitCode> {
    loop {
        let status = status(&arguments.out)?;
        let text = match (arguments.json, arguments.watch) {
            (true, None) => return print_json(&status).map(|()| ExitCode::SUCCESS),
            (true, Some(_)) => serde_json::to_string(&status).unwrap_or_default() + "\n",
            (false, None) => show(&status),
            (false, Some(_)) => {
                // On a terminal, each status replaces the one before.
                if stdout().is_terminal() {
                    let _ = clear_screen(&mut stdout());
                }
                show(&status) + "\n"
            }
        };
        // Nobody reads any more, as behind `| head -1`: there is nothing to watch for.
        if !print_on(&text)? {
            return Ok(ExitCode::SUCCESS);
        }
        match arguments.watch {
            Some(seconds) if status.state != RunState::Assembled => {
                std::thread::sleep(Duration::from_secs(seconds.max(1)));
            }
            _ => return Ok(ExitCode::SUCCESS),
        }
    }
}

fn time(seconds: f64) -> String {
    humantime::format_duration(Duration::from_secs(seconds.ceil() as u64)).to_string()
}

fn show(status: &Status) -> String {
    let mut text =
        if status.attempts.is_empty() { String::new() } else { show_attempts(&status.attempts, status.unit) };
    let total = status.total.map_or(String::new(), |total| format!(" of {}", total.modules));
    text += &format!("{}{total} {} are done", status.modules, status.unit.plural());
    if status.state == RunState::Assembled {
        // Only extract makes an adapter; the records of other commands do not mention parts.
        let what = if status.out.join("extraction.json").exists() {
            "the adapter is assembled"
        } else {
            "the run is finished"
        };
        return text + &format!(", {what}: {}\n", status.out.display());
    }
    if let Some(total) = status.total {
        if total.compared > 0 {
            text += &format!(" and {} of {} comparisons", status.compared, total.compared);
        }
        if status.shard_bytes > 0 {
            let what = if status.unit == UnitKind::File { "files" } else { "shards" };
            text += &format!("; {} of {what} are written", byte_size::show(status.shard_bytes));
        }
        let (read, total) = (byte_size::show(status.read_bytes), byte_size::show(total.bytes));
        text += &format!(", {read} of {total} were read");
    }
    text += "\n";
    if !status.not_begun.is_empty() {
        let (parts, of) = (ranges(&status.not_begun), status.parts.unwrap_or(0));
        text += &format!("not started: part {parts} of {of}\n");
    }
    let out = quoted(&status.out.to_string_lossy());
    text + &match (status.state, status.seconds_left) {
        (RunState::Complete, _) => format!("everything is done: trephine assemble {out}\n"),
        (RunState::Idle, _) => {
            format!(
                "no process appears to be running; trephine assemble {out} says what is missing and how to do it\n"
            )
        }
        (_, Some(left)) => format!("about {} left for what is running\n", time(left)),
        (_, None) => "the time left is not known yet\n".to_owned(),
    }
}

/// Numbers in ascending order, neighbours together: `1, 3-7`; of many ranges the first.
fn ranges(numbers: &[usize]) -> String {
    const MOST: usize = 20;
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for &number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    let show = |(first, last): &(usize, usize)| match last - first {
        0 => first.to_string(),
        1 => format!("{first}, {last}"),
        _ => format!("{first}-{last}"),
    };
    let shown: Vec<String> = ranges.iter().take(MOST).map(show).collect();
    let more = if ranges.len() > MOST { ", and others" } else { "" };
    shown.join(", ") + more
}

fn show_attempts(attempts: &[AttemptStatus], unit: UnitKind) -> String {
    let mut rows = table(["part", "where", "state", unit.plural(), "read", "heartbeat", "left"]);
    for attempt in attempts {
        let part = attempt.part.map_or("-".to_owned(), |part| part.to_string());
        let place = match (&attempt.host, attempt.process) {
            (Some(host), Some(process)) => format!("{host} ({process})"),
            _ => "unknown".to_owned(),
        };
        let total = attempt.ahead.map_or(String::new(), |ahead| format!("/{}", ahead.modules));
        let heard = attempt.heard.map_or("never".to_owned(), |heard| format!("{} ago", time(heard)));
        let left = attempt.seconds_left.map_or("-".to_owned(), time);
        let modules = format!("{}{total}", attempt.modules);
        let state = attempt.state.word().to_owned();
        rows.add_row([part, place, state, modules, byte_size::show(attempt.read_bytes), heard, left]);
    }
    let errors = attempts.iter().filter_map(|attempt| {
        let (error, part) = (attempt.error.as_ref()?, attempt.part);
        Some(format!("{}failed: {error}\n", part.map_or(String::new(), |part| format!("part {part} "))))
    });
    format!("{rows}\n\n{}", errors.collect::<String>())
}
