//! The plan of an extraction, for people: a row for each kind of module.

use std::collections::BTreeMap;
use std::time::Duration;

use trephine::commands::extract::{Extraction, ExtractionPlan, PlannedModule, kind};
use trephine::lora::{group_of, place_of};
use trephine::run::Part;
use trephine::storage::Kept;

use crate::cli::ui::byte_size;
use crate::cli::ui::screen::{facts, fitted, wrapped};
use crate::cli::ui::table::table;
use crate::cli::ui::words::counted;

/// The plan, or that of one part.
///
/// `link_rate` is the speed of the link to a server, in bytes a second.
pub fn show_plan(plan: &ExtractionPlan, part: Option<Part>, job: &Extraction, link_rate: u64) -> String {
    let mut text = part.map_or(String::new(), |part| format!("part {part} of the run\n"));
    for note in &plan.notes {
        text += &wrapped(&format!("note: {note}"), 6);
    }
    text += &modules(plan);
    text += &left_out(plan);
    let size = byte_size::show(plan.adapter_bytes);
    let adapter =
        format!("rank {}, {size} in {}", plan.rank, format!("{:?}", job.deciding.dtype).to_lowercase());
    let [memory, least] = [plan.memory, plan.least_memory].map(byte_size::show);
    let [read, disk] = [plan.read_bytes, plan.disk_bytes].map(byte_size::show);
    let time = humantime::format_duration(Duration::from_secs(plan.seconds.ceil() as u64));
    let mut lines = vec![
        ("adapter", adapter),
        ("memory", format!("{memory} of peak resident memory allowed, {least} needed")),
        ("disk", format!("{read} to read, {disk} to write")),
    ];
    lines.extend(link(plan, link_rate).map(|text| ("link", text)));
    let how = format!("about {time} on {} threads, from a short measurement of this machine", plan.threads);
    lines.push(("time", how));
    text + &facts(&lines)
}

/// What crosses the link to a server, and how long that takes; `None` where nothing does.
fn link(plan: &ExtractionPlan, rate: u64) -> Option<String> {
    let bytes = plan.link_bytes;
    let seconds = (bytes as f64 / rate.max(1) as f64).ceil() as u64;
    let time = humantime::format_duration(Duration::from_secs(seconds));
    let scratch: u64 = plan
        .modules
        .iter()
        .filter(|m| m.kept == Some(Kept::Scratch))
        .map(|m| m.link_bytes)
        .max()
        .unwrap_or(0);
    let scratch = if scratch > 0 {
        format!("; up to {} of a module on scratch", byte_size::show(scratch))
    } else {
        String::new()
    };
    let [size, rate] = [bytes, rate].map(byte_size::show);
    (bytes > 0).then(|| {
        format!("{size} ({bytes} bytes) to fetch, each once: {time} at {rate}/s (--link-rate){scratch}")
    })
}

fn modules(plan: &ExtractionPlan) -> String {
    let mut kinds: BTreeMap<(String, [usize; 2]), Vec<&PlannedModule>> = BTreeMap::new();
    for module in &plan.modules {
        let key = (kind(&module.name, place_of(&module.name)), module.shape);
        kinds.entry(key).or_default().push(module);
    }
    let headings = ["kind", "modules", "shape", "method", "delta in memory", "memory each", "TFLOP"];
    let mut rows = table(headings);
    for ((kind, [m, n]), modules) in &kinds {
        let memory = modules.iter().map(|module| module.holding.memory).max().unwrap_or(0);
        let tflop = modules.iter().map(|module| module.flops).sum::<f64>() / 1e12;
        let methods = modules.iter().map(|module| module.method.as_str());
        rows.add_row([
            kind.clone(),
            modules.len().to_string(),
            format!("{m} x {n}"),
            one_or(methods, "mixed"),
            one_or(modules.iter().map(|m| if m.holding.held { "held" } else { "recomputed" }), "in part"),
            byte_size::show(memory),
            format!("{tflop:.3}"),
        ]);
    }
    let count = counted(plan.modules.len() as u64, "module");
    format!("{}\n\n{count}\n", fitted(rows, &[5, 4, 6, 3]))
}

/// The word that all have, or another one.
fn one_or<'a>(mut words: impl Iterator<Item = &'a str>, other: &str) -> String {
    let first = words.next().unwrap_or_default();
    if words.all(|word| word == first) { first.to_owned() } else { other.to_owned() }
}

/// What the adapter will not contain, by reason and kind.
fn left_out(plan: &ExtractionPlan) -> String {
    let mut groups: BTreeMap<&str, BTreeMap<String, u64>> = BTreeMap::new();
    for left in &plan.not_represented {
        let stem = left.name.strip_suffix(".weight").unwrap_or(&left.name);
        *groups.entry(left.reason.words()).or_default().entry(group_of(stem)).or_default() += 1;
    }
    let line = |(reason, kinds): (&str, BTreeMap<String, u64>)| {
        let kinds: Vec<String> = kinds
            .into_iter()
            .map(|(kind, count)| if count == 1 { kind } else { format!("{count} {kind}") })
            .collect();
        wrapped(&format!("not in the adapter, {reason}: {}", kinds.join(", ")), 2)
    };
    groups.into_iter().map(line).collect()
}
