//! The summary of a report: its sentences, and the numbers behind them.

use serde::Serialize;

use crate::commands::analyze::record::Analysis;
use crate::commands::autopsy::record::Autopsy;
use crate::commands::extract::noise::mostly_noise;
use crate::commands::extract::output::manifest::Manifest;
use crate::delta::module_record::OutputError;
use crate::report::served::Served;
use crate::report::tables::{Adapter, Labelled, Tables};
use crate::report::words::{clean, clean_text, count, number, percent};

/// The summary at the top of a report.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Complete sentences, the most important first.
    pub sentences: Vec<String>,
    /// The adapters that `extract` wrote.
    pub adapters: Vec<AdapterSummary>,
    /// Served checkpoints, with the distance that remains with each adapter.
    pub served: Vec<ServedSummary>,
    /// The results of `analyze`.
    pub analyses: Vec<AnalysisSummary>,
    /// The results of `autopsy`.
    pub autopsies: Vec<AutopsySummary>,
}

/// One extraction.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AdapterSummary {
    /// Its label in the report.
    pub name: String,
    /// `A` for a dense base, `B` for a quantized one.
    pub method: char,
    /// Rank of the adapter.
    pub rank: usize,
    /// Number of modules whose change it contains.
    pub modules: usize,
    /// `||delta||` over all of them.
    pub delta_norm: f64,
    /// Relative error over all of them.
    pub relative_error: f64,
    /// Captured share of the energy over all of them.
    pub captured_energy: f64,
    /// The error of the layers' outputs, if a calibration was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outputs: Option<OutputError>,
    /// The module with the largest relative error.
    pub worst_module: Option<String>,
    /// Its error.
    pub worst_error: Option<f64>,
    /// Number of tensors that changed, or may have changed, and that it does not contain.
    pub not_held: usize,
}

/// One served checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ServedSummary {
    /// The served checkpoint.
    pub served: String,
    /// The tuned checkpoint.
    pub tuned: String,
    /// `||T - (dequant(Q) + B·A)|| / ||T - dequant(Q)||` for each adapter.
    pub remaining: Vec<Remaining>,
}

/// One analysis.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AnalysisSummary {
    /// Its label in the report.
    pub name: String,
    /// Number of modules that were analyzed.
    pub modules: usize,
    /// `||D|| / ||N_b||` over all of them; absent if there is no noise.
    pub signal_to_noise: Option<f64>,
    /// `cos(D, N_b)` over all of them.
    pub change_and_noise: f64,
    /// `cos(N_b, N_t)` over all of them.
    pub noise_and_noise: f64,
    /// Suggested ranks: smallest, median, largest.
    pub suggested_rank: [usize; 3],
}

/// One autopsy.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AutopsySummary {
    /// Its label in the report.
    pub name: String,
    /// The checkpoint's name.
    pub checkpoint: String,
    /// Number of tensors that were examined.
    pub tensors: u64,
    /// Number of findings that make the check fail.
    pub errors: u64,
    /// Number of findings that are only warnings.
    pub warnings: u64,
}

/// The distance that remains with one adapter.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Remaining {
    /// Its label in the report.
    pub adapter: String,
    /// The ratio to the distance without an adapter; absent if that distance is zero.
    pub ratio: Option<f64>,
}

impl Summary {
    /// Summarizes the tables.
    pub fn of(tables: &Tables) -> Summary {
        let mut summary = Summary::default();
        for adapter in &tables.adapters {
            let Some(manifest) = &adapter.manifest else { continue };
            let numbers = AdapterSummary::of(adapter, manifest);
            summary.sentences.extend(numbers.sentences(manifest));
            summary.adapters.push(numbers);
        }
        for served in Served::all(tables) {
            let numbers = ServedSummary::of(&served);
            summary.sentences.push(numbers.sentence());
            summary.served.push(numbers);
        }
        for analysis in &tables.analyses {
            let verdict = analysis.table.verdict.iter().map(|statement| clean_text(&statement.text));
            // A single analysis need not be named.
            let named = |text: String| {
                if tables.analyses.len() > 1 { format!("{}: {text}", analysis.label) } else { text }
            };
            summary.sentences.extend(verdict.map(named));
            summary.analyses.push(AnalysisSummary::of(analysis));
        }
        for autopsy in &tables.autopsies {
            let numbers = AutopsySummary::of(autopsy);
            summary.sentences.push(numbers.sentence(&autopsy.table));
            summary.autopsies.push(numbers);
        }
        summary
    }
}

impl AdapterSummary {
    fn of(adapter: &Adapter, manifest: &Manifest) -> AdapterSummary {
        let error = |module: &&crate::delta::module_record::ModuleRecord| module.quality.relative_error;
        let worst = adapter.modules().max_by(|a, b| error(a).total_cmp(&error(b)));
        AdapterSummary {
            name: adapter.label.clone(),
            method: if manifest.base.is_quantized() { 'B' } else { 'A' },
            rank: manifest.rank,
            modules: adapter.modules().count(),
            delta_norm: manifest.total.delta_norm,
            relative_error: manifest.total.relative_error,
            captured_energy: manifest.total.captured_energy,
            outputs: manifest.total.outputs,
            worst_module: worst.map(|module| clean(&module.name)),
            worst_error: worst.map(|module| module.quality.relative_error),
            not_held: manifest.not_represented.iter().filter(|tensor| tensor.matters()).count(),
        }
    }

    fn sentences(&self, manifest: &Manifest) -> Vec<String> {
        let (base, tuned) = (clean(&manifest.base.name), clean(&manifest.tuned.name));
        let between = match self.method {
            'A' => format!("the change from {base} to {tuned} (Method A)"),
            _ => {
                format!("the difference from {base} ({}) to {tuned} (Method B)", clean(&manifest.base.scheme))
            }
        };
        if self.modules == 0 {
            return vec![format!("{} contains no module that changed.", self.name)];
        }
        let mut sentence = format!(
            "{}, of rank {}, captures {} of the energy of {between} in {}; the rest is {} of its norm.",
            self.name,
            self.rank,
            percent(self.captured_energy),
            count(self.modules, "module"),
            percent(self.relative_error),
        );
        if let (Some(worst), Some(error), true) = (&self.worst_module, self.worst_error, self.modules > 1) {
            sentence += &format!(" The worst is {worst}, with a relative error of {}.", number(error));
        }
        let mut sentences = vec![sentence];
        if let (Some(calibration), Some(outputs)) = (&manifest.calibration, manifest.total.outputs) {
            sentences.push(format!(
                "{} minimizes the error of the layers' outputs on the calibration {}, not that of the weights: it captures {} of \
                 what the difference changes them by.",
                self.name,
                clean(&calibration.name),
                percent(outputs.captured_energy)
            ));
        }
        if let Some(share) = mostly_noise(manifest) {
            sentences.push(format!(
                "About {} of what {} holds is quantization noise of the base, not the fine-tune (estimated from the base's \
                 format): a calibration, --hybrid or Method A is likely to serve better.",
                percent(share),
                self.name
            ));
        }
        if self.not_held > 0 {
            sentences.push(format!(
                "Not in {}: {} that changed or may have changed, for example norms, biases and unselected weights.",
                self.name,
                count(self.not_held, "tensor"),
            ));
        }
        sentences
    }
}

impl ServedSummary {
    fn of(served: &Served) -> ServedSummary {
        let remaining = served
            .columns
            .iter()
            .map(|column| Remaining { adapter: column.label.clone(), ratio: column.total().ratio() });
        ServedSummary {
            served: served.on.clone(),
            tuned: served.tuned.clone(),
            remaining: remaining.collect(),
        }
    }

    fn sentence(&self) -> String {
        let with = self.remaining.iter().map(|remaining| match remaining.ratio {
            Some(ratio) => format!("{} with {}", percent(ratio), remaining.adapter),
            None => format!("nothing to correct with {}", remaining.adapter),
        });
        format!(
            "When {} is served, the weights' remaining distance from {} is {}; without an adapter it is 100 %. (A distance of \
             weights, not a loss: most of it may be quantization noise.)",
            self.served,
            self.tuned,
            with.collect::<Vec<_>>().join(", "),
        )
    }
}

impl AnalysisSummary {
    fn of(analysis: &Labelled<Analysis>) -> AnalysisSummary {
        let total = &analysis.table.total;
        AnalysisSummary {
            name: analysis.label.clone(),
            modules: total.modules,
            signal_to_noise: total.norms.signal_to_noise,
            change_and_noise: total.change_and_noise.value,
            noise_and_noise: total.noise_and_noise.value,
            suggested_rank: total.suggested_rank,
        }
    }
}

impl AutopsySummary {
    fn of(autopsy: &Labelled<Autopsy>) -> AutopsySummary {
        let total = &autopsy.table.total;
        AutopsySummary {
            name: autopsy.label.clone(),
            checkpoint: clean(last_part(&autopsy.table.checkpoint.name)),
            tensors: total.tensors,
            errors: total.errors,
            warnings: total.warnings,
        }
    }

    fn sentence(&self, autopsy: &Autopsy) -> String {
        let found = match (self.errors, self.warnings) {
            (0, 0) => "nothing is wrong".to_owned(),
            (errors, warnings) => {
                let faults = autopsy
                    .total
                    .verdicts
                    .iter()
                    .map(|(fault, count)| format!("{count} × {}", fault.words()));
                let faults = faults.collect::<Vec<_>>().join(", ");
                format!("{errors} with errors, {warnings} with warnings only ({faults})")
            }
        };
        format!("{}: {} tensors of {} were examined; {found}.", self.name, self.tensors, self.checkpoint)
    }
}

/// The last part of an absolute path; any other name unchanged.
fn last_part(name: &str) -> &str {
    let last = name.trim_end_matches('/').rsplit('/').next();
    last.filter(|_| name.starts_with('/')).unwrap_or(name)
}
