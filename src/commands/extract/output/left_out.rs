//! What an adapter costs by what it leaves out.

use std::collections::BTreeMap;

use crate::commands::extract::output::manifest::Manifest;
use crate::lora::names::group_of;

/// The kinds that the sentence names.
const NAMED: usize = 3;

/// What to say first of an adapter that leaves out most of the model: the share of the parameters, and of the change
/// (of its squared norm) that this costs. `None` where most is in it.
pub fn mostly_left_out(manifest: &Manifest) -> Option<String> {
    let kept: u64 = manifest.modules.iter().map(|module| module.shape.iter().product::<usize>() as u64).sum();
    let left = || manifest.not_represented.iter().filter(|tensor| tensor.matters());
    let lost: u64 = left().map(|tensor| tensor.elements).sum();
    if lost <= kept {
        return None;
    }
    let mut kinds: BTreeMap<String, u64> = BTreeMap::new();
    for tensor in left() {
        let stem = tensor.name.strip_suffix(".weight").unwrap_or(&tensor.name);
        *kinds.entry(group_of(stem)).or_default() += tensor.elements;
    }
    let mut kinds: Vec<(String, u64)> = kinds.into_iter().collect();
    kinds.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let named: Vec<String> = kinds.into_iter().take(NAMED).map(|(kind, _)| kind).collect();
    let unknown = left().any(|tensor| tensor.change_norm.is_none());
    let [gone, taken] = [
        left().filter_map(|tensor| tensor.change_norm).map(|norm| norm * norm).sum::<f64>(),
        manifest.modules.iter().map(|module| module.quality.delta_norm.powi(2)).sum(),
    ];
    let least = if unknown { "at least " } else { "" };
    Some(format!(
        "most of the model is not in the adapter: {:.0} % of the parameters that changed ({}), which hold {least}{:.0} % of \
         the change",
        100.0 * lost as f64 / (lost + kept) as f64,
        named.join(", "),
        100.0 * gone / (gone + taken).max(f64::MIN_POSITIVE)
    ))
}
