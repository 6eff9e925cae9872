//! What other ranks would have given, from the singular values that the factorization found.

use crate::commands::extract::output::manifest::{OtherRank, Spectrum, SpectrumOf};

/// The powers of two from 8 up for which every module's singular values are known, without `rank` itself.
///
/// `outputs` says whether the run minimized the outputs' error: only spectra of that kind count then.
pub fn other_ranks(spectra: &[Spectrum], rank: usize, outputs: bool) -> Vec<OtherRank> {
    // Of a hybrid the values are of its second part alone.
    let of = outputs.then_some(SpectrumOf::Outputs);
    let spectra: Vec<&Spectrum> = spectra.iter().filter(|spectrum| spectrum.of == of).collect();
    let norm2: f64 = spectra.iter().map(|spectrum| spectrum.delta_norm.powi(2)).sum();
    if norm2 == 0.0 {
        return Vec::new();
    }
    let widest = spectra.iter().map(|spectrum| narrow(spectrum)).max().unwrap_or(0);
    let known = |k: usize| spectra.iter().all(|s| s.delta_norm == 0.0 || held(s) >= k.min(narrow(s)));
    let ranks = (3..usize::BITS).map(|power| 1usize << power).take_while(|&k| k <= widest && known(k));
    ranks
        .filter(|&k| k != rank)
        .map(|k| {
            let values =
                |s: &&Spectrum| s.singular_values.iter().take(k).map(|value| value * value).sum::<f64>();
            let lost = |s: &&Spectrum| (s.delta_norm.powi(2) - values(s)).max(0.0);
            let lost: f64 = spectra.iter().map(lost).sum();
            let bound = spectra.iter().any(|s| k > s.converged && s.converged < narrow(s));
            OtherRank { rank: k, captured_energy: 1.0 - lost / norm2, lower_bound: bound }
        })
        .collect()
}

/// The number of singular values that a module has at most.
fn narrow(spectrum: &Spectrum) -> usize {
    spectrum.shape[0].min(spectrum.shape[1])
}

fn held(spectrum: &Spectrum) -> usize {
    spectrum.singular_values.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spectrum(shape: [usize; 2], converged: usize, singular_values: Vec<f64>) -> Spectrum {
        let delta_norm = 10.0;
        Spectrum { module: "m".into(), shape, of: None, delta_norm, converged, singular_values }
    }

    #[test]
    fn ranks_end_where_values_are_unknown_and_bounds_are_marked() {
        let values: Vec<f64> = (0..40).map(|i| 2.0 / f64::from(i + 1)).collect();
        let share = |k: usize| values[..k].iter().map(|v| v * v).sum::<f64>() / 100.0;
        let found = other_ranks(&[spectrum([100, 300], 20, values.clone())], 16, false);
        let ranks: Vec<(usize, bool)> = found.iter().map(|other| (other.rank, other.lower_bound)).collect();
        assert_eq!(ranks, [(8, false), (32, true)], "64 of 40 values are unknown");
        assert!((found[1].captured_energy - share(32)).abs() < 1e-12);
        assert!((found[0].relative_error().powi(2) + share(8) - 1.0).abs() < 1e-12);
        // All 24 values of a narrow module are known, and a rank above them adds nothing.
        let narrow = spectrum([24, 300], 24, values[..24].to_vec());
        let found = other_ranks(&[narrow, spectrum([100, 300], 40, values)], 8, false);
        assert_eq!(found.iter().map(|other| other.rank).collect::<Vec<_>>(), [16, 32]);
        assert!(found.iter().all(|other| !other.lower_bound));
        assert!(other_ranks(&[], 8, false).is_empty());
    }
}
