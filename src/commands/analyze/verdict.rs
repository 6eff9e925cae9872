//! The conclusions in words. Each sentence carries the numbers that it is based on; the thresholds are only here.

use std::collections::BTreeMap;

use crate::commands::analyze::record::{About, Cosine, ModuleAnalysis, Pooled, Statement, Subspaces};

/// From this share of noise on, Method B keeps less of the change than of the noise.
const MOSTLY: f64 = 0.5;

/// Below this share of noise, Method B gives up next to nothing of the change.
const LITTLE: f64 = 0.1;

/// From this cosine on, two matrices are nearly the same up to scale; half of the energy is shared at 0.71.
const SAME: f64 = 0.9;

/// Below this cosine, less than 1 % of the energy is shared: significant or not, it does not matter.
const SLIGHT: f64 = 0.1;

/// The sentences, the most important first.
pub fn verdict(total: &Pooled, modules: &[ModuleAnalysis], rank: usize) -> Vec<Statement> {
    if total.norms.base_noise == 0.0 {
        let text = "The quantized base decodes to the base itself in every module: there is no noise to correct, and \
                    Method A and Method B are the same.";
        return vec![statement(About::Method, text.to_owned(), &[("base_noise", 0.0)])];
    }
    if total.norms.change == 0.0 {
        let text = "Tuned and base are equal in every module: there is no change to extract, and Method B would only \
                    correct the noise.";
        return vec![statement(About::Method, text.to_owned(), &[("change", 0.0)])];
    }
    let mut verdict = vec![method(total, rank), size(total)];
    // Zero where the tuned checkpoint could not be quantized.
    if total.norms.tuned_noise > 0.0 {
        verdict.push(same_noise(total));
    }
    verdict.extend([orthogonality(total), subspaces(modules, rank), suggested(total, rank)]);
    verdict
}

fn statement(about: About, text: String, figures: &[(&str, f64)]) -> Statement {
    let figures: BTreeMap<String, f64> =
        figures.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
    Statement { about, text, figures }
}

fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    let digits = if percent.abs() >= 10.0 {
        0
    } else if percent.abs() >= 1.0 {
        1
    } else {
        2
    };
    format!("{percent:.digits$} %")
}

/// What is measured and what follows. Which method serves better is a question of loss: a fine-tune lowers the loss to
/// first order, less noise to second, so a shorter distance of weights is no verdict.
fn method(total: &Pooled, rank: usize) -> Statement {
    let (left, spent) = (total.remaining, total.spent_on_noise);
    let ratio = total.norms.signal_to_noise.unwrap_or(0.0);
    let follows = if spent >= MOSTLY {
        "Plain Method B holds little of the fine-tune here. Take Method A (extract with the dense base), or give extract a \
         --calibration, with which Method B corrects the noise where it matters to the outputs, or --hybrid with the dense base"
    } else if spent >= LITTLE {
        "Part of the rank corrects noise in place of the fine-tune. Compare the losses of Method A and Method B \
         (trephine evaluate); a --calibration improves Method B"
    } else {
        "Method B holds the change as Method A does, and pays little for correcting noise"
    };
    let [a, b, floor, kept] = [left.method_a, left.method_b, left.noise, spent].map(percent);
    let text = format!(
        "At rank {rank}, {kept} of what Method B keeps is noise of the base, not change (signal to noise {ratio:.2}). {follows}. \
         The served weights would stay {a} (Method A) or {b} (Method B) as far from the tuned ones as without an adapter, \
         {floor} with the whole change: a distance of weights, not a loss."
    );
    let figures = [
        ("rank", rank as f64),
        ("method_a", left.method_a),
        ("method_b", left.method_b),
        ("noise", left.noise),
        ("spent_on_noise", spent),
        ("signal_to_noise", ratio),
    ];
    statement(About::Method, text, &figures)
}

fn size(total: &Pooled) -> Statement {
    let ratio = total.norms.signal_to_noise.unwrap_or(0.0);
    let relative = |norm: f64| if total.norms.base > 0.0 { norm / total.norms.base } else { 0.0 };
    let (change, noise) = (relative(total.norms.change), relative(total.norms.base_noise));
    let words = match ratio {
        r if r >= 3.0 => "The change stands well above the noise",
        r if r >= 1.0 => "The change is larger than the noise",
        r if r >= 1.0 / 3.0 => "The change is smaller than the noise",
        _ => "The change drowns in the noise",
    };
    let text = format!(
        "{words}: {ratio:.2} times as large in norm ({} of the weights, the noise {}).",
        percent(change),
        percent(noise)
    );
    statement(
        About::Size,
        text,
        &[("signal_to_noise", ratio), ("change_of_base", change), ("noise_of_base", noise)],
    )
}

/// Formats a cosine with its standard error and p.
fn shown(cosine: &Cosine) -> String {
    let p = match cosine.p_value {
        p if p < 1e-300 => "p < 1e-300".to_owned(),
        p if p < 0.001 => format!("p = {p:.0e}"),
        p => format!("p = {p:.3}"),
    };
    format!("{:.4} (chance: 0 with a standard error of {:.1e}; {p})", cosine.value, cosine.standard_error)
}

fn figures_of(cosine: &Cosine, significant: usize, modules: usize) -> [(&'static str, f64); 6] {
    [
        ("cosine", cosine.value),
        ("standard_error", cosine.standard_error),
        ("z", cosine.z),
        ("p_value", cosine.p_value),
        ("significant_modules", significant as f64),
        ("modules", modules as f64),
    ]
}

fn same_noise(total: &Pooled) -> Statement {
    let cosine = &total.noise_and_noise;
    let size = cosine.value.abs();
    let words = match cosine {
        c if c.value >= SAME => "Both checkpoints carry nearly the same noise",
        c if c.value >= SLIGHT => "Base and tuned share part of their noise",
        c if c.value <= -SLIGHT => "The noises of base and tuned oppose each other",
        c if c.significant => "The noises of base and tuned are nearly independent, with a trace in common",
        _ => "The noises of base and tuned are no more alike than by chance",
    };
    let pattern = match total.magnitude_correlation {
        Some(r) => format!(" Their magnitudes have a correlation of {r:.2}, regardless of signs."),
        None => String::new(),
    };
    let (significant, modules) = (total.noise_and_noise_significant, total.modules);
    let text = format!(
        "{words}: the cosine is {}, {} of the energy in common; significant in {significant} of {modules} modules.{pattern}",
        shown(cosine),
        percent(size * size)
    );
    let mut figures = figures_of(cosine, significant, modules).to_vec();
    figures.extend(total.magnitude_correlation.map(|r| ("magnitude_correlation", r)));
    statement(About::SameNoise, text, &figures)
}

fn orthogonality(total: &Pooled) -> Statement {
    let cosine = &total.change_and_noise;
    let size = cosine.value.abs();
    let words = match cosine {
        c if size >= SLIGHT && c.significant => "Noise and change are not orthogonal",
        c if c.significant => {
            "Noise and change are orthogonal for all practical purposes, though their cosine exceeds chance"
        }
        _ => "Noise and change are orthogonal as far as can be measured",
    };
    let (significant, modules) = (total.change_and_noise_significant, total.modules);
    let text = format!(
        "{words}: the cosine is {}, {} of the energy in common; significant in {significant} of {modules} modules.",
        shown(cosine),
        percent(size * size)
    );
    statement(About::Orthogonality, text, &figures_of(cosine, significant, modules))
}

/// A module's subspaces at the rank, or at the largest k below it.
fn at_rank(module: &ModuleAnalysis, rank: usize) -> Option<&Subspaces> {
    module.subspaces.iter().rev().find(|subspaces| subspaces.k <= rank).or(module.subspaces.first())
}

/// Energy-weighted shares over all modules: of the change in the noise's leading directions, and vice versa.
fn subspaces(modules: &[ModuleAnalysis], rank: usize) -> Statement {
    let (mut change, mut noise) = ([0.0; 3], [0.0; 3]);
    for module in modules {
        let Some(subspaces) = at_rank(module, rank) else { continue };
        let [change2, noise2] = [module.norms.change, module.norms.base_noise].map(|norm| norm * norm);
        let expected = (subspaces.left.expected + subspaces.right.expected) / 2.0;
        let shares = |a: f64, b: f64, energy: f64| [energy * (a + b) / 2.0, energy * expected, energy];
        let c = shares(subspaces.left.change_in_noise, subspaces.right.change_in_noise, change2);
        let n = shares(subspaces.left.noise_in_change, subspaces.right.noise_in_change, noise2);
        for at in 0..3 {
            change[at] += c[at];
            noise[at] += n[at];
        }
    }
    let share = |sums: [f64; 3], at: usize| if sums[2] > 0.0 { sums[at] / sums[2] } else { 0.0 };
    let (in_noise, chance) = (share(change, 0), share(change, 1));
    let (in_change, noise_chance) = (share(noise, 0), share(noise, 1));
    let words = if in_noise > 2.0 * chance || in_change > 2.0 * noise_chance {
        "Change and noise share leading directions"
    } else {
        "The leading directions of change and noise are nearly unrelated"
    };
    let k = modules.iter().filter_map(|m| at_rank(m, rank)).map(|s| s.k).max().unwrap_or(rank);
    let text = format!(
        "{words}: the noise's {k} leading directions hold {} of the change (random ones {}), the change's hold {} of \
         the noise (random ones {}).",
        percent(in_noise),
        percent(chance),
        percent(in_change),
        percent(noise_chance)
    );
    let figures = [
        ("k", k as f64),
        ("change_in_noise", in_noise),
        ("change_expected", chance),
        ("noise_in_change", in_change),
        ("noise_expected", noise_chance),
    ];
    statement(About::Subspaces, text, &figures)
}

fn suggested(total: &Pooled, rank: usize) -> Statement {
    let [least, median, greatest] = total.suggested_rank;
    let bound = match total.suggested_is_at_least {
        0 => String::new(),
        count => format!(
            " In {count} of {} modules all computed values do: a higher --rank would show more.",
            total.modules
        ),
    };
    let words = if median > rank {
        "The change extends beyond this rank"
    } else {
        "This rank reaches into the noise"
    };
    let text = format!(
        "{words}: {median} singular values of T - dequant(Q) stand out from the noise in the median module ({least} to \
         {greatest}, by Gavish and Donoho's threshold).{bound} At rank {rank}, {} of what Method B keeps is noise.",
        percent(total.spent_on_noise)
    );
    let figures = [
        ("least", least as f64),
        ("median", median as f64),
        ("greatest", greatest as f64),
        ("lower_bounds", total.suggested_is_at_least as f64),
        ("spent_on_noise", total.spent_on_noise),
    ];
    statement(About::Rank, text, &figures)
}
