//! Whether a cosine exceeds chance: its standard error given the magnitudes, its two-sided p, and Benjamini and
//! Hochberg's decision over many modules.

use crate::commands::analyze::record::Cosine;

/// Share of false discoveries among the modules that count as significant.
pub const FALSE_DISCOVERY_RATE: f64 = 0.05;

impl Cosine {
    /// The cosine of `a` and `b` from the sums over their elements `product` = `sum a b`, `squares` = `sum a^2 b^2`,
    /// and their squared norms. `significant` is not decided yet.
    ///
    /// With the magnitudes given and the signs of `a b` independent fair coins, `sum a b` has mean 0 and variance
    /// `sum a^2 b^2`; a sum of many such terms is normal, so that `z = sum a b / sqrt(sum a^2 b^2)` (for a bound on how
    /// far from normal see Berry and Esseen; a module has 10^4 elements or more).
    pub fn of(product: f64, squares: f64, a_norm2: f64, b_norm2: f64) -> Cosine {
        let norms = (a_norm2 * b_norm2).sqrt();
        if !(norms > 0.0 && squares > 0.0) {
            return Cosine { p_value: 1.0, ..Cosine::default() };
        }
        let error = squares.sqrt();
        let z = product / error;
        Cosine {
            value: product / norms,
            standard_error: error / norms,
            z,
            p_value: two_sided(z),
            significant: false,
        }
    }
}

/// The probability that a standard normal is as far from 0 as `z`, or further.
pub fn two_sided(z: f64) -> f64 {
    libm::erfc(z.abs() * std::f64::consts::FRAC_1_SQRT_2)
}

/// Which of the null hypotheses with these p-values are rejected, such that on average at most the share `rate` of all
/// rejections is false (Benjamini and Hochberg, *Controlling the false discovery rate*, 1995): those up to the largest
/// `p(i)`, in ascending order, with `p(i) <= rate i / count`.
pub fn benjamini_hochberg(p_values: &[f64], rate: f64) -> Vec<bool> {
    let mut ascending = p_values.to_vec();
    ascending.sort_by(f64::total_cmp);
    let count = p_values.len() as f64;
    let below = |(at, p): (usize, &f64)| (*p <= rate * (at + 1) as f64 / count).then_some(*p);
    let largest = ascending.iter().enumerate().rev().find_map(below);
    p_values.iter().map(|p| largest.is_some_and(|largest| *p <= largest)).collect()
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use rand_distr::{Distribution, LogNormal};

    use super::*;
    use crate::commands::analyze::stats::noise_sums::Sums;

    /// Noises of one module: the same widely spread magnitudes, and signs of which a share `shared` is the same.
    fn noises(random: &mut ChaCha8Rng, shared: f64) -> [Vec<f32>; 2] {
        let sizes = LogNormal::new(0.0, 0.5).unwrap();
        let sign = |random: &mut ChaCha8Rng| if random.random::<bool>() { 1f32 } else { -1.0 };
        let mut both = [Vec::new(), Vec::new()];
        for _ in 0..64 * 48 {
            let (size, first): (f32, f32) = (sizes.sample(random), sign(random));
            let second = if random.random::<f64>() < shared { first } else { sign(random) };
            both[0].push(size * first);
            both[1].push(size * second);
        }
        both
    }

    fn cosines(modules: usize, shared: f64) -> Vec<Cosine> {
        let mut random = ChaCha8Rng::seed_from_u64(6);
        let one = |_| {
            let [base, tuned] = noises(&mut random, shared);
            let mut sums = Sums::default();
            sums.add(&base, &base, &base, &tuned, &base);
            sums.noise_and_noise()
        };
        (0..modules).map(one).collect()
    }

    #[test]
    fn independent_signs_are_called_chance() {
        let found = cosines(1000, 0.0);
        let share = found.iter().filter(|c| c.p_value < 0.05).count() as f64 / 1000.0;
        assert!((0.035..=0.065).contains(&share), "{share} of the p-values are below 0.05");
        let p: Vec<f64> = found.iter().map(|c| c.p_value).collect();
        let discoveries = benjamini_hochberg(&p, FALSE_DISCOVERY_RATE).iter().filter(|d| **d).count();
        assert!(
            discoveries <= 3,
            "{discoveries} of 1000 modules without any correlation are called correlated"
        );
        // 1/sqrt(m n) would be far too narrow, because magnitudes are shared.
        let naive = found.iter().filter(|c| c.value.abs() * (64f64 * 48.0).sqrt() > 1.96).count();
        assert!(naive > 150, "{naive}");
    }

    #[test]
    fn planted_correlation_is_found() {
        let found = cosines(200, 0.5);
        let p: Vec<f64> = found.iter().map(|c| c.p_value).collect();
        assert!(benjamini_hochberg(&p, FALSE_DISCOVERY_RATE).iter().all(|d| *d));
        let mean = found.iter().map(|c| c.value).sum::<f64>() / 200.0;
        assert!((mean - 0.5).abs() < 0.03, "{mean}");
    }

    #[test]
    fn zeros_tell_nothing() {
        assert_eq!(Cosine::of(0.0, 0.0, 0.0, 4.0), Cosine { p_value: 1.0, ..Cosine::default() });
        assert!(benjamini_hochberg(&[], 0.05).is_empty());
    }

    #[test]
    fn the_step_up_goes_by_the_largest_that_passes() {
        // 0.02 alone would fail its own bound of 0.0125, but 0.049 passes the last one.
        assert_eq!(benjamini_hochberg(&[0.049, 0.02, 0.04, 0.03], 0.05), [true; 4]);
        assert_eq!(benjamini_hochberg(&[0.2, 0.012, 0.9, 0.03], 0.05), [false, true, false, false]);
    }
}
