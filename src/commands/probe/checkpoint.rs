//! Shows what is in a checkpoint, from its headers alone: its tensors, which of them belong together, and everything
//! that looks wrong.

use crate::commands::probe::described::DescribedTensor;
use crate::commands::probe::described::Probed;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use safetensors::Dtype;
use serde::Serialize;
use serde_json::Value;

use crate::checkpoint::Checkpoint;
use crate::checkpoint::catalogue::Tensor;
use crate::checkpoint::module::Module;
use crate::commands::probe::groups::{ProbedGroup, groups};
use crate::delta::select::Selection;
use crate::{Error, Result};

/// What a probe found in a checkpoint.
#[derive(Clone, Debug, Serialize)]
pub struct Probe {
    /// The checkpoint, as given.
    pub name: String,
    /// The folder or file.
    pub root: PathBuf,
    /// The config's `model_type`.
    pub model_type: Option<String>,
    /// How its weights are stored.
    pub scheme: String,
    /// The quantization that the config declares.
    pub quantization: Option<Value>,
    /// Number of weight files.
    pub files: usize,
    /// Stored bytes of all tensors.
    pub bytes: u64,
    /// Number of values in all weights and other dense tensors; scales and codes are not counted separately.
    pub values: u64,
    /// Totals by storage type, the largest first.
    pub kinds: Vec<WeightKind>,
    /// All tensors; those whose names differ only in numbers form one group.
    pub groups: Vec<ProbedGroup>,
    /// The requested tensors, one by one.
    pub tensors: Vec<Probed>,
    /// What looks wrong, the most severe first.
    pub findings: Vec<ProbeFinding>,
}

/// Tensors that are stored the same way.
#[derive(Clone, Debug, Serialize)]
pub struct WeightKind {
    /// `quantized weights`, `dense weights, BF16`, `other tensors, F32` ...
    pub kind: String,
    /// Number of tensors.
    pub tensors: u64,
    /// Number of their values.
    pub values: u64,
    /// Their stored bytes.
    pub bytes: u64,
}

/// The severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Level {
    /// The checkpoint cannot be read as it is.
    Error,
    /// Something rare in healthy checkpoints.
    Warning,
}

/// Something that looks wrong.
#[derive(Clone, Debug, Serialize)]
pub struct ProbeFinding {
    /// Its severity.
    pub level: Level,
    /// What is wrong, with tensor and file.
    pub what: String,
    /// A hint on how to fix it.
    pub cure: Option<String>,
    /// Number of further findings that differ only in numbers, for example those of other layers.
    pub alike: usize,
}

/// What to show besides the summary.
#[derive(Clone, Debug, Default)]
pub struct Showing {
    /// Patterns of tensors to list one by one; empty for none.
    pub tensors: Vec<String>,
    /// The number of rows and columns of values to show for each; 0 for none.
    pub values: usize,
}

/// Probes a checkpoint.
///
/// # Errors
/// A checkpoint that cannot be opened; patterns that are invalid or match nothing; values that cannot be read. What
/// looks wrong is not an error of this function.
pub fn probe(spec: &str, showing: &Showing) -> Result<Probe> {
    let selection = Selection::of_all(&showing.tensors, &[])?;
    let (checkpoint, met) = Checkpoint::inspect(spec)?;
    let everything = everything(&checkpoint);
    let mut found: Vec<ProbeFinding> = Vec::new();
    met.iter().for_each(|error| {
        let cure = error.cure().map(str::to_owned);
        add(&mut found, Level::Error, error.to_string(), cure);
    });
    strays(&checkpoint, &mut found);
    layers(&checkpoint, &mut found);
    found.sort_by_key(|finding| finding.level);
    let wanted = |probed: &&Probed| {
        let short = probed.name.trim_end_matches(".weight");
        !showing.tensors.is_empty()
            && (selection.names(short) || probed.parts.iter().any(|part| selection.names(&part.name)))
    };
    let mut tensors: Vec<Probed> = everything.iter().filter(wanted).cloned().collect();
    if !showing.tensors.is_empty() && tensors.is_empty() {
        return Err(Error::decide("no tensor matches")
            .path(checkpoint.root())
            .hint("list all tensors with --include '*'"));
    }
    if showing.values > 0 {
        tensors.iter_mut().try_for_each(|probed| corner(&checkpoint, probed, showing.values))?;
    }
    Ok(Probe {
        name: spec.to_owned(),
        root: checkpoint.root().to_owned(),
        model_type: model_type(&checkpoint),
        scheme: checkpoint.scheme().label(),
        quantization: checkpoint.config().quantization().map(|declared| declared.raw.clone()),
        files: checkpoint.tensors().map(|tensor| tensor.file).collect::<BTreeSet<_>>().len(),
        bytes: checkpoint.tensors().map(Tensor::size).sum(),
        values: everything.iter().map(Probed::count).sum(),
        kinds: kinds(&everything),
        groups: groups(&everything),
        tensors,
        findings: found,
    })
}

/// The config's `model_type`, or the architecture of a GGUF file that stands for several.
fn model_type(checkpoint: &Checkpoint) -> Option<String> {
    let config = checkpoint.config();
    let architecture = || config.raw()?.get("gguf_architecture")?.as_str();
    config.model_type().or_else(architecture).map(str::to_owned)
}

/// Every module, and every tensor outside modules.
fn everything(checkpoint: &Checkpoint) -> Vec<Probed> {
    let part = |tensor: &Tensor| DescribedTensor {
        name: tensor.name().to_owned(),
        dtype: tensor.stored.dtype.to_string(),
        shape: tensor.stored.shape.to_vec(),
        bytes: tensor.size(),
        file: checkpoint.file_name(tensor.file).to_owned(),
    };
    let module = |module: &Module| Probed {
        name: module.name().to_owned(),
        module: true,
        quantized: module.is_quantized(),
        shape: module.shape().to_vec(),
        block: module.weight().capabilities().block,
        parts: module.tensors().iter().map(part).collect(),
        bytes: module.size(),
        values: None,
    };
    let other = |tensor: &Tensor| Probed {
        name: tensor.name().to_owned(),
        module: false,
        quantized: false,
        shape: tensor.stored.shape.to_vec(),
        block: None,
        parts: vec![part(tensor)],
        bytes: tensor.size(),
        values: None,
    };
    let modules = checkpoint.modules().map(module);
    let mut everything: Vec<Probed> = modules.chain(checkpoint.others().map(other)).collect();
    everything.sort_by(|a, b| a.name.cmp(&b.name));
    everything
}

fn kinds(everything: &[Probed]) -> Vec<WeightKind> {
    let mut kinds: BTreeMap<String, WeightKind> = BTreeMap::new();
    for probed in everything {
        let kind = probed.kind();
        let blank = || WeightKind { kind: kind.clone(), tensors: 0, values: 0, bytes: 0 };
        let sum = kinds.entry(kind.clone()).or_insert_with(blank);
        sum.tensors += 1;
        sum.values += probed.count();
        sum.bytes += probed.bytes;
    }
    let mut kinds: Vec<WeightKind> = kinds.into_values().collect();
    kinds.sort_by_key(|kind| std::cmp::Reverse(kind.bytes));
    kinds
}

/// Adds a finding, or counts it with one that differs only in numbers.
fn add(found: &mut Vec<ProbeFinding>, level: Level, what: String, cure: Option<String>) {
    let plain = |text: &str| text.chars().filter(|c| !c.is_ascii_digit()).collect::<String>();
    match found.iter_mut().find(|known| known.level == level && plain(&known.what) == plain(&what)) {
        Some(known) => known.alike += 1,
        None => found.push(ProbeFinding { level, what, cure, alike: 0 }),
    }
}

/// Finds tensors outside modules that can only be parts of one: scales without a weight, unexplained codes.
fn strays(checkpoint: &Checkpoint, found: &mut Vec<ProbeFinding>) {
    const PARTS: [&str; 9] = [
        ".weight_scale_inv",
        ".weight_scale",
        ".weight_scale_2",
        ".weight_global_scale",
        ".weight_zero_point",
        ".weight_packed",
        ".qweight",
        ".qzeros",
        ".SCB",
    ];
    for tensor in checkpoint.others() {
        let (name, stored) = (tensor.name(), &tensor.stored);
        let coded = matches!(stored.dtype, Dtype::F8_E4M3 | Dtype::F8_E5M2 | Dtype::F4 | Dtype::F8_E8M0);
        if coded || PARTS.iter().any(|part| name.ends_with(part)) {
            let what = format!("{} does not belong to any weight: tensor '{name}'", stored.describe());
            let cure = "its weight is missing, dense, or stored in an unsupported way".to_owned();
            add(found, Level::Warning, what, Some(cure));
        }
    }
}

/// Finds layers that the config declares but the files do not contain.
fn layers(checkpoint: &Checkpoint, found: &mut Vec<ProbeFinding>) {
    let raw = checkpoint.config().raw();
    let field = |key: &str| raw.and_then(|raw| raw.get(key).or_else(|| raw.get("text_config")?.get(key)));
    let Some(declared) = field("num_hidden_layers").and_then(Value::as_u64) else { return };
    let number = |name: &str| {
        let after = name.split_once("layers.").filter(|(before, _)| !before.contains("vis"))?.1;
        after.split('.').next()?.parse::<u64>().ok()
    };
    let held: BTreeSet<u64> = checkpoint.tensors().filter_map(|tensor| number(tensor.name())).collect();
    if held.is_empty() {
        return;
    }
    // A config may claim any number of layers.
    let absent = declared - held.range(..declared).count() as u64;
    let missing = (0..declared).filter(|layer| !held.contains(layer)).take(MOST_NAMED);
    let named: Vec<String> = missing.map(|layer| layer.to_string()).collect();
    if absent > 0 {
        let more = match absent - named.len() as u64 {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let what = format!(
            "the config has {declared} layers, but there is no tensor of layer {}{more}",
            named.join(", ")
        );
        add(
            found,
            Level::Error,
            what,
            Some("the download is incomplete: fetch the checkpoint again".to_owned()),
        );
    }
}

/// Absent layers that are named in a finding.
const MOST_NAMED: usize = 20;

/// Reads the first values of the first rows.
fn corner(checkpoint: &Checkpoint, probed: &mut Probed, side: usize) -> Result<()> {
    let lines = || checkpoint.tensor(&probed.name).and_then(Module::lines);
    let module = if probed.module { checkpoint.module(&probed.name).cloned() } else { lines() };
    let Some(module) = module.filter(|module| !module.shape().contains(&0)) else { return Ok(()) };
    let [rows, columns] = module.shape();
    let (rows, width) = (rows.min(side), columns.min(side));
    let mut row = vec![0f32; columns];
    let mut values = Vec::with_capacity(rows);
    for at in 0..rows {
        module.panel(checkpoint, at..at + 1, &mut row)?;
        values.push(row[..width].to_vec());
    }
    probed.values = Some(values);
    Ok(())
}
