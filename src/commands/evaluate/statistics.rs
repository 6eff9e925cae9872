//! Means and standard errors over sequences of unequal length.
//!
//! A mean over tokens is a ratio of two sums over sequences; its error is that of a ratio estimator (Cochran 1977,
//! *Sampling techniques*, section 6.4), with sequences as units, because tokens of one text are not independent.

use serde::{Deserialize, Serialize};

use crate::model::Loss;

/// A difference of two mean losses over the same sequences.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Paired {
    /// The difference, in nats.
    pub difference: f64,
    /// Its standard error, if there are two sequences or more.
    pub standard_error: Option<f64>,
}

/// The mean over all tokens.
pub(super) fn loss_of(losses: &[Loss]) -> f64 {
    mean(&units(losses))
}

/// The standard error of the mean over all tokens.
pub(super) fn standard_error(losses: &[Loss]) -> Option<f64> {
    error(&units(losses))
}

/// The mean of `after` minus that of `before`, paired by sequence.
pub(super) fn paired(before: &[Loss], after: &[Loss]) -> Paired {
    let differences =
        before.iter().zip(after).map(|(before, after)| (after.sum - before.sum, after.tokens as f64));
    let differences: Vec<(f64, f64)> = differences.collect();
    Paired { difference: mean(&differences), standard_error: error(&differences) }
}

fn units(losses: &[Loss]) -> Vec<(f64, f64)> {
    losses.iter().map(|loss| (loss.sum, loss.tokens as f64)).collect()
}

fn mean(units: &[(f64, f64)]) -> f64 {
    units.iter().map(|unit| unit.0).sum::<f64>() / units.iter().map(|unit| unit.1).sum::<f64>()
}

fn error(units: &[(f64, f64)]) -> Option<f64> {
    let count = units.len() as f64;
    if units.len() < 2 {
        return None;
    }
    let (mean, tokens) = (mean(units), units.iter().map(|unit| unit.1).sum::<f64>());
    let squares: f64 = units.iter().map(|(sum, tokens)| (sum - mean * tokens).powi(2)).sum();
    Some((count / (count - 1.0) * squares).sqrt() / tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn losses(units: &[(f64, usize)]) -> Vec<Loss> {
        let loss = |(sequence, &(sum, tokens))| Loss { variant: 0, sequence, tokens, sum };
        units.iter().enumerate().map(loss).collect()
    }

    #[test]
    fn equal_sequences_have_the_textbook_error_and_pairs_less() {
        let before = losses(&[(100.0, 50), (150.0, 50), (200.0, 50)]);
        let after = losses(&[(90.0, 50), (141.0, 50), (189.0, 50)]);
        assert_eq!(loss_of(&before), 3.0);
        // The means 2, 3 and 4: a standard deviation of 1 over √3.
        assert!((standard_error(&before).unwrap() - 1.0 / 3f64.sqrt()).abs() < 1e-12);
        let change = paired(&before, &after);
        assert!((change.difference + 0.2).abs() < 1e-12);
        // The differences -0.20, -0.18 and -0.22.
        assert!((change.standard_error.unwrap() - 0.02 / 3f64.sqrt()).abs() < 1e-12);
        assert_eq!(standard_error(&before[..1]), None);
    }

    #[test]
    fn long_sequences_weigh_more() {
        let mixed = losses(&[(10.0, 10), (300.0, 100)]);
        assert!((loss_of(&mixed) - 310.0 / 110.0).abs() < 1e-12);
    }
}
