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

/// What bytes miss, in squared norms.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Missed {
    /// Of the delta itself.
    pub delta2: f64,
    /// Of the thin blocks, as an error of the delta's projection: an estimate.
    pub blocks2: f64,
}

/// The most that bytes may miss of the delta, as a share of what the best approximation misses (both squared): it adds
/// some 0.3 of this share to the error over the optimal one.
const MOST_OF_DELTA: f64 = 2e-3;
/// The same as a share of the tolerance.
const OF_TOLERANCE: f64 = 0.4;
/// The most that both may miss: it shows in the stated error, which is to be true to 1e-3.
const MOST_STATED: f64 = 1e-3;

impl Missed {
    /// Whether this is little beside `outside`, the squared norm of what the best approximation misses, for an error that
    /// may exceed the optimal one by `tolerance`.
    pub fn is_little(&self, outside: f64, tolerance: f64, [m, n]: [usize; 2], rank: usize) -> bool {
        let most = MOST_OF_DELTA.min(OF_TOLERANCE * tolerance) * outside;
        // A projection to `rank` directions of the shorter side meets that share of white noise.
        let met = self.delta2 * rank as f64 / m.min(n).max(1) as f64;
        self.delta2 <= most && met + self.blocks2 <= MOST_STATED * outside
    }
}
