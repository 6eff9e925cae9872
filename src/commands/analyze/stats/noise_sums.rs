//! Sums over the elements of one module, and the statistics that follow from them. Sums are in f64, in a fixed number
//! of lanes, so that the order of additions depends only on lengths.

use crate::commands::analyze::record::{Cosine, Norms};

const LANES: usize = 16;

/// Sums over elements of the base `B`, the change `D`, the noises `N_b` and `N_t`, and `C = T - dequant(Q)`. Those of
/// several modules can be added to give the sums over all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sums {
    /// Number of elements.
    pub elements: f64,
    /// Number of elements of `D` that are exactly zero.
    pub unchanged: f64,
    /// `sum B^2`.
    pub base2: f64,
    /// `sum D^2`.
    pub change2: f64,
    /// `sum N_b^2`.
    pub base_noise2: f64,
    /// `sum N_t^2`.
    pub tuned_noise2: f64,
    /// `sum C^2`.
    pub corrective2: f64,
    /// `sum D N_b` and `sum D^2 N_b^2`.
    pub change_noise: [f64; 2],
    /// `sum N_b N_t` and `sum N_b^2 N_t^2`.
    pub noise_noise: [f64; 2],
    /// `sum |N_b|`, `sum |N_t|`.
    pub magnitudes: [f64; 2],
    /// `sum |N_b N_t|`.
    pub magnitude_product: f64,
}

impl Sums {
    /// Adds elements of one module, in slices of equal length.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn add(
        &mut self,
        base: &[f32],
        change: &[f32],
        base_noise: &[f32],
        tuned_noise: &[f32],
        corrective: &[f32],
    ) {
        let count = base.len();
        assert!(
            [change, base_noise, tuned_noise, corrective].iter().all(|s| s.len() == count),
            "lengths differ"
        );
        let product = |a: f64, b: f64| a * b;
        let squares = |a: f64, b: f64| (a * b) * (a * b);
        let parts = Sums {
            elements: count as f64,
            unchanged: change.iter().filter(|d| **d == 0.0).count() as f64,
            base2: sum(base, base, product),
            change2: sum(change, change, product),
            base_noise2: sum(base_noise, base_noise, product),
            tuned_noise2: sum(tuned_noise, tuned_noise, product),
            corrective2: sum(corrective, corrective, product),
            change_noise: [sum(change, base_noise, product), sum(change, base_noise, squares)],
            noise_noise: [sum(base_noise, tuned_noise, product), sum(base_noise, tuned_noise, squares)],
            magnitudes: [base_noise, tuned_noise].map(|noise| sum(noise, noise, |a, _| a.abs())),
            magnitude_product: sum(base_noise, tuned_noise, |a, b| (a * b).abs()),
        };
        *self += parts;
    }

    /// Whether every sum is finite.
    pub fn is_finite(&self) -> bool {
        let sums = [self.base2, self.change2, self.base_noise2, self.tuned_noise2, self.corrective2];
        sums.iter().all(|sum| sum.is_finite())
    }

    /// The norms.
    pub fn norms(&self) -> Norms {
        let noise = self.base_noise2.sqrt();
        Norms {
            base: self.base2.sqrt(),
            change: self.change2.sqrt(),
            base_noise: noise,
            tuned_noise: self.tuned_noise2.sqrt(),
            corrective: self.corrective2.sqrt(),
            signal_to_noise: (noise > 0.0).then(|| self.change2.sqrt() / noise),
        }
    }

    /// `cos(D, N_b)`.
    pub fn change_and_noise(&self) -> Cosine {
        let [product, squares] = self.change_noise;
        Cosine::of(product, squares, self.change2, self.base_noise2)
    }

    /// `cos(N_b, N_t)`.
    pub fn noise_and_noise(&self) -> Cosine {
        let [product, squares] = self.noise_noise;
        Cosine::of(product, squares, self.base_noise2, self.tuned_noise2)
    }

    /// Pearson's correlation of `|N_b|` and `|N_t|`; `None` if one of them does not vary beyond rounding.
    pub fn magnitude_correlation(&self) -> Option<f64> {
        let [base, tuned] = self.magnitudes.map(|sum| sum / self.elements.max(1.0));
        let variance = |squares: f64, mean: f64| {
            let second = squares / self.elements.max(1.0);
            let variance = second - mean * mean;
            (variance > 1e-12 * second).then_some(variance)
        };
        let covariance = self.magnitude_product / self.elements.max(1.0) - base * tuned;
        let variances = variance(self.base_noise2, base)? * variance(self.tuned_noise2, tuned)?;
        Some((covariance / variances.sqrt()).clamp(-1.0, 1.0))
    }
}

impl std::ops::AddAssign for Sums {
    fn add_assign(&mut self, other: Sums) {
        self.elements += other.elements;
        self.unchanged += other.unchanged;
        self.base2 += other.base2;
        self.change2 += other.change2;
        self.base_noise2 += other.base_noise2;
        self.tuned_noise2 += other.tuned_noise2;
        self.corrective2 += other.corrective2;
        for at in 0..2 {
            self.change_noise[at] += other.change_noise[at];
            self.noise_noise[at] += other.noise_noise[at];
            self.magnitudes[at] += other.magnitudes[at];
        }
        self.magnitude_product += other.magnitude_product;
    }
}

/// The sum of `term` over pairs of elements, widened to f64.
#[inline(always)]
fn sum(a: &[f32], b: &[f32], term: impl Fn(f64, f64) -> f64) -> f64 {
    let mut lanes = [0f64; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for ((lane, &a), &b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += term(f64::from(a), f64::from(b));
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(&a, &b)| term(f64::from(a), f64::from(b))).sum();
    lanes.iter().sum::<f64>() + rest
}
