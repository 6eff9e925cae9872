//! The plan of an extraction, for people: a row for each kind of module.

use std::collections::BTreeMap;
use std::time::Duration;

use trephine::commands::extract::{Extraction, ExtractionPlan, PlannedModule, kind};
use trephine::lora::{group_of, place_of};
use trephine::run::Part;

use crate::cli::ui::byte_size;
use crate::cli::ui::screen::{facts, fitted, wrapped};
use crate::cli::ui::table::table;
use crate::cli::ui::words::counted;

/// The plan, or that of one part.
pub fn show_plan(plan: &ExtractionPlan, part: Option<Part>, job: &Extraction) -> String {
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
    text + &facts(&[
        ("adapter", adapter),
        ("memory", format!("{memory} of peak resident memory allowed, {least} needed")),
        ("disk", format!("{read} to read, {disk} to write")),
        (
            "time",
            format!("about {time} on {} threads, from a short measurement of this machine", plan.threads),
        ),
    ])
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
