//! Verdicts: compares a tensor's statistics with the limits for its role.

use crate::commands::autopsy::record::{Comparison, Fault, Role, Saturated, Severity, Verdict};
use crate::commands::autopsy::statistics::Statistics;
use crate::commands::autopsy::thresholds::Thresholds;
use crate::lora::names::{Place, kind_of, place_of};
use crate::quant::weight::TensorInfo;

/// A matrix with fewer non-zero values than this has too few to recognize codes under one scale.
const ENOUGH: u64 = 4096;

/// The role of a 2-D weight, by its module's name.
pub fn role_of_module(name: &str) -> Role {
    match place_of(name) {
        _ if name.contains(".lora_") => Role::Factor,
        Place::Linear | Place::Stacked => Role::Linear,
        Place::Parameter => Role::Other,
        Place::Embedding | Place::Head | Place::Router | Place::Positions => Role::Table,
    }
}

/// The role of any other tensor.
pub fn role_of_tensor(stored: &TensorInfo) -> Role {
    let (name, kind) = (stored.name.as_str(), kind_of(stored.name.trim_end_matches(".weight")));
    match stored.shape.len() {
        _ if name.contains(".lora_") => Role::Factor,
        _ if name.ends_with(".bias") || name.ends_with("_bias") => Role::Bias,
        // A stack of experts; other three-dimensional tensors are short convolutions and patches.
        3 if name.contains("expert") => Role::Linear,
        0 | 1 if kind.contains("norm") || kind.starts_with("ln") || name.ends_with(".weight") => Role::Norm,
        _ => Role::Other,
    }
}

/// What is known about a tensor when it is judged.
#[derive(Debug)]
pub struct Known<'a> {
    /// The role that determines which rules apply.
    pub role: Role,
    /// Whether it is stored as codes with scales.
    pub quantized: bool,
    /// Its statistics.
    pub statistics: &'a Statistics,
    /// Its codes at the ends of their format's range.
    pub saturated: Option<Saturated>,
    /// Its comparison with its partner.
    pub comparison: Option<&'a Comparison>,
}

/// Everything that is wrong with a tensor, the most severe first.
pub fn judge(known: &Known<'_>, limits: &Thresholds) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    let mut error = |fault, why: String| verdicts.push(Verdict { gravity: Severity::Error, fault, why });
    let statistics = known.statistics;
    if statistics.nan + statistics.infinite > 0 {
        let [nan, infinite, count] = [statistics.nan, statistics.infinite, statistics.count];
        error(Fault::NonFinite, format!("has {nan} NaN and {infinite} infinities among {count} values"));
    }
    if statistics.finite() > 0 {
        let matrix = matches!(known.role, Role::Linear | Role::Table);
        if let Some(why) = dead(known) {
            error(Fault::Dead, why);
        }
        let exploded = exploded(known.role, statistics, limits);
        let well = exploded.is_empty();
        exploded.into_iter().for_each(|(fault, why)| error(fault, why));
        if well && matrix && !known.quantized && one_scale(statistics, limits) {
            let magnitudes = statistics.magnitudes.unwrap_or(0);
            error(
                Fault::OneScale,
                format!(
                    "has only {magnitudes} distinct magnitudes, like 8-bit codes under one scale for the whole tensor"
                ),
            );
        }
        if let Some(why) = saturated(known, limits) {
            error(Fault::Saturated, why);
        }
        if known.role == Role::Linear && well && statistics.min < statistics.max {
            verdicts.extend(unhealthy(statistics, limits));
        }
    }
    if let Some(comparison) = known.comparison {
        verdicts.extend(apart(comparison, limits));
    }
    verdicts.sort_by_key(|verdict| std::cmp::Reverse(verdict.gravity));
    verdicts
}

fn dead(known: &Known<'_>) -> Option<String> {
    let statistics = known.statistics;
    let (min, max) = (statistics.min?, statistics.max?);
    if min != max || statistics.finite() < 2 {
        return None;
    }
    let zero = min == 0.0;
    // A bias may be zero and a norm constant; a factor of zeros belongs to a module that did not change.
    let dead = match known.role {
        Role::Linear | Role::Table => true,
        Role::Norm => zero,
        Role::Factor => !zero,
        Role::Bias | Role::Other => false,
    };
    dead.then(|| if zero { "is all zero".to_owned() } else { format!("is {min} everywhere") })
}

fn exploded(role: Role, statistics: &Statistics, limits: &Thresholds) -> Vec<(Fault, String)> {
    let (mean, std) = match role {
        Role::Linear | Role::Table | Role::Factor => (limits.exploded_mean, limits.exploded_std),
        Role::Norm => (limits.exploded_norm, limits.exploded_norm),
        Role::Bias | Role::Other => return Vec::new(),
    };
    let mut found = Vec::new();
    if statistics.mean.abs() > mean {
        found.push((Fault::ExplodedMean, format!("has a mean of {:.4} (limit {mean})", statistics.mean)));
    }
    if statistics.std > std {
        found.push((
            Fault::ExplodedStd,
            format!("has a standard deviation of {:.4} (limit {std})", statistics.std),
        ));
    }
    found
}

fn one_scale(statistics: &Statistics, limits: &Thresholds) -> bool {
    let many = statistics.finite() - statistics.zeros >= ENOUGH && statistics.min < statistics.max;
    // If scales are powers of two, many scales give no more distinct values than one.
    many && !statistics.coarse && statistics.magnitudes.is_some_and(|count| count <= limits.few_magnitudes)
}

fn saturated(known: &Known<'_>, limits: &Thresholds) -> Option<String> {
    let Saturated { codes, share, bits } = known.saturated?;
    let limit = match bits {
        0..=2 => return None,
        3..=7 => limits.saturated_4,
        _ => limits.saturated_8,
    };
    (share > limit).then(|| {
        format!(
            "has {codes} codes, {:.1} %, at the ends of their {bits}-bit range (limit {:.1} %)",
            100.0 * share,
            100.0 * limit
        )
    })
}

/// Verdicts on a linear weight outside the healthy range.
fn unhealthy(statistics: &Statistics, limits: &Thresholds) -> Vec<Verdict> {
    let mut found = Vec::new();
    let mut add = |gravity, fault, why| found.push(Verdict { gravity, fault, why });
    let (mean, std, range) = (statistics.mean, statistics.std, limits.healthy_range);
    if mean.abs() > limits.healthy_mean {
        let why = format!("has a mean of {mean:.4} (healthy: up to {})", limits.healthy_mean);
        add(Severity::Error, Fault::OutsideRange, why);
    }
    if std < limits.least_std || std > limits.most_std {
        let (least, most) = (limits.least_std, limits.most_std);
        let why = format!("has a standard deviation of {std:.4} (healthy: {least} to {most})");
        add(Severity::Error, Fault::OutsideRange, why);
    }
    if statistics.largest() > range {
        let beyond = statistics.histogram.from(range);
        let share = beyond as f64 / statistics.finite() as f64;
        let (min, max) = (statistics.min.unwrap_or(0.0), statistics.max.unwrap_or(0.0));
        let why = format!(
            "ranges from {min:.4} to {max:.4}, with {:.4} % of its values beyond {range}",
            100.0 * share
        );
        match share <= limits.outliers {
            true => add(Severity::Warning, Fault::Outliers, why),
            false => add(Severity::Error, Fault::OutsideRange, why),
        }
    }
    found
}

/// Verdicts on the difference from the partner.
fn apart(comparison: &Comparison, limits: &Thresholds) -> Vec<Verdict> {
    let mut found = Vec::new();
    let mut error = |fault, why: String| found.push(Verdict { gravity: Severity::Error, fault, why });
    let limit = limits.relative_error;
    match comparison.relative_error {
        None => error(Fault::Differs, "is not zero, but its partner is".to_owned()),
        Some(apart) if apart > limit => {
            error(
                Fault::Differs,
                format!("differs from its partner by {apart:.4} of the partner's norm (limit {limit})"),
            );
        }
        Some(_) => {
            if let Some(cosine) = comparison.cosine.filter(|cosine| *cosine < limits.cosine) {
                let limit = limits.cosine;
                error(
                    Fault::Differs,
                    format!("has a cosine of {cosine:.4} with its partner (limit {limit})"),
                );
            }
        }
    }
    if let Some(drift) = comparison.block_drift.filter(|drift| *drift > limits.block_drift) {
        let (drift, limit) = (100.0 * drift, 100.0 * limits.block_drift);
        let why = format!(
            "has block norms that vary by {drift:.1} % against its partner's (limit {limit:.1} %), as if scales were misplaced"
        );
        error(Fault::Rescaled, why);
    }
    found
}
