//! Adapters of lower ranks than the modules were factorized to: the first directions of each.
//!
//! The directions of a module are orthogonal and come with their energies, so what a lower rank leaves is what the
//! full one leaves plus the energies of the directions that it drops.

use crate::commands::extract::module::ShardRecord;
use crate::commands::extract::options::Target;
use crate::commands::extract::output::manifest::{SpectrumOf, total};
use crate::delta::module_record::{ModuleRecord, OutputError, Quality};
use crate::durable::finding::B3SUMS;

/// The folder of the adapter of this rank, inside that of the largest one.
pub(crate) fn folder(rank: usize) -> String {
    format!("rank-{rank}")
}

/// The files of a run that writes adapters of these lower ranks too, each a folder of the same files and its own
/// checksums.
pub(crate) fn outputs(files: &[&str], lower: &[usize]) -> Vec<String> {
    let within = |rank: &usize| {
        let folder = folder(*rank);
        files.iter().chain([&B3SUMS]).map(move |file| format!("{folder}/{file}"))
    };
    files.iter().map(|file| (*file).to_owned()).chain(lower.iter().flat_map(within)).collect()
}

/// A module's record in an adapter of rank `rank`.
pub(crate) fn at_rank(record: &ShardRecord, rank: usize) -> ModuleRecord {
    let module = &record.module;
    if rank >= module.rank {
        return module.clone();
    }
    let values = &record.spectrum.singular_values;
    let minimized2: f64 = values.iter().take(module.rank).skip(rank).map(|value| value * value).sum();
    let (weights2, outputs) = match record.spectrum.of {
        Some(SpectrumOf::Outputs) => {
            let outputs = module.quality.outputs;
            let outputs = outputs.map(|o| OutputError::of(o.delta_norm.powi(2), o.error2() + minimized2));
            (record.energies.iter().skip(rank).sum(), outputs)
        }
        _ => (minimized2, None),
    };
    let norm2 = module.quality.delta_norm.powi(2);
    let before2 = module.quality.outputs.map_or(module.quality.error2(), |outputs| outputs.error2());
    ModuleRecord {
        rank,
        estimated_excess: excess(before2, module.estimated_excess, minimized2),
        quality: Quality { outputs, ..Quality::of(norm2, module.quality.error2() + weights2) },
        ..module.clone()
    }
}

/// An upper bound of the excess of fewer directions: what all of them fall short of the optimum bounds what the first
/// ones do.
fn excess(error2: f64, excess: f64, dropped2: f64) -> f64 {
    let short = error2 * (1.0 - (1.0 + excess).powi(-2));
    let (error2, optimal2) = (error2 + dropped2, error2 + dropped2 - short);
    if optimal2 > 0.0 { (error2 / optimal2).sqrt() - 1.0 } else { excess }
}

/// The least rank, at most `most`, whose adapter of these modules is as near as `target` asks, in the norm that the
/// run minimizes. `None` if that takes more.
pub(crate) fn least_rank(records: &[&ShardRecord], most: usize, target: Target) -> Option<usize> {
    let error = |rank: usize| {
        let records: Vec<ModuleRecord> = records.iter().map(|record| at_rank(record, rank)).collect();
        let total = total(records.iter());
        total.outputs.map_or(total.relative_error, |outputs| outputs.relative_error)
    };
    let ranks: Vec<usize> = (1..=most).collect();
    let at = ranks.partition_point(|&rank| !target.is_met(error(rank)));
    ranks.get(at).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::extract::output::manifest::Spectrum;
    use crate::factorize::precision::Precision;

    fn blank() -> ModuleRecord {
        ModuleRecord {
            name: "m".into(),
            shape: [64, 64],
            rank: 0,
            method: "krylov".into(),
            precision: Precision::F32,
            missed_by_bytes: None,
            basis: 8,
            passes: 2,
            minimized: None,
            quality: Quality::default(),
            estimated_excess: 0.01,
            expected_noise: None,
            non_finite: 0,
            blake3: String::new(),
        }
    }

    fn record(values: &[f64], rank: usize, norm2: f64) -> ShardRecord {
        let kept: f64 = values[..rank].iter().map(|value| value * value).sum();
        ShardRecord {
            module: ModuleRecord { rank, quality: Quality::of(norm2, norm2 - kept), ..blank() },
            spectrum: Spectrum {
                module: "m".into(),
                shape: [64, 64],
                of: None,
                delta_norm: norm2.sqrt(),
                converged: rank,
                singular_values: values.to_vec(),
            },
            tensors: Vec::new(),
            energies: Vec::new(),
        }
    }

    #[test]
    fn a_lower_rank_leaves_what_it_drops() {
        let one = record(&[3.0, 2.0, 1.0, 0.5], 3, 20.0);
        let lower = at_rank(&one, 1);
        assert!((lower.quality.error2() - 11.0).abs() < 1e-12, "{}", lower.quality.error2());
        assert_eq!(lower.rank, 1);
        // The full rank may miss 1 % of an error of sqrt(6); of an error of sqrt(11) that is less.
        assert!(lower.estimated_excess > 0.0 && lower.estimated_excess < 0.01, "{}", lower.estimated_excess);
        assert_eq!(at_rank(&one, 5), one.module);
    }

    #[test]
    fn the_least_rank_is_that_of_all_modules_together() {
        let (one, two) = (record(&[3.0, 2.0, 1.0], 3, 14.0), record(&[2.0, 1.0, 1.0], 3, 6.0));
        let found = |target| least_rank(&[&one, &two], 3, target);
        // Of 20 rank 1 captures 13, rank 2 18, rank 3 everything.
        assert_eq!(found(Target::Energy(0.65)), Some(1));
        assert_eq!(found(Target::Energy(0.66)), Some(2));
        assert_eq!(found(Target::Error(0.31)), Some(3), "the error of rank 2 is the root of 0.1");
        assert_eq!(found(Target::Error(0.32)), Some(2));
        let three = record(&[2.0, 1.0, 1.0], 3, 60.0);
        assert_eq!(least_rank(&[&three], 3, Target::Energy(0.5)), None);
    }
}
