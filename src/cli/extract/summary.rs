//! The end of an extraction, for people: how good the adapter is, what it lacks, and what to do next.

use trephine::commands::extract::mostly_noise;
use trephine::commands::extract::output::{
    ExtractionOutcome, LowerRank, Manifest, OtherRank, mostly_left_out, serve_line, upload_line,
};

use crate::cli::quoted;
use crate::cli::ui::byte_size;
use crate::cli::ui::screen::{facts, fitted, wrapped};
use crate::cli::ui::table::{number, table};
use crate::cli::ui::work_clock::in_words;

/// The number of other ranks on the line that tells of them.
const OTHERS: usize = 4;

/// The result of a run.
pub fn show_outcome(outcome: &ExtractionOutcome) -> String {
    let manifest = &outcome.manifest;
    let most = mostly_left_out(manifest).map(|what| wrapped(&format!("warning: {what}"), 9) + "\n");
    let mut text = most.unwrap_or_default() + &kinds(outcome);
    text += &facts(
        &[
            ("captured", captured(manifest)),
            ("also", lower_ranks(outcome)),
            ("ranks", other_ranks(manifest)),
            ("served", served(manifest)),
            ("minimized", minimized(manifest)),
            ("adapter", adapter(outcome)),
            ("run", run(outcome)),
        ]
        .into_iter()
        .filter(|(_, text)| !text.is_empty())
        .collect::<Vec<_>>(),
    );
    if let Some(sentence) = manifest.non_finite() {
        text += &wrapped(&format!("warning: {sentence}"), 9);
    }
    text + &noise(manifest) + &left_out(outcome) + &next(outcome)
}

fn kinds(outcome: &ExtractionOutcome) -> String {
    let weighted = outcome.manifest.total.outputs.is_some();
    let mut rows = match weighted {
        true => table(["kind", "modules", "rank", "mean error", "worst error", "captured", "of outputs"]),
        false => table(["kind", "modules", "rank", "mean error", "worst error", "captured"]),
    };
    for kind in &outcome.kinds {
        let [mean, worst] = [kind.mean_error, kind.worst_error].map(number);
        let captured = format!("{:.2} %", 100.0 * kind.captured_energy);
        let outputs = kind.outputs.map_or("-".into(), |outputs| number(outputs.relative_error));
        let cells = [kind.kind.clone(), kind.modules.to_string(), kind.ranks_text(), mean, worst, captured];
        rows.add_row(cells.into_iter().chain(weighted.then_some(outputs)));
    }
    format!("{}\n\n", fitted(rows, &[4, 1, 3]))
}

/// The captured share in words: of what, and why that of Method B is lower.
fn captured(manifest: &Manifest) -> String {
    let total = &manifest.total;
    let (share, error) = (100.0 * total.captured_energy, number(total.relative_error));
    match manifest.base.is_quantized() {
        false => format!("{share:.2} % of the change (relative error {error}): Method A"),
        true => format!(
            "{share:.2} % of the change and the base's quantization error together (relative error {error}): Method B. \
             Quantization error is spread over all directions and no low rank holds much of it, so this share is lower \
             than Method A's, without the adapter serving worse"
        ),
    }
}

/// The adapters of lower ranks that were written too.
fn lower_ranks(outcome: &ExtractionOutcome) -> String {
    let one = |lower: &LowerRank| {
        let captured =
            lower.total.outputs.map_or(lower.total.captured_energy, |outputs| outputs.captured_energy);
        format!("{} ({:.2} %)", outcome.out.join(&lower.folder).display(), 100.0 * captured)
    };
    outcome.manifest.lower_ranks.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// What other ranks would capture, the nearest ones.
fn other_ranks(manifest: &Manifest) -> String {
    let all = &manifest.other_ranks;
    let higher = all.iter().filter(|other| other.rank > manifest.rank).count();
    let first = (all.len() - higher).saturating_sub(OTHERS - higher.min(OTHERS / 2));
    let one = |other: &OtherRank| {
        let bound = if other.lower_bound { "at least " } else { "" };
        format!("{} {bound}{:.2} %", other.rank, 100.0 * other.captured_energy)
    };
    let shown: Vec<String> = all.iter().skip(first).take(OTHERS).map(one).collect();
    match shown.is_empty() {
        true => String::new(),
        false => format!("another rank would capture: {}", shown.join(", ")),
    }
}

fn served(manifest: &Manifest) -> String {
    let Some(served) = manifest.total.served else { return String::new() };
    let share = match served.without_adapter > 0.0 {
        true => format!("{:.1} %", 100.0 * served.with_adapter / served.without_adapter),
        false => "they were the tuned ones".to_owned(),
    };
    format!(
        "the weights are {} from the tuned ones with the adapter, {} without ({share}); that is a distance of weights, \
         most of which may be quantization noise, not a loss: `trephine evaluate` measures the loss",
        number(served.with_adapter),
        number(served.without_adapter),
    )
}

/// Which error is the least, if not that of the weights.
fn minimized(manifest: &Manifest) -> String {
    if let (Some(calibration), Some(outputs)) = (&manifest.calibration, manifest.total.outputs) {
        let plain = manifest.modules.iter().filter(|module| module.quality.outputs.is_none()).count();
        let rest =
            if plain == 0 { String::new() } else { format!(" ({plain} modules without: of the weights)") };
        return format!(
            "the error of the layers' outputs on {}{rest}: {} of what the delta changes them by, {:.2} % captured",
            calibration.name,
            number(outputs.relative_error),
            100.0 * outputs.captured_energy
        );
    }
    manifest.hybrid.as_ref().map_or(String::new(), |dense| {
        format!("the error of the change from {}, then that of the weights", dense.name)
    })
}

fn adapter(outcome: &ExtractionOutcome) -> String {
    let (manifest, size) = (&outcome.manifest, byte_size::show(outcome.adapter_bytes));
    let modules = manifest.modules.len();
    format!("{}: {modules} modules, rank {}, {size}", outcome.out.display(), manifest.rank)
}

fn run(outcome: &ExtractionOutcome) -> String {
    let peak = outcome.peak_memory.map(|peak| format!("peak memory {}", byte_size::show(peak)));
    match outcome.seconds {
        None => "already complete: nothing was left to do".to_owned(),
        Some(seconds) => {
            let time = if seconds < 10.0 { format!("{seconds:.1} s") } else { in_words(seconds) };
            [Some(time), peak].into_iter().flatten().collect::<Vec<_>>().join(", ")
        }
    }
}

/// Lines for an adapter that holds mostly the noise of its base.
fn noise(manifest: &Manifest) -> String {
    let Some(share) = mostly_noise(manifest) else { return String::new() };
    let note = format!(
        "note: about {:.0} % of what this adapter holds is quantization noise of the base, not the fine-tune (estimated \
         from the base's format)",
        100.0 * share
    );
    let better = "      better: --calibration DIR, made by `trephine calibrate --model TUNED --text FILE --out DIR`; or \
                  --hybrid DENSE_BASE; or --base DENSE_BASE (Method A)";
    wrapped(&note, 6) + &wrapped(better, 6)
}

fn left_out(outcome: &ExtractionOutcome) -> String {
    if outcome.left_out.is_empty() {
        return String::new();
    }
    let mut rows = table(["not in the adapter", "why", "tensors", "elements", "largest change"]);
    for group in &outcome.left_out {
        let change = group.largest_change.map_or("unknown".into(), |c| format!("{:.2} %", 100.0 * c));
        let [tensors, elements] = [group.tensors.to_string(), group.elements.to_string()];
        rows.add_row([group.kind.clone(), group.reason.words().to_owned(), tensors, elements, change]);
    }
    let table = format!("\n{}\n\n", fitted(rows, &[3, 2, 1]));
    let taken: Vec<String> = outcome.left_out.iter().filter_map(|g| g.flag(&outcome.manifest)).collect();
    match taken.is_empty() {
        true => table,
        false => {
            table + &wrapped(&format!("note: to take what was not selected: {}", taken.join("; or ")), 6)
        }
    }
}

/// The commands that a person runs next.
fn next(outcome: &ExtractionOutcome) -> String {
    let out = quoted(&outcome.out.to_string_lossy());
    let manifest = &outcome.manifest;
    let base = manifest.options.get("base_model_name").and_then(|name| name.as_str());
    let base = base.unwrap_or(&manifest.base.name);
    let mut text = format!("next: trephine verify {out}\n");
    if let Some(line) = serve_line(manifest, base, &out) {
        text += &format!("      {line}\n");
    }
    text + &format!(
        "      trephine convert-adapter {out} --format gguf --base {} --out {out}-gguf   # llama.cpp\n      {}\n",
        quoted(base),
        upload_line(&out)
    )
}
