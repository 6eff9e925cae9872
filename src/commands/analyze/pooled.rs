//! Pools modules by kind, by layer and in total.

use std::collections::BTreeMap;

use crate::commands::analyze::record::{Cosine, Group, ModuleAnalysis, Norms, Pooled, Remaining};
use crate::commands::analyze::stats::significance::FALSE_DISCOVERY_RATE;

/// All groups.
#[derive(Clone, Debug, Default)]
pub struct Groups {
    /// All modules.
    pub total: Pooled,
    /// By kind of module.
    pub kinds: Vec<Group>,
    /// By layer.
    pub layers: Vec<Group>,
}

/// Pools `modules`.
pub fn pool(modules: &[ModuleAnalysis]) -> Groups {
    let (mut kinds, mut layers) = (BTreeMap::<&str, Vec<_>>::new(), BTreeMap::<u32, Vec<_>>::new());
    for module in modules {
        kinds.entry(&module.kind).or_default().push(module);
        if let Some(layer) = module.layer {
            layers.entry(layer).or_default().push(module);
        }
    }
    let group = |name: String, modules: Vec<&ModuleAnalysis>| Group { name, pooled: pooled(&modules) };
    Groups {
        total: pooled(&modules.iter().collect::<Vec<_>>()),
        kinds: kinds.into_iter().map(|(kind, modules)| group(kind.to_owned(), modules)).collect(),
        layers: layers.into_iter().map(|(layer, modules)| group(layer.to_string(), modules)).collect(),
    }
}

/// Sums over all elements of `modules`, and what follows from them.
fn pooled(modules: &[&ModuleAnalysis]) -> Pooled {
    let sum =
        |value: &dyn Fn(&ModuleAnalysis) -> f64| modules.iter().map(|module| value(module)).sum::<f64>();
    let norm2 = |norm: &dyn Fn(&Norms) -> f64| sum(&|module| norm(&module.norms).powi(2));
    let [base, change] = [norm2(&|n| n.base), norm2(&|n| n.change)];
    let [base_noise, tuned_noise] = [norm2(&|n| n.base_noise), norm2(&|n| n.tuned_noise)];
    let corrective = norm2(&|n| n.corrective);
    let noise = base_noise.sqrt();
    let left = |share: &dyn Fn(&Remaining) -> f64| {
        let energy = sum(&|module| (share(&module.remaining) * module.norms.corrective).powi(2));
        ratio(energy, corrective).sqrt()
    };
    // Energies of the change and of the noise in what Method B keeps.
    let kept = |energy: &dyn Fn(&ModuleAnalysis) -> Option<f64>| sum(&|module| energy(module).unwrap_or(0.0));
    let kept_change = kept(&|module| Some(module.method_b?.change_left * module.norms.change.powi(2)));
    let kept_noise = kept(&|module| Some(module.method_b?.noise_left * module.norms.base_noise.powi(2)));
    let by_method_a = kept(&|module| Some(module.method_b?.change_by_method_a * module.norms.change.powi(2)));
    Pooled {
        modules: modules.len(),
        elements: modules.iter().map(|module| elements(module)).sum(),
        norms: Norms {
            base: base.sqrt(),
            change: change.sqrt(),
            base_noise: noise,
            tuned_noise: tuned_noise.sqrt(),
            corrective: corrective.sqrt(),
            signal_to_noise: (noise > 0.0).then(|| change.sqrt() / noise),
        },
        change_and_noise: cosine(
            modules.iter().map(|m| (&m.change_and_noise, m.norms.change * m.norms.base_noise)),
            [change, base_noise],
        ),
        noise_and_noise: cosine(
            modules.iter().map(|m| (&m.noise_and_noise, m.norms.base_noise * m.norms.tuned_noise)),
            [base_noise, tuned_noise],
        ),
        change_and_noise_significant: modules.iter().filter(|m| m.change_and_noise.significant).count(),
        noise_and_noise_significant: modules.iter().filter(|m| m.noise_and_noise.significant).count(),
        magnitude_correlation: mean_correlation(modules),
        remaining: Remaining {
            method_a: left(&|r| r.method_a),
            method_b: left(&|r| r.method_b),
            noise: left(&|r| r.noise),
        },
        change_by_method_a: ratio(by_method_a, change),
        change_by_method_b: ratio(kept_change, change),
        spent_on_noise: ratio(kept_noise, kept_noise + kept_change),
        suggested_rank: spread(modules.iter().map(|module| module.spectrum.suggested_rank).collect()),
        suggested_is_at_least: modules.iter().filter(|m| m.spectrum.suggested_is_at_least).count(),
    }
}

fn elements(module: &ModuleAnalysis) -> u64 {
    module.shape.iter().map(|&side| side as u64).product()
}

fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

/// The cosine over all elements, from the cosines of the parts and the products of their norms.
fn cosine<'a>(parts: impl Iterator<Item = (&'a Cosine, f64)>, [a2, b2]: [f64; 2]) -> Cosine {
    let (mut product, mut squares) = (0.0, 0.0);
    for (cosine, norms) in parts {
        product += cosine.value * norms;
        squares += (cosine.standard_error * norms).powi(2);
    }
    let mut pooled = Cosine::of(product, squares, a2, b2);
    pooled.significant = pooled.p_value < FALSE_DISCOVERY_RATE;
    pooled
}

fn mean_correlation(modules: &[&ModuleAnalysis]) -> Option<f64> {
    let known = modules.iter().filter_map(|m| Some((m.magnitude_correlation?, elements(m) as f64)));
    let (sum, weight) =
        known.fold((0.0, 0.0), |(sum, total), (value, weight)| (sum + value * weight, total + weight));
    (weight > 0.0).then(|| sum / weight)
}

/// Smallest, median and largest.
fn spread(mut values: Vec<usize>) -> [usize; 3] {
    values.sort_unstable();
    let at = |index: usize| values.get(index).copied().unwrap_or(0);
    [at(0), at(values.len() / 2), at(values.len().saturating_sub(1))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::analyze::record::SpectrumAboveNoise;
    use crate::commands::analyze::stats::noise_sums::Sums;

    fn module(kind: &str, layer: Option<u32>, values: [&[f32]; 3]) -> (Sums, ModuleAnalysis) {
        let mut sums = Sums::default();
        let [change, noise, tuned] = values;
        let corrective: Vec<f32> = change.iter().zip(noise).map(|(d, n)| d - n).collect();
        sums.add(change, change, noise, tuned, &corrective);
        let module = ModuleAnalysis {
            name: kind.into(),
            kind: kind.into(),
            layer,
            shape: [1, change.len()],
            quantized: true,
            norms: sums.norms(),
            unchanged: 0.0,
            change_and_noise: sums.change_and_noise(),
            noise_and_noise: sums.noise_and_noise(),
            magnitude_correlation: sums.magnitude_correlation(),
            subspaces: Vec::new(),
            method_b: None,
            remaining: Remaining { method_a: 0.5, method_b: 0.25, noise: 1.0 },
            spectrum: SpectrumAboveNoise { suggested_rank: change.len(), ..Default::default() },
        };
        (sums, module)
    }

    #[test]
    fn pooled_cosines_are_those_of_all_elements() {
        let (one, first) = module("q", Some(0), [&[1.0, 2.0, -1.0], &[0.5, 0.25, 0.5], &[0.5, 0.5, -0.25]]);
        let (two, second) = module("k", None, [&[-3.0, 0.5], &[0.125, 1.0], &[1.0, -1.0]]);
        let mut all = one;
        all += two;
        let groups = pool(&[first, second]);
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        for (found, direct) in [
            (groups.total.change_and_noise, all.change_and_noise()),
            (groups.total.noise_and_noise, all.noise_and_noise()),
        ] {
            close(found.value, direct.value);
            close(found.standard_error, direct.standard_error);
            close(found.p_value, direct.p_value);
        }
        close(groups.total.norms.corrective, all.corrective2.sqrt());
        close(groups.total.remaining.method_b, 0.25);
        assert_eq!((groups.total.modules, groups.total.elements), (2, 5));
        assert_eq!(groups.total.suggested_rank, [2, 3, 3]);
        let names = |groups: &[Group]| groups.iter().map(|group| group.name.clone()).collect::<Vec<_>>();
        assert_eq!(
            (names(&groups.kinds), names(&groups.layers)),
            (vec!["k".into(), "q".into()], vec!["0".into()])
        );
    }
}
