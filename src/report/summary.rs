//! The report in words, and the numbers behind them.

use serde::Serialize;

use crate::commands::analyze::record::Analysis;
use crate::commands::autopsy::record::Autopsy;
use crate::commands::extract::output::manifest::Manifest;
use crate::report::served::Served;
use crate::report::tables::{Adapter, Labelled, Tables};
use crate::report::words::{clean, clean_text, count, number, percent};

/// What a report says at its top.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Whole sentences, the most important first.
    pub sentences: Vec<String>,
    /// The adapters that `extract` wrote.
    pub adapters: Vec<AdapterSummary>,
    /// Served checkpoints, with what each adapter leaves of the distance.
    pub served: Vec<ServedSummary>,
    /// What `analyze` found.
    pub analyses: Vec<AnalysisSummary>,
    /// What `autopsy` found.
    pub autopsies: Vec<AutopsySummary>,
}

/// One extraction.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AdapterSummary {
    /// What the report calls it.
    pub name: String,
    /// `A` for a dense base, `B` for a quantized one.
    pub method: char,
    /// Rank of the adapter.
    pub rank: usize,
    /// Modules whose change it holds.
    pub modules: usize,
    /// `||delta||` of all of them.
    pub delta_norm: f64,
    /// Of all of them.
    pub relative_error: f64,
    /// Of all of them.
    pub captured_energy: f64,
    /// The module with the largest relative error.
    pub worst_module: Option<String>,
    /// Its error.
    pub worst_error: Option<f64>,
    /// Tensors that changed, or may have, and that it does not hold.
    pub not_held: usize,
}

/// One served checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ServedSummary {
    /// The checkpoint that serves.
    pub served: String,
    /// The tuned one.
    pub tuned: String,
    /// `||T - (dequant(Q) + B·A)|| / ||T - dequant(Q)||` by adapter.
    pub remaining: Vec<Remaining>,
}

/// One analysis.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AnalysisSummary {
    /// What the report calls it.
    pub name: String,
    /// Modules that were analyzed.
    pub modules: usize,
    /// `||D|| / ||N_b||` of all of them; absent where there is no noise.
    pub signal_to_noise: Option<f64>,
    /// `cos(D, N_b)` of all of them.
    pub change_and_noise: f64,
    /// `cos(N_b, N_t)` of all of them.
    pub noise_and_noise: f64,
    /// Suggested ranks: least, median, greatest.
    pub suggested_rank: [usize; 3],
}

/// One autopsy.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AutopsySummary {
    /// What the report calls it.
    pub name: String,
    /// The checkpoint's name.
    pub checkpoint: String,
    /// Tensors that were looked at.
    pub tensors: u64,
    /// Findings that make the check fail.
    pub errors: u64,
    /// Findings that are only worth knowing.
    pub warnings: u64,
}

/// What one adapter leaves.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Remaining {
    /// What the report calls it.
    pub adapter: String,
    /// 1 without any adapter; absent where nothing was to be mended.
    pub ratio: Option<f64>,
}

impl Summary {
    /// Sums the tables up.
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
            // Where there is one analysis, it need not be named.
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
            worst_module: worst.map(|module| clean(&module.name)),
            worst_error: worst.map(|module| module.quality.relative_error),
            not_held: manifest.not_represented.iter().filter(|tensor| tensor.matters()).count(),
        }
    }

    fn sentences(&self, manifest: &Manifest) -> Vec<String> {
        let (base, tuned) = (clean(&manifest.base.name), clean(&manifest.tuned.name));
        let between = match self.method {
            'A' => format!("the change from {base} to {tuned} (Method A)"),
            _ => format!("the way from {base} ({}) to {tuned} (Method B)", clean(&manifest.base.scheme)),
        };
        if self.modules == 0 {
            return vec![format!("{} holds no module that changed.", self.name)];
        }
        let mut sentence = format!(
            "{}, of rank {}, holds {} of the energy of {between} in {}: what is missing has {} of its norm.",
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
        if self.not_held > 0 {
            sentences.push(format!(
                "Not in {}: {} that changed or may have changed, as norms, biases and what was not selected.",
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
            None => format!("nothing was to be mended by {}", remaining.adapter),
        });
        format!(
            "Where {} is served, of the weights' distance from {} there remain: {}; without an adapter all of it.",
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
                format!("{errors} errors and {warnings} warnings ({faults})")
            }
        };
        format!(
            "{}: of the {} tensors of {} that were looked at, {found}.",
            self.name, self.tensors, self.checkpoint
        )
    }
}

/// Of a whole path its last part; a name of the hub as it is.
fn last_part(name: &str) -> &str {
    let last = name.trim_end_matches('/').rsplit('/').next();
    last.filter(|_| name.starts_with('/')).unwrap_or(name)
}
