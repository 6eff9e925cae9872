//! Which modules have to come along with one that is adapted: servers fuse `q`, `k`, `v` and `gate`, `up` into one
//! product.

use crate::lora::names::{fused_siblings, kind_of};
use crate::lora::read::PeftAdapter;
use crate::lora::tree::BaseModules;

/// Whether the base has a sibling that an adapter lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    /// It has.
    Known,
    /// Nothing tells: the base is not given, and the adapter shows none like it.
    Unknown,
}

/// The siblings of `module` that the adapter lacks and the base has or may have. One that the base does not have is
/// none: many models have an `up_proj` and no `gate_proj`, or a `q_proj` beside a `k` and `v` that are one.
pub(crate) fn absent(
    adapter: &PeftAdapter,
    base: Option<&BaseModules>,
    module: &str,
) -> Vec<(String, Presence)> {
    // Of rank 0 it is there and adds nothing.
    let absent = |sibling: &String| adapter.module(sibling).is_none_or(|module| module.rank() == 0);
    let lacking = fused_siblings(module).into_iter().filter(absent);
    let known = |sibling: String| match base.and_then(|base| base.has(&sibling)) {
        Some(true) => Some((sibling, Presence::Known)),
        Some(false) => None,
        None if is_evident(adapter, &sibling) => Some((sibling, Presence::Known)),
        None => Some((sibling, Presence::Unknown)),
    };
    lacking.filter_map(known).collect()
}

/// Whether the adapter alone tells that the base has `sibling`: another layer has its like, or the rest of its set asks
/// for it.
fn is_evident(adapter: &PeftAdapter, sibling: &str) -> bool {
    let parts: Vec<&str> = sibling.rsplit('.').take(2).collect();
    let alike = |name: &str| name.rsplit('.').take(2).eq(parts.iter().copied());
    let stem = &sibling[..sibling.len() - kind_of(sibling).len()];
    let has = |kind: &str| adapter.module(&format!("{stem}{kind}")).is_some();
    let asked = match kind_of(sibling) {
        "up_proj" => has("gate_proj"),
        "k_proj" => has("q_proj") && has("v_proj"),
        "q_proj" => has("k_proj") && has("v_proj"),
        _ => false,
    };
    asked || adapter.module(sibling).is_some() || adapter.modules().any(|module| alike(module.name()))
}
