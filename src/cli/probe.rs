//! `trephine probe`.

use std::process::ExitCode;

use clap::Args;
use trephine::commands::probe::{
    AdapterProbe, DescribedTensor, Level, LoaderMatches, Probe, Probed, ProbedGroup, Showing, probe,
    probe_adapter,
};
use trephine::lora::read::PeftAdapter;
use trephine::lora::rules::Fix;
use trephine::{Error, Result};

use crate::cli::ui::byte_size;
use crate::cli::ui::table::{number, table};
use crate::cli::{print, print_json};

/// Shows what is in a checkpoint or an adapter, and what looks wrong.
///
/// Reads only headers, so a checkpoint of any size takes a moment. For a checkpoint: how the weights are stored, the
/// shapes of weights and scales, what is dense, totals, and everything that does not fit. For an adapter: ranks,
/// targets, and whether PEFT, vLLM, SGLang and llama.cpp would load it. Exits with code 4 if the checkpoint cannot be
/// read as it is, or if one of these programs would not apply all of the adapter.
#[derive(Debug, Args)]
pub struct ProbeArgs {
    /// A folder, a file, a name in the Hugging Face cache, an hf://, https:// or s3:// address, or an adapter's folder
    checkpoint: String,
    /// List tensors that match, one by one: a glob over the name or its last parts, or re:REGEX. '*' lists all. Can be
    /// repeated
    #[arg(long = "include", value_name = "PATTERN", alias = "tensor")]
    tensor: Vec<String>,
    /// Also show the first N values of the first N rows of each listed tensor, after dequantization
    #[arg(long, value_name = "N", requires = "tensor", value_parser = clap::value_parser!(u16).range(1..=1024))]
    values: Option<u16>,
    /// The checkpoint that the adapter is for: its modules are matched, and rules depend on it (folder, file, or
    /// cached name)
    #[arg(long, value_name = "CHECKPOINT")]
    base: Option<String>,
    /// Print everything as JSON to stdout
    #[arg(long)]
    json: bool,
}

/// Probes, and prints the result.
pub fn run(arguments: ProbeArgs) -> Result<ExitCode> {
    if PeftAdapter::is_named_by(&arguments.checkpoint)? {
        return adapter(&arguments);
    }
    if arguments.base.is_some() {
        return Err(Error::decide("--base works only on adapters").path(&arguments.checkpoint));
    }
    let values = arguments.values.map_or(0, usize::from);
    let showing = Showing { tensors: arguments.tensor.clone(), values };
    let found = probe(&arguments.checkpoint, &showing)?;
    match arguments.json {
        true => print_json(&found)?,
        false => print(&show(&found))?,
    }
    let wrong = found.findings.iter().filter(|finding| finding.level == Level::Error);
    match wrong.map(|finding| 1 + finding.alike).sum::<usize>() {
        0 => Ok(ExitCode::SUCCESS),
        1 => Err(Error::found("1 problem in the checkpoint").path(found.root)),
        count => Err(Error::found(format!("{count} problems in the checkpoint")).path(found.root)),
    }
}

fn adapter(arguments: &ProbeArgs) -> Result<ExitCode> {
    if !arguments.tensor.is_empty() {
        return Err(Error::decide("--include works only on checkpoints")
            .path(&arguments.checkpoint)
            .hint("give the file adapter_model.safetensors itself to see its tensors"));
    }
    let found = probe_adapter(&arguments.checkpoint, arguments.base.as_deref())?;
    match arguments.json {
        true => print_json(&found)?,
        false => print(&show_adapter(&found))?,
    }
    match found.consumers.iter().filter(|verdict| !verdict.works).count() {
        0 => Ok(ExitCode::SUCCESS),
        count => {
            let programs = found.consumers.len();
            let what = format!("{count} of {programs} programs would not apply all of the adapter");
            let error = Error::found(what).path(&found.root);
            let can_be_mended = found.findings.iter().any(|f| f.is_failure() && f.mend != Fix::No);
            Err(if can_be_mended { error.hint("convert it with trephine sanitize") } else { error })
        }
    }
}

fn show(found: &Probe) -> String {
    let model = found.model_type.as_deref().unwrap_or("unknown model");
    let files = if found.files == 1 { "1 file".to_owned() } else { format!("{} files", found.files) };
    let bytes = byte_size::show(found.bytes);
    let mut text = format!("{model}, {}: {} values in {bytes}, {files}\n\n", found.scheme, found.values);
    let mut rows = table(["stored as", "tensors", "values", "size"]);
    for kind in &found.kinds {
        rows.add_row([
            kind.kind.clone(),
            kind.tensors.to_string(),
            kind.values.to_string(),
            byte_size::show(kind.bytes),
        ]);
    }
    text += &format!("{rows}\n\n");
    match found.tensors.is_empty() {
        true => text += &groups(&found.groups),
        false => found.tensors.iter().for_each(|probed| text += &show_tensor(probed)),
    }
    for finding in &found.findings {
        let word = if finding.level == Level::Error { "error" } else { "warning" };
        let more =
            if finding.alike > 0 { format!(" (and {} more like it)", finding.alike) } else { String::new() };
        text += &format!("{word}: {}{more}\n", finding.what);
        if let Some(hint) = &finding.cure {
            text += &format!("  hint: {hint}\n");
        }
    }
    text
}

fn groups(groups: &[ProbedGroup]) -> String {
    let mut rows = table(["tensors", "count", "shape", "scale for", "size", "stored as"]);
    for group in groups {
        let gaps = if group.gaps { " (not all)" } else { "" };
        rows.add_row([
            format!("{}{gaps}", group.name),
            group.tensors.to_string(),
            sides(&group.shape),
            group.block.map_or_else(String::new, |[rows, columns]| format!("{rows} x {columns}")),
            byte_size::show(group.bytes),
            group.stored.join("; "),
        ]);
    }
    if let Some(column) = rows.column_mut(5) {
        column.set_cell_alignment(comfy_table::CellAlignment::Left);
    }
    format!("{rows}\n\n")
}

fn sides(shape: &[usize]) -> String {
    shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(" x ")
}

/// One tensor with its parts and values.
fn show_tensor(probed: &Probed) -> String {
    let block =
        probed.block.map_or_else(String::new, |[rows, columns]| format!(", a scale for {rows} x {columns}"));
    let mut text =
        format!("{}  {}{block}, {}\n", probed.name, sides(&probed.shape), byte_size::show(probed.bytes));
    for DescribedTensor { name, dtype, shape, bytes, file } in &probed.parts {
        text += &format!("  {name}  {dtype} {shape:?}, {}, in {file}\n", byte_size::show(*bytes));
    }
    if let Some(values) = &probed.values {
        for row in values {
            let row: Vec<String> = row.iter().map(|value| format!("{value:>12.5e}")).collect();
            text += &format!("  {}\n", row.join(" "));
        }
    }
    text + "\n"
}

fn show_adapter(found: &AdapterProbe) -> String {
    let list = |pairs: Vec<String>| if pairs.is_empty() { "none".to_owned() } else { pairs.join(", ") };
    let ranks = list(found.ranks.iter().map(|(rank, count)| format!("{rank} ({count} modules)")).collect());
    let kinds = list(found.kinds.iter().map(|(kind, count)| format!("{kind} ({count})")).collect());
    let or_not_given = |value: Option<String>| value.unwrap_or_else(|| "not given".to_owned());
    let mut text = format!("base     {}\n", or_not_given(found.base.clone()));
    text += &format!("config   r {}, ", or_not_given(found.r.map(|r| r.to_string())));
    text += &format!("lora_alpha {}\n", or_not_given(found.lora_alpha.map(|alpha| alpha.to_string())));
    text += &format!("ranks    {ranks}\n");
    if let Some([low, high]) = found.scales {
        let scale = if low == high { number(low) } else { format!("{} to {}", number(low), number(high)) };
        text += &format!("scale    {scale}\n");
    }
    text += &format!(
        "targets  {}\nmodules  {kinds}\nsize     {}\n",
        list(found.targets.clone()),
        byte_size::show(found.bytes)
    );
    for (name, what) in &found.extras {
        text += &format!("extra    {name}: {what}\n");
    }
    text += "\n";
    let mut rows = table(["program", "loads", "all of it works", "why not"]);
    for verdict in &found.consumers {
        let word = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
        let why = verdict.why.clone().filter(|_| !verdict.works).unwrap_or_default();
        rows.add_row([verdict.consumer.to_string(), word(verdict.loads), word(verdict.works), why]);
    }
    if let Some(column) = rows.column_mut(3) {
        column.set_cell_alignment(comfy_table::CellAlignment::Left);
    }
    text += &format!("{rows}\n\n");
    for LoaderMatches { consumer, matched, unmatched } in &found.matches {
        let all = matched.len() + unmatched.len();
        text += &format!("{consumer}: {} of {all} modules match the base\n", matched.len());
        unmatched.iter().for_each(|name| text += &format!("  unmatched: {name}\n"));
    }
    if !found.matches.is_empty() {
        text += "\n";
    }
    for finding in &found.findings {
        text += &format!("{}: {finding}\n", if finding.is_failure() { "error" } else { "note" });
    }
    text
}
