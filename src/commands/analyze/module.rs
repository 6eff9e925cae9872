//! Analyzes one module: sums, three factorizations, and the projections of change and noise onto the
//! singular vectors of each.

use crate::commands::analyze::matrix::Matrix;
use crate::commands::analyze::plan::{LEADING, PlannedAnalysis, request};
use crate::commands::analyze::quartet::{AnalysisOptions, Checkpoints, Quartet};
use crate::commands::analyze::record::{MethodB, ModuleAnalysis, Remaining, SpectrumAboveNoise, Subspaces};
use crate::commands::analyze::single_pass::survey;
use crate::commands::analyze::stats::marchenko_pastur::{edge, hard_threshold};
use crate::commands::analyze::stats::noise_sums::Sums;
use crate::commands::analyze::stats::subspace::{Basis, Overlap, Projections};
use crate::delta::recomputed::Recomputed;
use crate::factorize::types::Panels;
use crate::lora::names::kind_of;
use crate::{Error, Result};

/// Numbers of vectors whose subspaces are compared, besides the rank.
const COMPARED: [usize; 2] = [8, 64];

/// Maximum number of singular values in the record.
const LISTED: usize = LEADING;

/// Computes a module's numbers, except whether its cosines are significant, which depends on all modules.
///
/// # Errors
/// Errors of reading; weights that are not finite.
pub fn analyze_module(
    checkpoints: &Checkpoints,
    quartet: &Quartet<'_>,
    planned: &PlannedAnalysis,
    asking: &AnalysisOptions,
    read: &(dyn Fn(u64) + Sync),
) -> Result<ModuleAnalysis> {
    let sums = survey(checkpoints, quartet, read)?;
    if !sums.is_finite() {
        return Err(not_finite(checkpoints, quartet));
    }
    let shape = [quartet.pair.rows, quartet.pair.shape[1]];
    let request = request(asking, shape);
    let name = &quartet.pair.name;
    let factorized = |matrix: &mut Matrix<'_>, norm2: f64| -> Result<(Basis, bool)> {
        let factors = matrix.factorize(norm2, name, &request)?;
        let all_known = factors.converged >= shape[0].min(shape[1]) || factors.rank < request.rank;
        Ok((Basis::of(factors, shape).map_err(|e| e.tensor(name))?, all_known))
    };
    let mut noise_matrix = Matrix::new(checkpoints.base_noise(quartet)?, planned);
    let (noise, _) = factorized(&mut noise_matrix, sums.base_noise2)?;
    let (corrective, corrective_known) =
        factorized(&mut Matrix::new(checkpoints.corrective(quartet)?, planned), sums.corrective2)?;
    let mut change_matrix = Matrix::new(checkpoints.change(quartet)?, planned);
    let (change, _) = factorized(&mut change_matrix, sums.change2)?;
    let change_on_noise = change_matrix.project(&noise)?;
    let change_on_corrective = change_matrix.project(&corrective)?;
    drop(change_matrix);
    let noise_on_change = noise_matrix.project(&change)?;
    let noise_on_corrective = noise_matrix.project(&corrective)?;
    let bases = Bases { change: &change, noise: &noise, corrective: &corrective };
    Ok(ModuleAnalysis {
        name: name.clone(),
        kind: kind_of(name).to_owned(),
        layer: layer_of(name),
        shape,
        quantized: quartet.base_quantized.is_quantized(),
        norms: sums.norms(),
        unchanged: sums.unchanged / sums.elements.max(1.0),
        change_and_noise: sums.change_and_noise(),
        noise_and_noise: sums.noise_and_noise(),
        magnitude_correlation: sums.magnitude_correlation(),
        subspaces: subspaces(&sums, &bases, [&change_on_noise, &noise_on_change], asking.rank)?,
        method_b: method_b(&sums, &bases, [&change_on_corrective, &noise_on_corrective], asking.rank),
        remaining: remaining(&sums, &bases, &noise_on_change, asking.rank),
        spectrum: spectrum(&sums, &bases, shape, corrective_known),
    })
}

/// The leading singular vectors of the three differences.
struct Bases<'a> {
    change: &'a Basis,
    noise: &'a Basis,
    corrective: &'a Basis,
}

fn subspaces(
    sums: &Sums,
    bases: &Bases<'_>,
    [change_on_noise, noise_on_change]: [&Projections; 2],
    rank: usize,
) -> Result<Vec<Subspaces>> {
    let (change, noise) = (bases.change, bases.noise);
    let most = change.len().min(noise.len());
    let mut sizes: Vec<usize> = COMPARED.into_iter().chain([rank]).map(|k| k.min(most)).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let left = Overlap::of(change.left.as_ref(), noise.left.as_ref());
    let right = Overlap::of(change.right.as_ref(), noise.right.as_ref());
    let share = |energy: f64, norm2: f64| if norm2 > 0.0 { energy / norm2 } else { 0.0 };
    let at_k = |k: usize| {
        let change_shares = change_on_noise.shares(k, sums.change2);
        let noise_shares = noise_on_change.shares(k, sums.base_noise2);
        Ok(Subspaces {
            k,
            left: left.angles(k, change_shares[0], noise_shares[0])?,
            right: right.angles(k, change_shares[1], noise_shares[1])?,
            change_gap: change.gap(k),
            noise_gap: noise.gap(k),
            change_in_change: share(change.energy(k), sums.change2),
            noise_in_noise: share(noise.energy(k), sums.base_noise2),
        })
    };
    sizes.into_iter().filter(|k| *k > 0).map(at_k).collect()
}

fn method_b(
    sums: &Sums,
    bases: &Bases<'_>,
    [change_on, noise_on]: [&Projections; 2],
    rank: usize,
) -> Option<MethodB> {
    let k = bases.corrective.len().min(rank);
    if k == 0 {
        return None;
    }
    let [change_left, change_right] = change_on.shares(k, sums.change2);
    let [noise_left, noise_right] = noise_on.shares(k, sums.base_noise2);
    let (change, noise) = (change_left * sums.change2, noise_left * sums.base_noise2);
    let pairs = change_on.diagonal.iter().zip(&noise_on.diagonal).take(k);
    Some(MethodB {
        k,
        change_left,
        change_right,
        change_by_method_a: if sums.change2 > 0.0 { bases.change.energy(k) / sums.change2 } else { 0.0 },
        noise_left,
        noise_right,
        spent_on_noise: if change + noise > 0.0 { noise / (change + noise) } else { 0.0 },
        noise_directions: pairs.filter(|(change, noise)| noise.abs() > change.abs()).count(),
    })
}

/// What remains of `C` with either method. With `D_r = sum s u v^T`, the best approximation of `D` at rank r, Method A
/// leaves `||C - D_r||^2 = ||C||^2 - ||D_r||^2 + 2 <N_b, D_r>`, since `C = D - N_b` and `<D, D_r> = ||D_r||^2`. Method
/// B leaves the energy of `C` beyond its r leading values.
fn remaining(sums: &Sums, bases: &Bases<'_>, noise_on_change: &Projections, rank: usize) -> Remaining {
    let total = sums.corrective2;
    if total <= 0.0 {
        return Remaining::default();
    }
    let kept = rank.min(bases.change.len());
    let values = bases.change.values.iter().zip(&noise_on_change.diagonal).take(kept);
    let noise_in_kept: f64 = values.map(|(value, along)| value * along).sum();
    let relative = |energy: f64| (energy.max(0.0) / total).sqrt();
    Remaining {
        method_a: relative(total - bases.change.energy(kept) + 2.0 * noise_in_kept),
        method_b: relative(total - bases.corrective.energy(rank.min(bases.corrective.len()))),
        noise: relative(sums.base_noise2),
    }
}

fn spectrum(sums: &Sums, bases: &Bases<'_>, shape: [usize; 2], all_known: bool) -> SpectrumAboveNoise {
    let sigma = (sums.base_noise2 / sums.elements.max(1.0)).sqrt();
    let (edge, threshold) = (edge(shape, sigma), hard_threshold(shape, sigma));
    let noise_largest = bases.noise.values.first().copied().unwrap_or(0.0);
    let values = &bases.corrective.values;
    let above = |limit: f64| values.iter().take_while(|value| **value > limit).count();
    let suggested = above(threshold);
    let leading = |basis: &Basis| basis.values.iter().take(LISTED).copied().collect();
    SpectrumAboveNoise {
        sigma,
        edge,
        threshold,
        noise_largest,
        known: values.len(),
        above_edge: above(edge),
        above_noise_largest: above(noise_largest),
        suggested_rank: suggested,
        suggested_is_at_least: suggested == values.len() && !all_known,
        leading: leading(bases.corrective),
        change_leading: leading(bases.change),
        noise_leading: leading(bases.noise),
    }
}

/// The error for the first weight that is not finite: the subtraction finds it, or it is in the quantized tuned
/// checkpoint.
fn not_finite(checkpoints: &Checkpoints, quartet: &Quartet<'_>) -> Error {
    for difference in [checkpoints.change(quartet), checkpoints.base_noise(quartet)] {
        let rows = match difference {
            Ok(difference) => Recomputed::new(difference, 1),
            Err(error) => return error,
        };
        let found = (0..rows.rows()).find_map(|at| rows.visit(at..at + 1, &mut |_| Ok(())).err());
        if let Some(error) = found {
            return error;
        }
    }
    Error::input("a weight of the quantized tuned checkpoint is not finite").tensor(&quartet.pair.tuned)
}

/// The number of a module's layer: the first part of its name that is a number.
pub fn layer_of(name: &str) -> Option<u32> {
    name.split('.').find_map(|part| part.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_the_first_number() {
        assert_eq!(layer_of("model.layers.12.mlp.experts.7.up_proj"), Some(12));
        assert_eq!(layer_of("lm_head"), None);
    }
}
