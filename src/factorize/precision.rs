//! In what numbers the delta is multiplied, and when bytes are good enough.

use serde::{Deserialize, Serialize};

/// The numbers in which block Krylov multiplies with the delta. Orthogonalization, projections and factors are in f32
/// and f64 whatever it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Precision {
    /// Bytes, unless what they miss of the delta is too large beside what its best approximation misses.
    #[default]
    Auto,
    /// Bytes, whatever they miss.
    Int8,
    /// f32.
    F32,
}

impl Precision {
    /// What was used before there was a choice.
    pub fn before() -> Precision {
        Precision::F32
    }

    /// The name on the command line and in manifests.
    pub fn name(self) -> &'static str {
        match self {
            Precision::Auto => "auto",
            Precision::Int8 => "int8",
            Precision::F32 => "f32",
        }
    }
}

/// What bytes miss, as squared norms.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Missed {
    /// Of the delta.
    pub delta2: f64,
    /// Of a column of a thin block, whose norm is 1: the mean.
    pub column2: f64,
}

/// A matrix and its factors, as squared norms.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Split {
    /// Rows and columns.
    pub shape: [usize; 2],
    /// Of the factors.
    pub rank: usize,
    /// What the factors capture.
    pub captured: f64,
    /// What they do not.
    pub outside: f64,
}

/// The most that bytes may miss of the delta, as a share of what the best approximation misses (both squared): it adds
/// some 0.3 of this share to the error over the optimal one.
const MOST_OF_DELTA: f64 = 2e-3;
/// The same as a share of the tolerance.
const OF_TOLERANCE: f64 = 0.4;
/// How far off the stated error may be on average, as a share of it: it is to be true to 1e-3.
const MOST_STATED: f64 = 5e-4;
/// The same for the standard deviation of what is off by chance.
const MOST_SPREAD: f64 = 3e-4;

impl Missed {
    /// Whether this is little, for an error that may exceed the optimal one by `tolerance` and has to be stated
    /// truly.
    ///
    /// What bytes miss has no direction. So a projection to `rank` directions of the shorter side `n` meets the share
    /// `rank / n` of it, by which the stated error is too low; and the delta's part overlaps what the factors capture
    /// by chance, as far as two matrices `[m, n]` do. What is missed of a block is known, and counted only where it
    /// meets what the factors do not capture.
    pub fn is_little(&self, tolerance: f64, split: &Split) -> bool {
        let Split { shape: [m, n], rank, captured, outside } = *split;
        let (side, rank) = (m.min(n).max(1) as f64, rank.max(1) as f64);
        let met = (self.delta2 + self.column2 * outside) * rank / side;
        let chance = (self.delta2 * captured / (m * n).max(1) as f64).sqrt();
        self.delta2 <= MOST_OF_DELTA.min(OF_TOLERANCE * tolerance) * outside
            && met <= MOST_STATED * outside
            && chance <= MOST_SPREAD * outside
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_for_large_modules_with_something_left() {
        let missed = |norm2: f64| Missed { delta2: 5e-5 * norm2, column2: 1.4e-4 };
        let split = |shape, rank, share: f64| Split { shape, rank, captured: 1.0 - share, outside: share };
        let large = |share| split([25600, 5120], 256, share);
        assert!(missed(1.0).is_little(0.005, &large(0.23)));
        assert!(!missed(1.0).is_little(0.005, &large(0.01)), "little is left");
        assert!(!missed(1.0).is_little(0.0001, &large(0.23)), "a tolerance that bytes would use up");
        assert!(!missed(1.0).is_little(0.005, &split([128, 128], 16, 0.15)), "chance does not even out");
        assert!(!missed(100.0).is_little(0.005, &large(0.23)), "coarse scales");
    }
}
