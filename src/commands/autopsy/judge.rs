//! Verdicts: compares a tensor's statistics with the limits for its role.

use crate::commands::autopsy::record::{Comparison, Fault, Role, Saturated, Severity, Verdict};
use crate::commands::autopsy::statistics::Statistics;
use crate::commands::autopsy::thresholds::{InitLimits, Thresholds};
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
    /// The number of inputs of a matrix: its last dimension.
    pub inputs: usize,
    /// The number of its rows that are all zero, and of its rows.
    pub zero_rows: (u64, u64),
    /// Its statistics.
    pub statistics: &'a Statistics,
    /// Its codes at the ends of their format's range.
    pub saturated: Option<Saturated>,
    /// Its comparison with its partner.
    pub comparison: Option<&'a Comparison>,
}

/// Everything that is wrong with a tensor by itself, the most severe first. What only shows beside the other layers is
/// found by [`crate::commands::autopsy::kinds`].
pub fn judge(known: &Known<'_>, limits: &Thresholds) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    let statistics = known.statistics;
    if statistics.nan + statistics.infinite > 0 {
        let [nan, infinite, count] = [statistics.nan, statistics.infinite, statistics.count];
        let why = format!("has {nan} NaN and {infinite} infinities among {count} values");
        verdicts.push(error(Fault::NonFinite, Some((nan + infinite) as f64), why));
    }
    if statistics.finite() > 0 {
        match dead(known) {
            Some(why) => verdicts.push(error(Fault::Dead, None, why)),
            None if statistics.min < statistics.max => verdicts.extend(alive(known, limits)),
            None => {}
        }
    }
    if let Some(comparison) = known.comparison {
        verdicts.extend(apart(comparison, limits));
    }
    verdicts.sort_by_key(|verdict| std::cmp::Reverse(verdict.gravity));
    verdicts
}

/// An error, with the number that it rests on.
pub fn error(fault: Fault, measured: Option<f64>, why: String) -> Verdict {
    Verdict { gravity: Severity::Error, fault, measured, why }
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

/// Verdicts on a tensor with different values.
fn alive(known: &Known<'_>, limits: &Thresholds) -> Vec<Verdict> {
    let statistics = known.statistics;
    let mut found = Vec::new();
    if known.role == Role::Linear {
        found.extend(mean_off_zero(statistics, limits.mean));
        found.extend(zero_rows(known, limits.zero_rows));
    }
    found.extend(scale(known, limits));
    let matrix = matches!(known.role, Role::Linear | Role::Table);
    if found.is_empty() && matrix && !known.quantized && one_scale(statistics, limits) {
        let magnitudes = statistics.magnitudes.unwrap_or(0);
        let why = format!("has only {magnitudes} distinct magnitudes, as if all codes had one scale");
        found.push(error(Fault::OneScale, Some(magnitudes as f64), why));
    }
    found.extend(saturated(known, limits));
    if let Some(init) = limits.init.filter(|_| known.role == Role::Linear) {
        found.extend(unlike_init(statistics, &init));
    }
    found
}

fn mean_off_zero(statistics: &Statistics, limit: f64) -> Option<Verdict> {
    let ratio = statistics.mean.abs() / statistics.std;
    // The mean of a few values is off zero by chance: four standard errors are not.
    let limit = limit.max(4.0 / (statistics.finite() as f64).sqrt());
    (ratio > limit).then(|| {
        let why = format!("has a mean of {:.4}, which is {ratio:.3} std (limit {limit:.3})", statistics.mean);
        error(Fault::MeanOffZero, Some(ratio), why)
    })
}

fn zero_rows(known: &Known<'_>, limit: f64) -> Option<Verdict> {
    let (zero, rows) = known.zero_rows;
    let share = zero as f64 / rows.max(1) as f64;
    (share > limit).then(|| {
        let why = format!("has {zero} rows of {rows} that are all zero (limit {:.1} %)", 100.0 * limit);
        error(Fault::ZeroRows, Some(share), why)
    })
}

/// The standard deviation times the root of the number of inputs: the size of a layer's output beside its input's.
fn scale(known: &Known<'_>, limits: &Thresholds) -> Option<Verdict> {
    let slack = match known.role {
        Role::Linear => 1.0,
        Role::Table => 20.0,
        _ => return None,
    };
    let (least, most) = (limits.least_scale / slack, limits.most_scale * slack);
    let scale = known.statistics.std * (known.inputs as f64).sqrt();
    (scale < least || scale > most).then(|| {
        let std = known.statistics.std;
        let why = format!(
            "has a standard deviation of {std:.3e}, and {scale:.3e} times the root of its {} inputs \
             (healthy: {least} to {most})",
            known.inputs
        );
        error(Fault::Scale, Some(scale), why)
    })
}

fn one_scale(statistics: &Statistics, limits: &Thresholds) -> bool {
    let many = statistics.finite() - statistics.zeros >= ENOUGH;
    // If scales are powers of two, many scales give no more distinct values than one.
    many && !statistics.coarse && statistics.magnitudes.is_some_and(|count| count <= limits.few_magnitudes)
}

fn saturated(known: &Known<'_>, limits: &Thresholds) -> Option<Verdict> {
    let Saturated { codes, share, bits } = known.saturated?;
    let limit = match bits {
        0..=2 => return None,
        3..=7 => limits.saturated_4,
        _ => limits.saturated_8,
    };
    (share > limit).then(|| {
        let why = format!(
            "has {codes} codes, {:.1} %, at the ends of their {bits}-bit range (limit {:.1} %)",
            100.0 * share,
            100.0 * limit
        );
        error(Fault::Saturated, Some(share), why)
    })
}

/// Verdicts by absolute limits.
fn unlike_init(statistics: &Statistics, limits: &InitLimits) -> Vec<Verdict> {
    let mut found = Vec::new();
    let (mean, std, range) = (statistics.mean, statistics.std, limits.range);
    if mean.abs() > limits.mean {
        let why = format!("has a mean of {mean:.4} (expected: up to {})", limits.mean);
        found.push(error(Fault::OutsideRange, Some(mean.abs()), why));
    }
    if std < limits.least_std || std > limits.most_std {
        let (least, most) = (limits.least_std, limits.most_std);
        let why = format!("has a standard deviation of {std:.4} (expected: {least} to {most})");
        found.push(error(Fault::OutsideRange, Some(std), why));
    }
    if statistics.largest() > range {
        let beyond = statistics.histogram.from(range);
        let share = beyond as f64 / statistics.finite() as f64;
        let (min, max) = (statistics.min.unwrap_or(0.0), statistics.max.unwrap_or(0.0));
        let percent = 100.0 * share;
        let why =
            format!("ranges from {min:.4} to {max:.4}, with {percent:.4} % of its values beyond {range}");
        let measured = Some(statistics.largest());
        match share <= limits.outliers {
            true => {
                found.push(Verdict { gravity: Severity::Warning, fault: Fault::Outliers, measured, why });
            }
            false => found.push(error(Fault::OutsideRange, measured, why)),
        }
    }
    found
}

/// Verdicts on the difference from the partner.
fn apart(comparison: &Comparison, limits: &Thresholds) -> Vec<Verdict> {
    let mut found = Vec::new();
    let mut add = |fault, measured, why: String| found.push(error(fault, measured, why));
    let limit = limits.relative_error;
    match comparison.relative_error {
        None => add(Fault::Differs, None, "is not zero, but its partner is".to_owned()),
        Some(apart) if apart > limit => {
            add(
                Fault::Differs,
                Some(apart),
                format!("differs from its partner by {apart:.4} of the partner's norm (limit {limit})"),
            );
        }
        Some(_) => {
            if let Some(cosine) = comparison.cosine.filter(|cosine| *cosine < limits.cosine) {
                let limit = limits.cosine;
                add(
                    Fault::Differs,
                    comparison.relative_error,
                    format!("has a cosine of {cosine:.4} with its partner (limit {limit})"),
                );
            }
        }
    }
    if let Some(drift) = comparison.block_drift.filter(|drift| *drift > limits.block_drift) {
        let (percent, limit) = (100.0 * drift, 100.0 * limits.block_drift);
        let why = format!(
            "has block norms that vary by {percent:.1} % against its partner's (limit {limit:.1} %), as if scales were misplaced"
        );
        add(Fault::Rescaled, Some(drift), why);
    }
    found
}
