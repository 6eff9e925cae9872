//! Factors whose error of the layer's outputs is the least, over the inputs of a calibration.

use crate::Result;
use crate::commands::extract::factors::plain::method;
use crate::commands::extract::factors::{Made, StoredFactors, round};
use crate::commands::extract::output::manifest::{Spectrum, SpectrumOf};
use crate::delta::module_record::{OutputError, Quality};
use crate::factorize::kernel::block_ops::square_sum;
use crate::factorize::precision::Precision;
use crate::factorize::types::{Panels, Request};
use crate::factorize::weighted::{Errors, Root, directions, project};
use crate::lora::factor_dtype::FactorType;

/// Factorizes `delta` of squared norm `norm2` for inputs of which `root` is a root of the second moments. `B` is
/// rounded first, and `A` is the best for what it was rounded to.
///
/// # Errors
/// What visiting the delta met; factors that do not fit in the type they are stored in.
pub(crate) fn make(
    delta: &dyn Panels,
    norm2: f64,
    root: &Root,
    module: &str,
    request: &Request,
    dtype: FactorType,
) -> Result<Made> {
    let found = directions(delta, root, module, request)?;
    let rank = found.rank;
    let spectrum = Spectrum {
        module: module.to_owned(),
        shape: [delta.rows(), delta.cols()],
        of: Some(SpectrumOf::Outputs),
        delta_norm: found.norm2.sqrt(),
        converged: found.converged,
        singular_values: found.singular_values,
    };
    let mut left = found.left;
    let left_bytes = round(&mut left, dtype, module)?;
    let projected = project(delta, root, &left, rank)?;
    let mut right = projected.right.clone();
    let right_bytes = round(&mut right, dtype, module)?;
    let norms = Errors { weights2: norm2, outputs2: found.norm2 };
    let errors = projected.errors(delta, root, (&left, &right), norms, (module, request.seed))?;
    let outputs = Some(OutputError::of(norms.outputs2, errors.outputs2));
    let energies = energies(&left, &right, rank);
    Ok(Made {
        stored: StoredFactors { left, right, left_bytes, right_bytes },
        rank,
        quality: Quality { outputs, ..Quality::of(norms.weights2, errors.weights2) },
        method: method(rank, found.method.name()),
        precision: Precision::F32,
        basis: found.basis,
        passes: found.passes + 1,
        estimated_excess: found.estimated_excess,
        spectrum,
        tensors: Vec::new(),
        energies,
    })
}

/// The squared norm of each of the `rank` products of a column of `left` and a row of `right`.
fn energies(left: &[f32], right: &[f32], rank: usize) -> Vec<f64> {
    let mut columns = vec![0.0; rank];
    for row in left.chunks_exact(rank.max(1)) {
        columns.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value).powi(2));
    }
    let rows = right.chunks_exact((right.len() / rank.max(1)).max(1));
    columns.iter().zip(rows).map(|(column, row)| column * square_sum(row)).collect()
}
