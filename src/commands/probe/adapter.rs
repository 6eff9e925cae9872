//! Shows what is in an adapter, and which programs would load it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::catalogue::Tensor;
use crate::lora::names::kind_of;
use crate::lora::read::PeftAdapter;
use crate::lora::read::classify::PeftModule;
use crate::lora::read::config::Targets;
use crate::lora::rules::tree;
use crate::lora::rules::{Effect, Loader, RuleFinding, judge};
use crate::lora::tree::BaseModules;

/// What a probe found in an adapter.
#[derive(Clone, Debug, Serialize)]
pub struct AdapterProbe {
    /// The adapter, as given.
    pub name: String,
    /// Its folder.
    pub root: PathBuf,
    /// The base that it names.
    pub base: Option<String>,
    /// The config's `r`.
    pub r: Option<usize>,
    /// The config's `lora_alpha`.
    pub lora_alpha: Option<f64>,
    /// Number of modules by rank.
    pub ranks: BTreeMap<usize, usize>,
    /// Smallest and largest scale of `B·A`.
    pub scales: Option<[f64; 2]>,
    /// The config's `target_modules`: names, or one pattern.
    pub targets: Vec<String>,
    /// Number of modules it changes, by kind.
    pub kinds: BTreeMap<String, usize>,
    /// Stored bytes of all tensors.
    pub bytes: u64,
    /// Tensors that are not factors: for each name, what it is.
    pub extras: BTreeMap<String, String>,
    /// For each program, which modules it matches with the base's, where the base is given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<LoaderMatches>,
    /// For each program, whether it would load the adapter.
    pub consumers: Vec<LoaderVerdict>,
    /// Everything that a program objects to, the most severe first.
    pub findings: Vec<RuleFinding>,
}

/// Which modules of an adapter one program matches with those of the base.
#[derive(Clone, Debug, Serialize)]
pub struct LoaderMatches {
    /// The program.
    pub consumer: Loader,
    /// The modules that it finds, as the adapter names them.
    pub matched: Vec<String>,
    /// The modules that would do nothing.
    pub unmatched: Vec<String>,
}

/// What one program would do with an adapter.
#[derive(Clone, Debug, Serialize)]
pub struct LoaderVerdict {
    /// The program.
    pub consumer: Loader,
    /// Whether it would load it.
    pub loads: bool,
    /// Whether it would apply all of it correctly.
    pub works: bool,
    /// The most severe objection.
    pub why: Option<String>,
}

/// Probes an adapter. `base` is the checkpoint that it is for, if known: the adapter's modules are matched against
/// it, and whether vLLM and llama.cpp accept a LoRA on the embedding or the head depends on it.
///
/// # Errors
/// See [`PeftAdapter::open`] and [`Checkpoint::open`].
pub fn probe_adapter(spec: &str, base: Option<&str>) -> Result<AdapterProbe> {
    let adapter = PeftAdapter::open(spec)?;
    let base = base.map(Checkpoint::open).transpose()?.as_ref().map(BaseModules::of);
    let findings = judge(&adapter, base.as_ref());
    let matches = |base: &BaseModules| {
        let of = |consumer| {
            let (matched, unmatched) = tree::matches(consumer, &adapter, base);
            LoaderMatches { consumer, matched, unmatched }
        };
        Loader::ALL.map(of).to_vec()
    };
    let matches = base.as_ref().map(matches).unwrap_or_default();
    let (mut ranks, mut kinds) = (BTreeMap::new(), BTreeMap::new());
    for module in adapter.modules() {
        *ranks.entry(module.rank()).or_insert(0) += 1;
        *kinds.entry(kind_of(module.name()).to_owned()).or_insert(0) += 1;
    }
    let scales = adapter.modules().map(PeftModule::scale);
    let scales = scales.fold(None, |range: Option<[f64; 2]>, scale| {
        let [low, high] = range.unwrap_or([scale; 2]);
        Some([low.min(scale), high.max(scale)])
    });
    let extra = |extra: &crate::lora::read::classify::Extra| {
        (extra.tensor.name().to_owned(), extra.kind.words().to_owned())
    };
    Ok(AdapterProbe {
        name: spec.to_owned(),
        root: adapter.root().to_owned(),
        base: adapter.config().base().map(str::to_owned),
        r: adapter.config().r(),
        lora_alpha: adapter.config().lora_alpha(),
        ranks,
        scales,
        targets: match adapter.config().targets() {
            Targets::Names(names) => names.clone(),
            Targets::Pattern(pattern) => vec![pattern.clone()],
            Targets::None => Vec::new(),
        },
        kinds,
        bytes: adapter.tensors().map(Tensor::size).sum(),
        extras: adapter.extras().iter().map(extra).collect(),
        matches,
        consumers: Loader::ALL.map(|consumer| verdict(consumer, &findings)).to_vec(),
        findings,
    })
}

fn verdict(consumer: Loader, findings: &[RuleFinding]) -> LoaderVerdict {
    let against: Vec<&RuleFinding> =
        findings.iter().filter(|finding| finding.concerns(&[consumer])).collect();
    let why = against.iter().min_by_key(|finding| finding.outcome);
    LoaderVerdict {
        consumer,
        loads: against.iter().all(|finding| finding.outcome != Effect::Refused),
        works: !against.iter().any(|finding| finding.is_failure()),
        why: why.map(|finding| format!("{} {}", finding.at, finding.why)),
    }
}
