//! The verdicts of an autopsy, together where the same fault shows in the same weight of many layers.

use std::collections::BTreeMap;

use crate::commands::autopsy::kinds::family;
use crate::commands::autopsy::record::{Autopsy, Fault, Severity, TensorAutopsy, Verdict};
use crate::commands::autopsy::thresholds::Thresholds;
use crate::lora::names::group_of;

/// One fault of one kind of tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its severity.
    pub gravity: Severity,
    /// The fault.
    pub fault: Fault,
    /// Where it is, for example `down_proj in all 18 layers`.
    pub place: String,
    /// The names of the tensors that have it.
    pub tensors: Vec<String>,
    /// The numbers, beside what is healthy, and what usually causes them.
    pub why: String,
}

/// The tensors of a group, each with its verdict.
type Members<'a> = Vec<(&'a TensorAutopsy, &'a Verdict)>;

/// The findings, errors first, then those that concern the most tensors.
pub fn findings(autopsy: &Autopsy) -> Vec<Finding> {
    let mut sizes: BTreeMap<String, usize> = BTreeMap::new();
    let mut groups: BTreeMap<(Severity, Fault, String), Members<'_>> = BTreeMap::new();
    for tensor in &autopsy.tensors {
        let family = family(&tensor.name);
        *sizes.entry(family.clone()).or_default() += 1;
        for verdict in &tensor.verdicts {
            let group = (verdict.gravity, verdict.fault, family.clone());
            let members = groups.entry(group).or_default();
            // Two verdicts of one fault, as a mean and a range, count once.
            if members.last().is_none_or(|(last, _)| last.name != tensor.name) {
                members.push((tensor, verdict));
            }
        }
    }
    let mut found: Vec<Finding> = groups
        .into_iter()
        .map(|((gravity, fault, family), members)| Finding {
            gravity,
            fault,
            place: place(&family, &members, &sizes),
            why: why(fault, &members, &autopsy.thresholds),
            tensors: members.iter().map(|(tensor, _)| tensor.name.clone()).collect(),
        })
        .collect();
    found.sort_by_key(|finding| std::cmp::Reverse((finding.gravity, finding.tensors.len())));
    found
}

fn place(family: &str, members: &[(&TensorAutopsy, &Verdict)], sizes: &BTreeMap<String, usize>) -> String {
    let kind = group_of(family);
    let alike = sizes.keys().filter(|other| group_of(other) == kind).count();
    let kind = if alike > 1 { family.to_owned() } else { kind };
    let (count, all) = (members.len(), sizes.get(family).copied().unwrap_or(members.len()));
    let units = if family.matches('*').count() == 1 { "layers" } else { "tensors" };
    match (count, members) {
        (1, [(tensor, _)]) => tensor.name.clone(),
        _ if count == all => format!("{kind} in all {all} {units}"),
        _ if count <= 4 && units == "layers" => {
            let numbers: Vec<&str> = members.iter().filter_map(|(tensor, _)| number(&tensor.name)).collect();
            format!("{kind} in {count} of {all} layers ({})", numbers.join(", "))
        }
        _ => format!("{kind} in {count} of {all} {units}"),
    }
}

/// The first number in a name: the layer's.
fn number(name: &str) -> Option<&str> {
    name.split('.').find(|part| part.bytes().all(|byte| byte.is_ascii_digit()))
}

fn why(fault: Fault, members: &[(&TensorAutopsy, &Verdict)], limits: &Thresholds) -> String {
    let measured = || members.iter().filter_map(|(_, verdict)| verdict.measured);
    let range = |scale: f64| {
        let low = measured().fold(f64::INFINITY, f64::min) * scale;
        let high = measured().fold(f64::NEG_INFINITY, f64::max) * scale;
        match (short(low), short(high)) {
            (low, high) if low == high => low,
            (low, high) => format!("{low} to {high}"),
        }
    };
    let above = |limit: f64| measured().any(|value| value > limit);
    let first = members.first().map_or("", |(_, verdict)| verdict.why.as_str());
    match fault {
        Fault::MeanOffZero => {
            let cause = if above(1.0) { "codes read as unsigned?" } else { "zero point off by one?" };
            format!("({} std; healthy <= {}): {cause}", range(1.0), short(limits.mean))
        }
        Fault::Scale => {
            let large = above(limits.most_scale);
            let cause = if large { "scales inverted, or never applied?" } else { "scales applied twice?" };
            let (least, most) = (short(limits.least_scale), short(limits.most_scale));
            format!("(std x root of inputs is {}; healthy {least} to {most}): {cause}", range(1.0))
        }
        Fault::UnlikeItsKind => {
            format!("({} times the median of the layers): scaled, or scaled twice?", range(1.0))
        }
        Fault::ZeroRows => {
            let limit = short(100.0 * limits.zero_rows);
            format!("({} % of the rows; healthy <= {limit} %): not written to the end?", range(100.0))
        }
        Fault::OneScale => {
            let limit = limits.few_magnitudes;
            format!("({} distinct magnitudes; healthy > {limit}): one scale for all codes?", range(1.0))
        }
        Fault::Saturated => {
            format!("({} % of the codes at the ends of their range): scales too small?", range(100.0))
        }
        Fault::NonFinite => format!("({} NaN or infinite values each)", range(1.0)),
        Fault::Rescaled => {
            let limit = short(100.0 * limits.block_drift);
            format!("(block norms vary by {} %; limit {limit} %): scales of other blocks?", range(100.0))
        }
        Fault::Differs if measured().next().is_some() => {
            let (error, cosine) = (short(limits.relative_error), short(limits.cosine));
            format!("(relative error {}; limits: error {error}, cosine {cosine})", range(1.0))
        }
        _ => format!("(the first {first})"),
    }
}

/// Three significant digits.
fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if !(1e-3..1e6).contains(&size) => format!("{value:.1e}"),
        size => {
            let decimals = (2 - size.log10().floor() as i32).max(0) as usize;
            let text = format!("{value:.decimals$}");
            if decimals == 0 { text } else { text.trim_end_matches('0').trim_end_matches('.').to_owned() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::short;

    #[test]
    fn three_digits_are_enough() {
        for (value, text) in
            [(0.05, "0.05"), (50.0, "50"), (0.45123, "0.451"), (12345.0, "12345"), (1.2e7, "1.2e7")]
        {
            assert_eq!(short(value), text);
        }
    }
}
