//! How much of white noise a low rank holds.

/// Steps of the integration.
const STEPS: usize = 4096;

/// The share of the energy of a matrix `[m, n]` of independent noise that its `k` leading singular values have, in the
/// limit: from Marchenko and Pastur's law (*Distribution of eigenvalues for some sets of random matrices*, 1967).
pub fn leading_noise_energy([m, n]: [usize; 2], k: usize) -> f64 {
    let (short, long) = (m.min(n), m.max(n));
    if short == 0 {
        return 0.0;
    }
    let (beta, wanted) = (short as f64 / long as f64, k as f64 / short as f64);
    if wanted >= 1.0 {
        return 1.0;
    }
    // Eigenvalues are c + d cos(t) for t in [0, pi], the largest at t = 0.
    let (c, d) = (1.0 + beta, 2.0 * beta.sqrt());
    let step = std::f64::consts::PI / STEPS as f64;
    let (mut count, mut energy) = (0.0, 0.0);
    for at in 0..STEPS {
        let angle = (at as f64 + 0.5) * step;
        let weight = (d * angle.sin()).powi(2) / (2.0 * std::f64::consts::PI * beta) * step;
        let (more, value) = (weight / (c + d * angle.cos()), c + d * angle.cos());
        if count + more > wanted {
            return (energy + (wanted - count) * value).min(1.0);
        }
        count += more;
        energy += weight;
    }
    1.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::factorize::kernel::block_ops::{cross_gram, eigenvalues};
    use crate::factorize::kernel::rng::Stream;

    #[test]
    fn shares_are_those_of_a_random_matrix() {
        for ([m, n], ranks) in
            [([300, 100], [1, 8, 50]), ([120, 120], [4, 30, 119]), ([60, 900], [3, 20, 60])]
        {
            let noise = Stream::new(1, "noise").gaussian(m.max(n), m.min(n));
            let values = eigenvalues(cross_gram(noise.as_ref(), noise.as_ref()).as_ref()).unwrap();
            let total: f64 = values.iter().sum();
            for k in ranks {
                let (found, exact) =
                    (leading_noise_energy([m, n], k), values.iter().take(k).sum::<f64>() / total);
                assert!((found - exact).abs() < 0.03 * exact, "{m} x {n}, rank {k}: {found} for {exact}");
            }
        }
        assert_eq!((leading_noise_energy([0, 5], 3), leading_noise_energy([5, 9], 5)), (0.0, 1.0));
    }
}
