//! What shows only beside the other layers: a weight or norm of another size than the same one of all layers.

use std::collections::BTreeMap;

use crate::commands::autopsy::judge::error;
use crate::commands::autopsy::record::{Fault, Role, TensorAutopsy, Verdict};
use crate::commands::autopsy::statistics::Statistics;
use crate::commands::autopsy::thresholds::Thresholds;

/// A median over fewer tensors than this says nothing.
const ENOUGH: usize = 3;

/// The name with `*` for every number in it, which the same tensors of all layers and experts share, for example
/// `model.layers.*.mlp.experts.*.up_proj`.
pub fn family(name: &str) -> String {
    let number = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let parts = name.split('.').map(|part| if number(&part) { "*" } else { part });
    parts.collect::<Vec<_>>().join(".")
}

/// Adds the verdicts on tensors whose size is far from the median of their family.
pub fn judge_families(tensors: &mut [TensorAutopsy], limits: &Thresholds) {
    let mut families: BTreeMap<(Role, String), Vec<(usize, f64)>> = BTreeMap::new();
    for (index, tensor) in tensors.iter().enumerate() {
        if let Some(size) = size(tensor) {
            families.entry((tensor.role, family(&tensor.name))).or_default().push((index, size));
        }
    }
    for ((role, _), members) in families.iter().filter(|(_, members)| members.len() >= ENOUGH) {
        let median = median(members.iter().map(|(_, size)| *size).collect());
        for &(index, size) in members {
            if let Some(verdict) = far(*role, size / median, members.len(), limits) {
                tensors[index].verdicts.push(verdict);
            }
        }
    }
}

/// The size that is compared: a linear weight's standard deviation, a norm's root mean square. Dead tensors have none.
fn size(tensor: &TensorAutopsy) -> Option<f64> {
    let Statistics { mean, std, .. } = tensor.statistics;
    let size = match tensor.role {
        Role::Linear => std,
        Role::Norm => mean.hypot(std),
        _ => return None,
    };
    (size.is_finite() && size > 0.0).then_some(size)
}

fn median(mut sizes: Vec<f64>) -> f64 {
    sizes.sort_by(f64::total_cmp);
    let middle = sizes.len() / 2;
    match sizes.len() % 2 {
        0 => f64::midpoint(sizes[middle - 1], sizes[middle]),
        _ => sizes[middle],
    }
}

fn far(role: Role, ratio: f64, members: usize, limits: &Thresholds) -> Option<Verdict> {
    let (far, what, limit) = match role {
        // Norms may be small: a layer that writes little to the residual stream.
        Role::Norm => (ratio > limits.norm_apart, "root mean square", limits.norm_apart),
        _ => (ratio > limits.apart || ratio < limits.apart.recip(), "standard deviation", limits.apart),
    };
    far.then(|| {
        let why = format!("has a {what} of {ratio:.3} times the median of {members} layers (limit {limit})");
        error(Fault::UnlikeItsKind, Some(ratio), why)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_make_no_family() {
        assert_eq!(family("model.layers.12.mlp.experts.3.up_proj"), "model.layers.*.mlp.experts.*.up_proj");
        assert_eq!(family("model.layer_3.w1"), "model.layer_3.w1");
        assert_eq!(family("0"), "*");
        assert_eq!(family("a..b"), "a..b");
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![8.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![8.0, 1.0, 2.0, 4.0]), 3.0);
    }
}
