//! The summary of a run, for tables.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use crate::commands::extract::output::manifest::{Manifest, total};
use crate::commands::extract::output::quoting::shell_word;
use crate::commands::extract::plan::kind;
use crate::delta::module_record::{ModuleRecord, OutputError};
use crate::delta::record::Reason;
use crate::lora::names::{group_of, place_of};
use crate::pipeline::peak_resident;

/// The version of the JSON form of [`ExtractionOutcome`].
const SUMMARY_VERSION: u32 = 1;

/// The outcome of a run.
#[derive(Clone, Debug, Serialize)]
pub struct ExtractionOutcome {
    /// The folder of the adapter.
    pub out: PathBuf,
    /// Version of this JSON.
    pub version: u32,
    /// Whether an earlier run had already finished it.
    pub was_done: bool,
    /// Size of the adapter's weights in bytes.
    pub adapter_bytes: u64,
    /// Seconds that this run took; absent if it had nothing to do.
    pub seconds: Option<f64>,
    /// Peak resident memory of the process in bytes, where the system reports it.
    pub peak_memory: Option<u64>,
    /// Quality by kind of module.
    pub kinds: Vec<KindSummary>,
    /// The tensors that are not in the adapter, by kind and reason.
    pub left_out: Vec<LeftOutGroup>,
    /// The manifest.
    #[serde(flatten)]
    pub manifest: Manifest,
}

impl ExtractionOutcome {
    /// Summarizes `manifest`, after a run of so many seconds, or none.
    pub fn new(out: PathBuf, manifest: Manifest, seconds: Option<f64>) -> ExtractionOutcome {
        let weights = std::fs::metadata(out.join(crate::lora::WEIGHTS));
        ExtractionOutcome {
            version: SUMMARY_VERSION,
            was_done: seconds.is_none(),
            adapter_bytes: weights.map_or(0, |data| data.len()),
            seconds,
            peak_memory: peak_resident(),
            out,
            kinds: kinds(&manifest),
            left_out: groups(&manifest),
            manifest,
        }
    }
}

/// All modules of one kind.
#[derive(Clone, Debug, Serialize)]
pub struct KindSummary {
    /// For example `q_proj`.
    pub kind: String,
    /// Number of modules.
    pub modules: usize,
    /// Smallest and largest rank before padding.
    pub ranks: (usize, usize),
    /// Mean of the relative errors.
    pub mean_error: f64,
    /// The largest relative error.
    pub worst_error: f64,
    /// Captured share of the energy of all their deltas.
    pub captured_energy: f64,
    /// The error of the layers' outputs, over the modules that a calibration knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outputs: Option<OutputError>,
}

impl LeftOutGroup {
    /// The options that would take these tensors into the adapter, if any would.
    pub fn flag(&self, manifest: &Manifest) -> Option<String> {
        if self.reason != Reason::NotSelected {
            return None;
        }
        let given = manifest.options.get("include").and_then(|include| include.as_array());
        let given: Vec<&str> = given.into_iter().flatten().filter_map(|text| text.as_str()).collect();
        let first = if given.is_empty() { vec!["linear"] } else { given };
        let patterns = first.into_iter().chain([self.kind.as_str()]);
        Some(patterns.map(|text| format!("--include {}", shell_word(text))).collect::<Vec<_>>().join(" "))
    }
}

impl KindSummary {
    /// The ranks as `16` or `3-16`.
    pub fn ranks_text(&self) -> String {
        match self.ranks {
            (least, most) if least == most => most.to_string(),
            (least, most) => format!("{least}-{most}"),
        }
    }
}

/// Tensors of one kind that are left out for one reason.
#[derive(Clone, Debug, Serialize)]
pub struct LeftOutGroup {
    /// For example `input_layernorm`.
    pub kind: String,
    /// Why they are left out.
    pub reason: Reason,
    /// Number of tensors.
    pub tensors: usize,
    /// Total number of their elements.
    pub elements: u64,
    /// The largest relative change; `None` if one of them could not be compared.
    pub largest_change: Option<f64>,
}

/// Quality by kind of module, in the order of the kinds' names.
pub fn kinds(manifest: &Manifest) -> Vec<KindSummary> {
    let mut by_kind: BTreeMap<String, Vec<&ModuleRecord>> = BTreeMap::new();
    for module in &manifest.modules {
        by_kind.entry(kind(&module.name, place_of(&module.name))).or_default().push(module);
    }
    let summary = |(kind, modules): (String, Vec<&ModuleRecord>)| {
        let errors = modules.iter().map(|module| module.quality.relative_error);
        let ranks = modules.iter().map(|module| module.rank);
        let together = total(modules.iter().copied());
        KindSummary {
            kind,
            modules: modules.len(),
            ranks: (ranks.clone().min().unwrap_or(0), ranks.max().unwrap_or(0)),
            mean_error: errors.clone().sum::<f64>() / modules.len() as f64,
            worst_error: errors.fold(0.0, f64::max),
            captured_energy: together.captured_energy,
            outputs: together.outputs,
        }
    };
    by_kind.into_iter().map(summary).collect()
}

/// The tensors that changed, or may have changed, but are not in the adapter, by kind and reason.
pub fn groups(manifest: &Manifest) -> Vec<LeftOutGroup> {
    let mut groups: BTreeMap<(String, Reason), LeftOutGroup> = BTreeMap::new();
    for tensor in manifest.not_represented.iter().filter(|tensor| tensor.matters()) {
        let stem = tensor.name.strip_suffix(".weight").unwrap_or(&tensor.name);
        let kind = group_of(stem);
        let group = groups.entry((kind.clone(), tensor.reason)).or_insert_with(|| LeftOutGroup {
            kind,
            reason: tensor.reason,
            tensors: 0,
            elements: 0,
            largest_change: Some(0.0),
        });
        group.tensors += 1;
        group.elements += tensor.elements;
        group.largest_change = group.largest_change.zip(tensor.relative_change).map(|(a, b)| a.max(b));
    }
    groups.into_values().collect()
}
